"""Matches of directions, by hand. L, M directions, D width."""

import pytest
import torch

from rayscope.evaluation import matching
from rayscope.evaluation.matching import antipodal_share, greatest_cosines, mcc, mmcs, pw_mcc

A_LD = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
B_MD = torch.tensor([[3.0, 4.0], [-5.0, 0.0], [0.6, 0.8]])  # cosines with A: .6, -1, .6 and .8, 0, .8


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_by_hand(chunk, monkeypatch):
    monkeypatch.setattr(matching, "CHUNK", chunk)
    torch.testing.assert_close(greatest_cosines(A_LD, B_MD, False), torch.tensor([0.6, 0.8]))
    assert mmcs(A_LD, B_MD) == pytest.approx(0.7)
    assert mmcs(A_LD, B_MD, signed=True) == pytest.approx(0.9)
    assert mmcs(B_MD, A_LD) == pytest.approx((0.8 + 0 + 0.8) / 3)  # not symmetric
    assert mcc(A_LD, B_MD) == pytest.approx(0.7)  # the two equal rows serve one each
    assert mcc(B_MD, A_LD, signed=True) == pytest.approx(0.9)
    assert antipodal_share(torch.cat([A_LD, B_MD])) == pytest.approx(2 / 5)
    assert antipodal_share(torch.cat([A_LD, B_MD]), below=-0.5) == pytest.approx(4 / 5)


def test_a_row_is_matched_once():
    one_LD, two_LD = torch.eye(2), torch.tensor([[0.8, 0.6], [0.8, 0.6]])
    assert mmcs(one_LD, two_LD) == pytest.approx(0.7)
    assert mcc(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)) == pytest.approx(0.5)
    assert mmcs(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)) == pytest.approx(1.0)


def test_order_and_scale_do_not_matter_and_sign_does_as_asked():
    W_LD = torch.randn(20, 64, generator=torch.Generator().manual_seed(3))
    other_LD = -3 * W_LD[torch.randperm(20, generator=torch.Generator().manual_seed(4))]
    assert mcc(W_LD, other_LD, signed=True) == pytest.approx(1, abs=1e-6)
    assert mcc(W_LD, other_LD) < 0.3
    assert mcc(W_LD, -other_LD) == pytest.approx(1, abs=1e-6)
    assert antipodal_share(torch.cat([W_LD, other_LD])) == 1
    assert antipodal_share(W_LD) == 0


def test_pw_mcc_is_the_mean_over_pairs():
    sets = [torch.eye(2), torch.eye(2).flip(0), torch.tensor([[0.8, 0.6], [-0.6, 0.8]])]
    assert pw_mcc(sets) == pytest.approx((1 + 0.8 + 0.8) / 3)
    with pytest.raises(ValueError, match="1 sets"):
        pw_mcc(sets[:1])


def test_widths_differ():
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\)"):
        mmcs(A_LD, torch.ones(2, 3))
