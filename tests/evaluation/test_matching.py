"""Nearest directions, by hand. L, M directions, D width."""

import pytest
import torch

from rayscope.evaluation import matching
from rayscope.evaluation.matching import antipodal_share, mutual_nearest, nearest

A_LD = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
B_MD = torch.tensor([[3.0, 4.0], [-5.0, 0.0], [0.6, 0.8]])  # cosines with A: .6, -1, .6 and .8, 0, .8


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_by_hand(chunk, monkeypatch):
    monkeypatch.setattr(matching, "CHUNK", chunk)
    for signed, cosines, partners in ((False, [0.6, 0.8], [{0, 2}, {0, 2}]), (True, [1.0, 0.8], [{1}, {0, 2}])):
        partner_L, cosine_L = nearest(A_LD, B_MD, signed)
        torch.testing.assert_close(cosine_L, torch.tensor(cosines))
        assert all(partner in among for partner, among in zip(partner_L.tolist(), partners, strict=True))
    assert antipodal_share(torch.cat([A_LD, B_MD])) == pytest.approx(2 / 5)
    assert antipodal_share(torch.cat([A_LD, B_MD]), below=-0.5) == pytest.approx(4 / 5)


def test_matches_are_mutual_so_that_none_serves_twice():
    A = torch.tensor([[1.0, 0.0], [3.0, 1.0], [0.0, -2.0]])
    B = torch.tensor([[5.0, 1.0], [0.0, 1.0], [-1.0, -1.0]])  # both of A's first are nearest to B's first
    partner_L, cosine_L = mutual_nearest(A, B)
    assert partner_L.tolist() == [-1, 0, 2]  # the second is nearer to it (cosine 16 / sqrt(10 * 26))
    torch.testing.assert_close(cosine_L, torch.tensor([-1.0, 16 / 260**0.5, 0.5**0.5]))


def test_order_and_scale_do_not_matter_and_sign_does_as_asked():
    W_LD = torch.randn(20, 64, generator=torch.Generator().manual_seed(3))
    order_L = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    other_LD = -3 * W_LD[order_L]
    partner_L, cosine_L = mutual_nearest(W_LD, other_LD, signed=True)
    assert torch.equal(order_L[partner_L], torch.arange(20))
    torch.testing.assert_close(cosine_L, torch.ones(20))
    assert nearest(W_LD, other_LD, signed=False)[1].max() < 0.5
    torch.testing.assert_close(nearest(W_LD, -other_LD, signed=False)[1], torch.ones(20))
    assert antipodal_share(torch.cat([W_LD, other_LD])) == 1
    assert antipodal_share(W_LD) == 0


def test_widths_differ():
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\)"):
        nearest(A_LD, torch.ones(2, 3), signed=False)
