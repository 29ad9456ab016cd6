"""AuxK's error, and the gradients that it finds on the way forward. N vectors, D width, L latents, A dead ones."""

import pytest
import torch

from helpers import randn64
from rayscope.dictionaries.sparse import auxk
from rayscope.dictionaries.sparse.auxk import auxk_error


def dense_error(W_enc, W_dec, dead_A, x_ND, e_ND, auxk, signed):
    dots_NA = (x_ND @ W_enc.T)[:, dead_A]
    size_NA = dots_NA.abs() if signed else dots_NA
    mask_NA = torch.zeros_like(dots_NA).scatter(1, size_NA.topk(min(auxk, len(dead_A))).indices, 1)
    z_NA = (dots_NA if signed else dots_NA.relu()) * mask_NA
    return (e_ND - z_NA @ W_dec[dead_A]).square().sum()


def inputs(N, D, L, dtype=torch.float64):
    weights = randn64(L, D, dtype=dtype), randn64(L, D, seed=3, dtype=dtype)
    return [W.requires_grad_() for W in weights], randn64(N, D, seed=4, dtype=dtype), randn64(N, D, seed=5, dtype=dtype)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("k", [2, 50])  # fewer than the dead, and all
def test_error_and_gradients_equal_dense_autograd(signed, k, monkeypatch):
    monkeypatch.setattr(auxk, "CHUNK", 64 * 6)  # 150 vectors: two whole chunks and a part
    parameters, x_ND, e_ND = inputs(150, 5, 30)
    dead_A = torch.tensor([3, 4, 11, 12, 19, 29])
    found = 0.25 * auxk_error(*parameters, dead_A, x_ND, e_ND, k, signed)
    expected = 0.25 * dense_error(*parameters, dead_A, x_ND, e_ND, k, signed)
    torch.testing.assert_close(found, expected)
    right = torch.autograd.grad(expected, parameters)
    for grad, dense in zip(torch.autograd.grad(found, parameters), right, strict=True):
        torch.testing.assert_close(grad.to_dense(), dense)


def test_a_decoder_that_does_not_learn_is_left_alone():
    parameters, x_ND, e_ND = inputs(10, 5, 30)
    parameters[1].requires_grad_(False)
    auxk_error(*parameters, torch.tensor([1, 2]), x_ND, e_ND, 1, False).backward()
    assert parameters[1].grad is None
    assert parameters[0].grad is not None


def test_bfloat16_products_keep_the_gradient_s_direction(monkeypatch):
    monkeypatch.setattr(auxk, "bfloat16_pays", lambda W_LD: True)  # right on every CPU, if slow on most
    parameters, x_ND, e_ND = inputs(500, 256, 2048, dtype=torch.float32)
    dead_A = torch.arange(0, 2048, 2)
    fast = torch.autograd.grad(auxk_error(*parameters, dead_A, x_ND, e_ND, 100, False), parameters)
    exact = torch.autograd.grad(dense_error(*parameters, dead_A, x_ND, e_ND, 100, False), parameters)
    for grad, dense in zip(fast, exact, strict=True):
        assert torch.cosine_similarity(grad.to_dense().flatten(), dense.flatten(), dim=0) > 0.995
