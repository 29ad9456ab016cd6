"""Baselines against their definitions. N vectors, D site width, L latents, V vocabulary."""

import pytest
import torch

from rayscope.baselines import Moments, TokenSums, neuron_basis, pca, random_rows, svd, token_means


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(6_700_417 + seed))


def stretched(N=500, D=12):
    """Correlated, with well-separated variances and a mean that dwarfs them."""
    return randn(N, D) * torch.linspace(3, 0.3, D) @ torch.linalg.qr(randn(D, D, seed=1)).Q + 1000


def moments_of(x_ND, *sizes):
    moments = Moments()
    for part in x_ND.split(list(sizes) or [len(x_ND)]):
        moments.update(part)
    return moments


def test_moments_equal_torch_and_do_not_depend_on_the_batches():
    x_ND = stretched()
    for moments in (moments_of(x_ND), moments_of(x_ND, 1, 7, 192, 300)):
        assert moments.count == 500
        torch.testing.assert_close(moments.mean_D, x_ND.double().mean(0))
        torch.testing.assert_close(moments.covariance_DD, torch.cov(x_ND.double().T, correction=0))
    with pytest.raises(ValueError, match="at least one"):
        _ = Moments().mean_D


def test_pca_equals_svd_of_the_centred_matrix():
    x_ND = stretched()
    dictionary = pca(moments_of(x_ND, 250, 250), 4, "prefix")
    centred_ND = x_ND.double() - x_ND.double().mean(0)
    U, S, right_DD = torch.linalg.svd(centred_ND, full_matrices=False)
    cosine_DD = dictionary.directions.double() @ right_DD.T
    torch.testing.assert_close(cosine_DD.abs(), torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-5)
    best_ND = (U[:, :4] * S[:4]) @ right_DD[:4] + x_ND.double().mean(0)
    torch.testing.assert_close(dictionary(x_ND).double(), best_ND, rtol=0, atol=2e-3)
    assert (dictionary.encode(x_ND)[:, 4:] == 0).all()
    assert (dictionary.directions.gather(1, dictionary.directions.abs().argmax(1, keepdim=True)) > 0).all()


def test_pca_topk_keeps_the_largest_coefficients():
    x_ND = stretched()
    dictionary = pca(moments_of(x_ND), 3, "topk")
    full_ND = (x_ND - dictionary.bias) @ dictionary.directions.T
    z_NL = dictionary.encode(x_ND)
    kept = z_NL != 0
    assert (kept.sum(1) == 3).all()
    torch.testing.assert_close(z_NL[kept], full_ND[kept])
    assert (full_ND.abs().masked_fill(kept, 0).amax(1) <= full_ND.abs().masked_fill(~kept, torch.inf).amin(1)).all()


def test_svd_takes_the_side_of_the_width():
    W, mean_D = randn(6, 20), torch.ones(6)
    left, _, right = torch.linalg.svd(W, full_matrices=False)
    read, write = svd(W, 6, 2, mean_D), svd(W, 20, 2, torch.ones(20))
    torch.testing.assert_close((read.directions @ left).abs(), torch.eye(6), rtol=0, atol=1e-5)
    torch.testing.assert_close((write.directions @ right.T).abs(), torch.eye(6), rtol=0, atol=1e-5)
    assert svd(W, 7, 2, mean_D) is None
    assert read.bias.equal(mean_D)
    with pytest.raises(ValueError, match="k=7 exceeds the 6 latents"):
        svd(W, 20, 7, torch.ones(20))


def test_svd_of_a_square_matrix_by_side():
    W, mean_D = randn(6, 6), torch.zeros(6)
    left, _, right = torch.linalg.svd(W)
    for side, columns in (("read", left), ("write", right.T)):
        directions_LD = svd(W, 6, 2, mean_D, side).directions
        torch.testing.assert_close((directions_LD @ columns).abs(), torch.eye(6), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="side='up'"):
        svd(W, 6, 2, mean_D, "up")


def test_neuron_basis_keeps_the_coordinates_farthest_from_their_mean():
    dictionary = neuron_basis(3, 1, torch.tensor([1.0, 0.0, 0.0]))
    assert dictionary.encode(torch.tensor([[2.0, 0.0, -3.0], [-4.0, 1.0, 2.0]])).tolist() == [[0, 0, -3], [-5, 0, 0]]
    assert dictionary(torch.tensor([[2.0, 0.0, -3.0]])).tolist() == [[1.0, 0.0, -3.0]]


def test_random_rows_are_a_function_of_the_seed():
    first, same, other = (random_rows(8, 30, 2, seed, torch.zeros(8)) for seed in (1, 1, 2))
    assert first.directions.equal(same.directions)
    assert not first.directions.equal(other.directions)
    assert first.coder == "omp"


def test_token_means():
    tokens_N = torch.tensor([5, 5, 2, 5, 2, 9, 9, 9, 9, 7])
    x_ND = randn(10, 4) + 3
    sums = TokenSums(12, 4)
    for part in (slice(0, 3), slice(3, 10)):
        sums.update(tokens_N[part], x_ND[part])
    dictionary = token_means(sums, latents=3, k=2, min_count=2)
    assert dictionary.provenance["token_ids"] == [9, 5, 2]
    torch.testing.assert_close(dictionary.bias, x_ND.mean(0))
    for latent, token in enumerate([9, 5, 2]):
        away_D = x_ND[tokens_N == token].mean(0) - x_ND.mean(0)
        torch.testing.assert_close(dictionary.directions[latent], away_D / away_D.norm())
    assert token_means(sums, latents=100, k=2, min_count=3).latents == 2  # 9 and 5
    with pytest.raises(ValueError, match="2 latents, below k=3"):
        token_means(sums, latents=100, k=3, min_count=3)
