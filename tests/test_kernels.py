"""The k-sparse step against dense PyTorch. N vectors, D width, L latents, M pairs, A dead latents."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rayscope.dictionaries import kernels
from rayscope.dictionaries.kernels import Plan, choose_by_batch, choose_by_vector, gather_dot, largest, sparse_decode


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7919 + seed), dtype=dtype)


def ragged_plan(latents=7):
    """Five vectors with 2, 0, 3, 1 and 2 pairs; latent 6 unused, latent 1 used three times."""
    return Plan(torch.tensor([1, 4, 0, 1, 5, 3, 2, 1]), torch.tensor([0, 2, 2, 5, 6, 8]), latents)


def test_gather_dot_passes_gradcheck():
    x_ND, plan = randn(5, 3), ragged_plan()
    inputs = [randn(7, 3, seed=1), randn(7, seed=2), randn(3, seed=3)]
    assert torch.autograd.gradcheck(
        lambda W, b, c: gather_dot(x_ND, W, b, c, plan), [t.requires_grad_() for t in inputs]
    )


def test_sparse_decode_passes_gradcheck():
    plan = ragged_plan()
    inputs = [randn(8, seed=1).requires_grad_(), randn(7, 3, seed=2).requires_grad_()]
    assert torch.autograd.gradcheck(lambda values, W: sparse_decode(values, W, plan), inputs)


def test_values_and_decode_equal_the_dense_ones():
    x_ND, W_LD, b_L, c_D, plan = randn(5, 3), randn(7, 3, seed=1), randn(7, seed=2), randn(3, seed=3), ragged_plan()
    pre_NL = (x_ND - c_D) @ W_LD.T + b_L
    values_M = gather_dot(x_ND, W_LD, b_L, c_D, plan)
    torch.testing.assert_close(values_M, pre_NL[plan.rows_M, plan.indices_M])
    z_NL = torch.zeros(5, 7, dtype=torch.float64).index_put((plan.rows_M, plan.indices_M), values_M)
    torch.testing.assert_close(sparse_decode(values_M, W_LD, plan), z_NL @ W_LD)


def test_no_pairs_at_all():
    plan = Plan(torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 7)
    W_LD, b_L, c_D = (t.requires_grad_() for t in (randn(7, 3), randn(7), randn(3)))
    x_hat_ND = sparse_decode(gather_dot(randn(3, 3), W_LD, b_L, c_D, plan), W_LD, plan)
    x_hat_ND.sum().backward()
    assert x_hat_ND.shape == (3, 3)
    assert all((t.grad == 0).all() for t in (W_LD, b_L, c_D))


def test_x_that_asks_for_a_gradient_is_refused():
    with pytest.raises(ValueError, match="detach"):
        gather_dot(randn(5, 3).requires_grad_(), randn(7, 3), randn(7), randn(3), ragged_plan())


@pytest.mark.parametrize("signed", [False, True])
def test_choice_by_vector_is_topk_of_the_dense_matrix(signed, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 8)  # 21 vectors: two whole chunks and a part
    x_ND, W_LD, b_L = randn(21, 6), randn(30, 6, seed=1), randn(30, seed=2)
    dead_A = torch.tensor([3, 4, 11, 12, 19, 29])
    plan, dead_plan = choose_by_vector(x_ND, W_LD, b_L, 4, signed, dead_A, 2)
    pre_NL = x_ND @ W_LD.T + b_L
    size_NL = pre_NL.abs() if signed else pre_NL
    assert plan.indices_M.view(21, 4).sort().values.equal(size_NL.topk(4).indices.sort().values)
    expected = dead_A[size_NL[:, dead_A].topk(2).indices].sort().values
    assert dead_plan.indices_M.view(21, 2).sort().values.equal(expected)
    _, all_dead = choose_by_vector(x_ND, W_LD, b_L, 4, signed, dead_A, 50)
    assert all_dead.indices_M.view(21, 6).equal(dead_A.expand(21, 6))
    assert choose_by_vector(x_ND, W_LD, b_L, 4, signed, dead_A[:0], 50)[1] is None


@pytest.mark.parametrize("hint", [0.0, 0.5, 100.0])
def test_choice_by_batch_is_topk_of_the_flattened_matrix(hint, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 8)
    x_ND, W_LD, b_L = randn(21, 6), randn(30, 6, seed=1), randn(30, seed=2)
    plan, dead_plan = choose_by_batch(x_ND, W_LD, b_L, 21 * 3, hint, torch.tensor([1, 2, 3]), 2)
    pre_NL = x_ND @ W_LD.T + b_L
    expected = pre_NL.flatten().topk(63).indices.sort().values
    assert (plan.rows_M * 30 + plan.indices_M).equal(expected)
    assert len(dead_plan) == 21 * 2  # once each, although a hint that is too high reads the batch twice
    positions, values = largest(x_ND, W_LD, b_L, 10**6, hint)
    assert len(positions) == (pre_NL > 0).sum()
    torch.testing.assert_close(values, pre_NL.flatten()[positions])


@pytest.mark.skipif(not kernels.bfloat16_pays(torch.zeros(2048, 256)), reason="no bfloat16 products on this CPU")
def test_choice_in_bfloat16_is_nearly_the_exact_one():
    x_ND, W_LD, b_L = (randn(*s, seed=i, dtype=torch.float32) for i, s in enumerate([(600, 256), (2048, 256), (2048,)]))
    none = torch.zeros(0, dtype=torch.int64)
    fast, _ = choose_by_vector(x_ND, W_LD, b_L, 8, False, none, 0)
    exact, _ = choose_by_vector(x_ND, W_LD, b_L, 8, False, none, 0, exact=True)
    pre_NL = x_ND @ W_LD.T + b_L
    assert exact.indices_M.view(-1, 8).sort().values.equal(pre_NL.topk(8).indices.sort().values)
    fast_sum, exact_sum = (pre_NL.gather(1, plan.indices_M.view(-1, 8)).sum() for plan in (fast, exact))
    assert fast_sum > 0.999 * exact_sum


def test_a_step_repeats_bitwise():
    x_ND = randn(1500, 64, dtype=torch.float32)
    parameters = [
        nn.Parameter(randn(*s, seed=i, dtype=torch.float32)) for i, s in enumerate([(512, 64), (512,), (64,)])
    ]
    runs = []
    for _ in range(3):
        W_LD, b_L, c_D = parameters
        plan, _ = choose_by_vector(x_ND - c_D.detach(), W_LD, b_L, 8, False, torch.zeros(0, dtype=torch.int64), 0)
        x_hat_ND = sparse_decode(F.relu(gather_dot(x_ND, W_LD, b_L, c_D, plan)), W_LD, plan)
        runs.append(torch.autograd.grad((x_ND - x_hat_ND).square().sum(), parameters))
        torch.randn(1000, 1000) @ torch.randn(1000, 100)  # other work between
    assert all(a.equal(b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
