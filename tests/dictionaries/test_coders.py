"""Coders against reference solvers on the same directions. N vectors, D site width, L directions."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import Lasso
from torch.nn import functional as F

from helpers import randn64
from rayscope.dictionaries import Linear, TopK, load, recoded
from rayscope.dictionaries.coders.fista import lasso
from rayscope.dictionaries.coders.omp import omp
from rayscope.dictionaries.coders.pursuit import pursuit
from rayscope.dictionaries.coders.support import least_squares
from rayscope.dictionaries.linear import CODERS
from rayscope.evaluation.metrics import fvu


def rows(L, D, seed=7):
    return F.normalize(randn64(L, D, seed=seed))


def reference(x_D, rows_kD):
    return torch.from_numpy(nnls(rows_kD.T.numpy(), x_D.numpy())[0])


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("signed", [True, False])
def test_every_coder_is_exact_on_k_orthogonal_rows(coder, signed, tmp_path):
    W_LD = torch.linalg.qr(randn64(12, 12)).Q.float()
    values_Nk = randn64(30, 3, seed=1).float() if signed else randn64(30, 3, seed=1).float().abs()
    values_Nk = values_Nk + 0.2 * values_Nk.sign()
    z_NL = F.pad(values_Nk, (0, 9))  # of the first three rows: what the prefix has too
    dictionary = Linear(12, 12, 3, coder, W_LD, torch.full((12,), 5.0), signed)
    x_ND = z_NL @ W_LD + 5
    torch.testing.assert_close(dictionary.encode(x_ND), z_NL, rtol=1e-3, atol=1e-4)
    saved = load(dictionary.save(tmp_path / "saved"))
    assert saved.signed == signed
    assert saved.encode(x_ND).equal(dictionary.encode(x_ND))
    assert saved.with_k(2).signed == signed


@pytest.mark.parametrize("coder", CODERS)
def test_rays_are_never_negative_and_k_is_a_bound(coder):
    dictionary = Linear(10, 40, 5, coder, rows(40, 10).float(), signed=False)
    codes = dictionary.encode_sparse(randn64(200, 10, seed=2).float())
    assert (codes.values_M > 0).all()
    assert codes.offsets.diff().max() <= 5
    assert dictionary.encode_sparse(torch.zeros(2, 10)).values_M.numel() == 0


def test_a_file_from_before_signs_is_signed():
    arguments = Linear(4, 4, 1, "topk").arguments()
    del arguments["signed"]
    assert Linear(**arguments).signed


def test_topk_of_rays_leaves_the_negative_side():
    rays = Linear(3, 3, 2, "topk", torch.eye(3), signed=False)
    assert rays.encode(torch.tensor([[-5.0, 1.0, 2.0], [-1.0, -1.0, 3.0]])).tolist() == [[0, 1, 2], [0, 0, 3]]


def test_nonnegative_least_squares_is_scipys():
    x_ND, W_LD = randn64(150, 8, seed=3), rows(40, 8)
    indices_Nk = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(n))[:10] for n in range(150)])
    found_Nk = least_squares(x_ND, W_LD, indices_Nk, False, torch.ones_like(indices_Nk, dtype=torch.bool))
    fitted = [
        (z @ W_LD[i], reference(x, W_LD[i]) @ W_LD[i]) for x, z, i in zip(x_ND, found_Nk, indices_Nk, strict=True)
    ]
    for mine_D, theirs_D in fitted:  # ten rows in eight dimensions: the projection is unique where codes are not
        torch.testing.assert_close(mine_D, theirs_D, rtol=1e-5, atol=1e-6)
    assert (found_Nk >= 0).all()


def test_omp_of_rays_is_the_greedy_loop_with_scipys_nnls():
    x_ND, W_LD = randn64(60, 16, seed=4), rows(48, 16)
    indices_Nk, values_Nk = omp(x_ND, W_LD, 6, signed=False)
    for x_D, found_k, values_k in zip(x_ND, indices_Nk, values_Nk, strict=True):
        chosen, residual_D = [], x_D
        for _ in range(6):
            gain_L = residual_D @ W_LD.T
            gain_L[chosen] = -torch.inf
            chosen.append(int(gain_L.argmax()))
            z_j = reference(x_D, W_LD[chosen])
            residual_D = x_D - z_j @ W_LD[chosen]
        assert found_k.tolist() == chosen
        torch.testing.assert_close(values_k, z_j, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("signed", [True, False])
def test_the_lasso_is_scikit_learns(signed):
    x_ND, W_LD = randn64(8, 15, seed=5), rows(30, 15)
    penalty_N = torch.linspace(0.1, 0.6, 8).double()
    found_NL = lasso(x_ND, W_LD, penalty_N, signed, 5000, 1e-10)
    for x_D, penalty, z_L in zip(x_ND, penalty_N, found_NL, strict=True):
        peer = Lasso(penalty.item() / 15, fit_intercept=False, positive=not signed, tol=1e-12, max_iter=100_000)
        expected_L = peer.fit(np.ascontiguousarray(W_LD.T), x_D.numpy()).coef_
        torch.testing.assert_close(z_L, torch.from_numpy(expected_L), rtol=0, atol=1e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_gradient_pursuit_becomes_least_squares_on_its_support(signed):
    x_ND, W_LD = randn64(40, 20, seed=6), rows(60, 20)
    indices_Nk, values_Nk = pursuit(x_ND, W_LD, 5, signed, steps=500)
    used_Nk = torch.ones_like(indices_Nk, dtype=torch.bool)
    expected_Nk = least_squares(x_ND, W_LD, indices_Nk, signed, used_Nk)
    torch.testing.assert_close(values_Nk, expected_Nk, rtol=1e-4, atol=1e-5)
    greedy = omp(x_ND, W_LD, 5, signed)
    assert indices_Nk.equal(greedy[0])


@pytest.mark.parametrize("signed", [True, False])
def test_one_step_of_gradient_pursuit_never_raises_the_error(signed):
    x_ND, W_LD = randn64(100, 20, seed=8), rows(60, 20)
    errors = []
    for k in range(1, 9):
        indices_Nk, values_Nk = pursuit(x_ND, W_LD, k, signed)
        errors.append((x_ND - (values_Nk[:, None] @ W_LD[indices_Nk])[:, 0]).norm(dim=1))
    assert all((later <= before + 1e-9).all() for before, later in pairwise(errors))
    assert errors[-1].mean() < 0.8 * errors[0].mean()
    with pytest.raises(ValueError, match="steps=0"):
        pursuit(x_ND, W_LD, 2, steps=0)


@pytest.mark.parametrize("signed", [True, False])
def test_coders_find_planted_codes_among_many_directions(signed):
    """Two of 128 directions in 64 dimensions: sparse enough for every search."""
    W_LD, generator = rows(128, 64), torch.Generator().manual_seed(5)
    planted_NL = torch.zeros(50, 128, dtype=torch.float64)
    for z_L in planted_NL:
        z_L[torch.randperm(128, generator=generator)[:2]] = 1 + torch.rand(2, generator=generator).double()
    planted_NL *= torch.randn(50, 128, generator=generator).sign() if signed else 1
    x_ND = (planted_NL @ W_LD).float()
    for coder in ("omp", "fista"):
        z_NL = Linear(64, 128, 2, coder, W_LD.float(), signed=signed).encode(x_ND)
        right_N = ((z_NL - planted_NL).abs() < 1e-3).all(1)
        assert right_N.double().mean() >= 0.96, coder


def test_recoded_keeps_directions_and_sign():
    learned = TopK(12, 30, 3, seed=1)
    with torch.no_grad():
        learned.W_enc_LD.copy_(randn64(30, 12, seed=9))  # a bad encoder of the same directions
    x_ND = randn64(300, 12, seed=10).float()
    best = recoded(learned, "omp")
    assert (best.k, best.signed, best.provenance["recoded"]) == (3, False, "topk")
    torch.testing.assert_close(best.directions, learned.directions)
    torch.testing.assert_close(best.bias, learned.bias)
    assert recoded(learned, "fista", 5).with_k(4).k == 4
    assert fvu(x_ND, best(x_ND)) < fvu(x_ND, recoded(learned, "topk")(x_ND))
    assert fvu(x_ND, best(x_ND)) < fvu(x_ND, learned(x_ND)) - 0.2  # the amortisation gap
