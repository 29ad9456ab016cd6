"""The k-sparse step against dense PyTorch. N vectors, D width, L latents, M pairs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import randn64
from rayscope.dictionaries.sparse import native
from rayscope.dictionaries.sparse.kernels import SparsePattern, gather_dot, sparse_decode
from rayscope.dictionaries.sparse.selection import choose_by_vector


def ragged_plan(latents=7):
    """Five vectors with 2, 0, 3, 1 and 2 pairs; latent 6 unused, latent 1 used three times."""
    return SparsePattern(torch.tensor([1, 4, 0, 1, 5, 3, 2, 1]), torch.tensor([0, 2, 2, 5, 6, 8]), latents)


def test_gather_dot_passes_gradcheck():
    x_ND, pattern = randn64(5, 3), ragged_plan()
    inputs = [randn64(7, 3, seed=1), randn64(7, seed=2), randn64(3, seed=3)]
    assert torch.autograd.gradcheck(
        lambda W, b, c: gather_dot(x_ND, W, b, c, pattern), [t.requires_grad_() for t in inputs]
    )


def test_sparse_decode_passes_gradcheck():
    pattern = ragged_plan()
    inputs = [randn64(8, seed=1).requires_grad_(), randn64(7, 3, seed=2).requires_grad_()]
    assert torch.autograd.gradcheck(lambda values, W: sparse_decode(values, W, pattern), inputs)


def test_values_and_decode_equal_the_dense_ones():
    x_ND, W_LD, b_L, c_D, pattern = (
        randn64(5, 3),
        randn64(7, 3, seed=1),
        randn64(7, seed=2),
        randn64(3, seed=3),
        ragged_plan(),
    )
    pre_NL = (x_ND - c_D) @ W_LD.T + b_L
    values_M = gather_dot(x_ND, W_LD, b_L, c_D, pattern)
    torch.testing.assert_close(values_M, pre_NL[pattern.rows_M, pattern.indices_M])
    z_NL = torch.zeros(5, 7, dtype=torch.float64).index_put((pattern.rows_M, pattern.indices_M), values_M)
    torch.testing.assert_close(sparse_decode(values_M, W_LD, pattern), z_NL @ W_LD)


def test_no_pairs_at_all():
    pattern = SparsePattern(torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 7)
    W_LD, b_L, c_D = (t.requires_grad_() for t in (randn64(7, 3), randn64(7), randn64(3)))
    x_hat_ND = sparse_decode(gather_dot(randn64(3, 3), W_LD, b_L, c_D, pattern), W_LD, pattern)
    x_hat_ND.sum().backward()
    assert x_hat_ND.shape == (3, 3)
    assert all((t.grad == 0).all() for t in (W_LD, b_L, c_D))


def test_x_that_asks_for_a_gradient_is_refused():
    with pytest.raises(ValueError, match="detach"):
        gather_dot(randn64(5, 3).requires_grad_(), randn64(7, 3), randn64(7), randn64(3), ragged_plan())


def test_pairs_in_float32_are_those_of_pytorch(monkeypatch):
    """130 numbers a row: two whole pieces of 64 and a part."""
    x_ND, W_LD, pattern = (
        randn64(5, 130, dtype=torch.float32),
        randn64(7, 130, seed=1, dtype=torch.float32),
        ragged_plan(),
    )
    expected_M = (x_ND[pattern.rows_M].double() * W_LD[pattern.indices_M].double()).sum(1).float()
    torch.testing.assert_close(pattern.dots(x_ND, W_LD), expected_M)
    monkeypatch.setattr(native, "library", lambda: None)
    torch.testing.assert_close(pattern.dots(x_ND, W_LD), expected_M)


def test_a_step_repeats_bitwise():
    x_ND = randn64(1500, 128, dtype=torch.float32)
    shapes = [(2048, 128), (2048,), (128,)]  # enough weights to choose in bfloat16, where that pays
    parameters = [nn.Parameter(randn64(*shape, seed=i, dtype=torch.float32)) for i, shape in enumerate(shapes)]
    runs = []
    for _ in range(3):
        W_LD, b_L, c_D = parameters
        pattern = choose_by_vector(x_ND - c_D.detach(), W_LD, b_L, 8, False)
        x_hat_ND = sparse_decode(F.relu(gather_dot(x_ND, W_LD, b_L, c_D, pattern)), W_LD, pattern)
        runs.append(torch.autograd.grad((x_ND - x_hat_ND).square().sum(), parameters))
        torch.randn(1000, 1000) @ torch.randn(1000, 100)  # other work between
    assert all(a.equal(b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
