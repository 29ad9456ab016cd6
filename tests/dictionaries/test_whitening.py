"""Whitened input: scikit-learn's shrunken covariance, and each kind the same before folding and after loading.

N vectors, D width, L latents.
"""

import copy
from typing import Any

import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch.nn import functional as F

from helpers import fit, randn
from rayscope.dictionaries import KINDS, Learned, load
from rayscope.dictionaries.learned.whitening import Whitening, ledoit_wolf
from rayscope.evaluation.matching import nearest

pytestmark = pytest.mark.usefixtures("one_thread")
OWN: dict[str, dict[str, Any]] = {"token_bias_topk": {"vocabulary": 30}, "bottleneck_topk": {"rank": 4}}
LEARNED = [kind for kind, cls in KINDS.items() if issubclass(cls, Learned)]
TOKENS_N = torch.randint(30, (400,), generator=torch.Generator().manual_seed(1))


def uneven(N: int = 400, D: int = 12, seed: int = 0):
    """Off-centre, correlated, some directions a hundred times as strong as others."""
    return randn(N, D, seed=seed) * torch.logspace(1, -1, D) @ torch.linalg.qr(randn(D, D, seed=77)).Q + 5


def trained(kind: str, steps: int = 12) -> Learned:
    dictionary: Any = KINDS[kind](12, 40, 4, seed=3, lr=1e-2, whiten=True, **OWN.get(kind, {}))  # type: ignore[call-arg]
    dictionary.prepare(uneven(), dead_window=1000, tokens_N=TOKENS_N)
    fit(dictionary, (uneven(seed=step + 1) for step in range(steps)), tokens=lambda _: TOKENS_N)
    return dictionary


@pytest.mark.parametrize(("N", "D"), [(200, 12), (20, 30), (3, 8)])
def test_covariance_is_scikit_learns(N, D):
    x_ND = uneven(N, D).double()
    mean_D, covariance_DD = ledoit_wolf(x_ND)
    reference = LedoitWolf().fit(x_ND.numpy())
    torch.testing.assert_close(mean_D, torch.from_numpy(reference.location_))
    torch.testing.assert_close(covariance_DD, torch.from_numpy(reference.covariance_))


def test_whitened_vectors_have_unit_covariance_and_come_back():
    x_ND = randn(20_000, 12) * torch.logspace(0.4, -0.4, 12) @ torch.linalg.qr(randn(12, 12, seed=77)).Q + 5
    whitening = Whitening(12)
    whitening.fit(x_ND)
    y_ND = whitening(x_ND)
    torch.testing.assert_close(y_ND.T.cov(), torch.eye(12), atol=0.02, rtol=0)
    torch.testing.assert_close(whitening.mean_D + y_ND @ whitening.inverse_DD, x_ND, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="all the same"):
        whitening.fit(torch.ones(5, 12))


@pytest.mark.parametrize("kind", LEARNED)
def test_what_is_saved_is_what_was_learned(kind, tmp_path, monkeypatch):
    dictionary, x_ND = trained(kind), uneven(seed=99)
    dictionary.calibrate(x_ND, TOKENS_N)
    loaded = load(dictionary.save(tmp_path / "d"))
    assert loaded.units.inner.whitening is None
    assert not any("whitening" in name for name in loaded.weights())
    bias_ND = loaded.bias_at(TOKENS_N)
    torch.testing.assert_close(loaded.directions, dictionary.directions)
    torch.testing.assert_close(loaded.directions.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(bias_ND, dictionary.bias_at(TOKENS_N), rtol=1e-4, atol=1e-4)
    codes = loaded.encode_sparse(x_ND, TOKENS_N)
    with monkeypatch.context() as patch:
        patch.setattr(copy, "deepcopy", None)  # encoding before it is folded makes no copy
        unfolded = dictionary.encode_sparse(x_ND, TOKENS_N)
    assert codes.indices_M.equal(unfolded.indices_M)
    torch.testing.assert_close(codes.values_M, unfolded.values_M, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded(x_ND, TOKENS_N), dictionary(x_ND, TOKENS_N), rtol=1e-3, atol=1e-2)
    z_NL = codes.dense()
    torch.testing.assert_close(loaded.decode(z_NL, TOKENS_N), z_NL @ loaded.directions + bias_ND)
    if kind in ("batchtopk", "matryoshka_batchtopk"):  # training shares a batch's codes out, use goes by a threshold
        assert len(codes.values_M) == pytest.approx(4 * 400, abs=4)
    else:  # the pass that learns, in whitened space, against the file, in that of x
        with torch.no_grad():
            units = dictionary.units.outer
            x_hat_ND = units.invert(units(x_ND) - dictionary.training_pass(x_ND, TOKENS_N).residual_ND)
        torch.testing.assert_close(loaded(x_ND, TOKENS_N), x_hat_ND, rtol=1e-3, atol=1e-2)
    again = load(loaded.with_k(2).save(tmp_path / "two")) if kind.endswith("topk") else loaded
    assert again.encode_sparse(x_ND, TOKENS_N).latents == 40


def test_topk_chooses_by_what_is_large_in_whitened_space(tmp_path):
    dictionary, x_ND = trained("topk"), uneven(seed=99).double()
    whitening = copy.deepcopy(dictionary.units.inner.whitening).double()
    W_enc, b_enc, b_dec = (p.detach().double() for p in (dictionary.W_enc_LD, dictionary.b_enc_L, dictionary.b_dec_D))
    pre_NL = (whitening(x_ND) * dictionary.units.inner.scale - b_dec) @ W_enc.T + b_enc
    top = pre_NL.topk(4)
    z_NL = torch.zeros_like(pre_NL).scatter(1, top.indices, top.values.relu())
    y_hat_ND = (z_NL @ dictionary.W_dec_LD.detach().double() + b_dec) / dictionary.units.inner.scale
    expected_ND = whitening.mean_D + y_hat_ND @ whitening.inverse_DD
    found = load(dictionary.save(tmp_path / "d"))
    torch.testing.assert_close(found(x_ND.float()), expected_ND.float(), rtol=1e-3, atol=1e-2)
    assert ((found.encode(x_ND.float()) != 0) == (z_NL != 0)).all()
    plain = load(dictionary.save(tmp_path / "d"))
    assert plain.gain_L is not None
    plain.gain_L.fill_(1)  # lengths of rows differ, so a choice in the units of x would be another
    assert not torch.allclose(plain(x_ND.float()), found(x_ND.float()), rtol=1e-2, atol=1e-2)
    passed = dictionary.training_pass(x_ND.float())
    x_hat_ND, mean_D = expected_ND, x_ND.mean(0)
    fvu = (x_ND - x_hat_ND).square().sum() / (x_ND - mean_D).square().sum()
    assert passed.fvu.item() == pytest.approx(fvu.item(), rel=1e-3)  # logged in x, not in y


def test_soft_frozen_rows_are_refused():
    with pytest.raises(ValueError, match="whiten=True with decoder='soft_frozen'"):
        KINDS["topk"](12, 40, 4, whiten=True, decoder="soft_frozen")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["topk", "token_bias_topk", "jumprelu"])
def test_training_resumes_bitwise(kind):
    whole = trained(kind, steps=5)
    resumed: Any = KINDS[kind](12, 40, 4, seed=3, lr=1e-2, whiten=True, **OWN.get(kind, {}))  # type: ignore[call-arg]
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for dictionary in (whole, resumed):
        fit(dictionary, (uneven(seed=50 + step) for step in range(3)), tokens=lambda _: TOKENS_N)
    assert all(value.equal(resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.slow
def test_weak_rays_beside_strong_directions_are_found_where_input_is_whitened():
    """24 rays in 12 dimensions, and 4 dense directions that hold 98% of the variance."""
    rays_FD = F.pad(F.normalize(randn(24, 12, seed=5)), (0, 4))

    def batch(seed: int, N: int = 512):
        g = torch.Generator().manual_seed(seed)
        z_NF = (torch.rand(N, 24, generator=g) < 0.08) * (1 + torch.rand(N, 24, generator=g))
        return z_NF @ rays_FD + F.pad(8 * torch.randn(N, 4, generator=g), (12, 0))

    found = {}
    for whiten in (False, True):
        dictionary: Any = KINDS["topk"](16, 48, 6, seed=0, lr=1e-2, whiten=whiten)  # type: ignore[call-arg]
        dictionary.prepare(batch(10**6, 16_384), dead_window=20_000)
        fit(dictionary, (batch(step) for step in range(800)))
        found[whiten] = nearest(rays_FD, dictionary.directions, signed=False)[1].mean().item()
    assert found[True] > 0.88 > 0.85 > found[False]
