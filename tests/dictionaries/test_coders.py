"""Coders against reference solvers on the same directions. N vectors, D site width, L directions."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import Lasso
from torch.nn import functional as F

from helpers import randn64
from rayscope.dictionaries import Linear, load
from rayscope.dictionaries.coders import SEARCHES
from rayscope.dictionaries.coders.fista import fista, lasso
from rayscope.dictionaries.coders.omp import omp
from rayscope.dictionaries.coders.pursuit import pursuit
from rayscope.dictionaries.coders.support import least_squares
from rayscope.dictionaries.linear import CODERS


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


def greedy(x_D, W_LD, k, signed):
    """OMP as it is written: (indices, values, how many codes were 0 on the way)."""
    chosen, residual_D, z_j, zeros = [], x_D, x_D[:0], 0
    for _ in range(k):
        gain_L = (residual_D @ W_LD.T).abs() if signed else residual_D @ W_LD.T
        gain_L[chosen] = -torch.inf
        chosen.append(int(gain_L.argmax()))
        rows_jD = W_LD[chosen]
        z_j = torch.linalg.lstsq(rows_jD.T, x_D[:, None]).solution[:, 0] if signed else reference(x_D, rows_jD)
        residual_D = x_D - z_j @ rows_jD
        zeros += int((z_j == 0).any())
    return chosen, z_j, zeros


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_omp_is_the_greedy_loop_with_a_solver_of_scipy_s(signed, gram, monkeypatch):
    """With codes of rays that turn 0 and come back on the way."""
    monkeypatch.setattr(sys.modules[omp.__module__], "GRAM", 2**26 if gram else 0)
    x_ND, W_LD = randn64(60, 16, seed=4) + 1, F.normalize(rows(128, 16) + 0.15)
    indices_Nk, values_Nk = omp(x_ND, W_LD, 9, signed)
    bounded = 0
    for x_D, found_k, values_k in zip(x_ND, indices_Nk, values_Nk, strict=True):
        chosen, z_k, zeros = greedy(x_D, W_LD, 9, signed)
        assert found_k.tolist() == chosen
        torch.testing.assert_close(values_k, z_k, rtol=1e-6, atol=1e-7)
        bounded += zeros > 0
    assert signed or 10 <= bounded <= 50


@pytest.mark.parametrize("signed", [True, False])
def test_omp_in_float32_has_the_codes_of_float64(signed):
    """128 correlated directions: the greatest cosines are about .9."""
    x_ND, W_LD = randn64(300, 24, seed=5) + 1, F.normalize(rows(128, 24) + 0.2)
    exact, single = omp(x_ND, W_LD, 8, signed), omp(x_ND.float(), W_LD.float(), 8, signed)
    same_N = (exact[0] == single[0]).all(1)
    assert same_N.double().mean() > 0.99
    torch.testing.assert_close(single[1][same_N].double(), exact[1][same_N], rtol=1e-4, atol=1e-5)


def test_a_row_taken_twice_has_one_code():
    W_LD = rows(30, 12).float()
    twice_LD = torch.cat([W_LD, W_LD])
    x_ND = randn64(50, 12, seed=6).float()
    for signed in (True, False):
        once, both = omp(x_ND, W_LD, 5, signed), omp(x_ND, twice_LD, 5, signed)
        assert once[0].equal(both[0] % 30)
        torch.testing.assert_close(once[1], both[1])


@pytest.mark.parametrize("coder", ["topk", "omp", "pursuit"])
@pytest.mark.parametrize("signed", [True, False])
def test_a_k_of_each_vector_s_own_is_that_of_all_at_that_k(coder, signed):
    W_LD, x_ND = rows(40, 16).float(), randn64(30, 16, seed=9).float()
    k_N = torch.arange(30) % 6  # 0 to 5
    indices_Nk, values_Nk = SEARCHES[coder](x_ND, W_LD, k_N, signed)
    assert indices_Nk.shape == values_Nk.shape == (30, 5)
    for k in range(1, 6):
        at_N = k_N == k
        indices_Ck, values_Ck = SEARCHES[coder](x_ND[at_N], W_LD, k, signed)
        assert (values_Nk[at_N, k:] == 0).all()
        torch.testing.assert_close(values_Nk[at_N, :k], values_Ck, rtol=1e-4, atol=1e-5)
        used_Ck = values_Ck != 0
        assert indices_Nk[at_N, :k][used_Ck].equal(indices_Ck[used_Ck])
    assert (values_Nk[k_N == 0] == 0).all()


@pytest.mark.parametrize("signed", [True, False])
def test_fista_stops_each_vector_at_its_own_k(signed):
    """Its lassos stop together, so that codes are only nearly those of each k alone."""
    W_LD, x_ND, k_N = rows(40, 16).float(), randn64(60, 16, seed=9).float(), torch.arange(60) % 6
    left = lambda x, i, z: (x - (z[:, None] @ W_LD[i])[:, 0]).norm(dim=1)  # noqa: E731
    indices_Nk, values_Nk = fista(x_ND, W_LD, k_N, signed)
    assert (values_Nk != 0).sum(1).equal(k_N)
    for k in range(1, 6):
        at_N = k_N == k
        alone_C = left(x_ND[at_N], *fista(x_ND[at_N], W_LD, k, signed))
        mixed_C = left(x_ND[at_N], indices_Nk[at_N], values_Nk[at_N])
        assert mixed_C.mean().item() == pytest.approx(alone_C.mean().item(), rel=0.02)


@pytest.mark.parametrize("coder", ["topk", "omp", "pursuit"])
def test_how_vectors_are_cut_into_chunks_changes_no_code(coder, monkeypatch):
    W_LD, x_ND = rows(64, 16).float(), randn64(70, 16, seed=8).float()
    whole = SEARCHES[coder](x_ND, W_LD, 4, False)
    monkeypatch.setattr("rayscope.dictionaries.coders.support.ELEMENTS", (2**11, 2**11))
    cut = SEARCHES[coder](x_ND, W_LD, 4, False)
    assert whole[0].equal(cut[0])
    torch.testing.assert_close(whole[1], cut[1], rtol=1e-5, atol=1e-6)


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
