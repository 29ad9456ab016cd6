"""Baselines against their definitions. N vectors, D site width, L latents, V vocabulary."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rayscope.baselines import SiteFit, neuron_basis, pca, random_rows, split, svd, token_means
from rayscope.baselines.factors import nmf, semi_nmf, semi_nmf_fit
from rayscope.baselines.independent import ica
from rayscope.baselines.kmeans import kmeans
from rayscope.baselines.ksvd import ksvd, sweep
from rayscope.baselines.pca import transform
from rayscope.dictionaries import AbsTopK, BatchTopK, BottleneckTopK, Linear, TokenBiasTopK, TopK, load
from rayscope.evaluation.comparison import BUDGET_BITS, Baseline, baselines_at_equal_bits, headline_budget, plain_rays
from rayscope.evaluation.matching import nearest
from rayscope.evaluation.metrics import fvu
from rayscope.model.sites import Site
from rayscope.streams.statistics import Moments, Sample, TokenSums
from toys import mcc


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


def test_svd_of_a_square_matrix_is_of_the_side_that_reads():
    W = randn(6, 6)
    left, _, _ = torch.linalg.svd(W)
    directions_LD = svd(W, 6, 2, torch.zeros(6)).directions
    torch.testing.assert_close((directions_LD @ left).abs(), torch.eye(6), rtol=0, atol=1e-5)


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


def sparse_world(N, latents, D, k, signed, seed=0):
    """(x_ND, W_LD): k of L random directions each, codes of 1 to 2, with a mean of 3."""
    generator = torch.Generator().manual_seed(seed)
    W_LD = F.normalize(randn(latents, D, seed=seed + 50))
    z_NL = torch.zeros(N, latents)
    chosen_Nk = torch.rand(N, latents, generator=generator).topk(k).indices
    values_Nk = 1 + torch.rand(N, k, generator=generator)
    if signed:
        values_Nk *= torch.rand(N, k, generator=generator).sub(0.5).sign()
    return z_NL.scatter(1, chosen_Nk, values_Nk) @ W_LD + 3, W_LD


def test_sample_is_uniform_and_a_function_of_the_seed_alone():
    x_ND = torch.arange(1000.0)[:, None].expand(-1, 2)
    whole, parts, other = Sample(50, 4), Sample(50, 4), Sample(50, 5)
    whole.update(x_ND)
    other.update(x_ND)
    for part_ND in x_ND.split([1, 30, 49, 420, 500]):
        parts.update(part_ND)
    assert whole.vectors_SD.equal(parts.vectors_SD)
    assert not whole.vectors_SD.equal(other.vectors_SD)
    assert len(set(whole.vectors_SD[:, 0].tolist())) == 50
    kept = torch.zeros(100)
    for seed in range(400):
        sample = Sample(20, seed)
        sample.update(x_ND[:100])
        kept[sample.vectors_SD[:, 0].long()] += 1
    assert (kept - 80).abs().max() < 5 * (400 * 0.2 * 0.8) ** 0.5  # each is kept with probability 1/5
    few = Sample(50)
    few.update(x_ND[:7])
    assert few.vectors_SD.equal(x_ND[:7])


def test_split_is_both_ends_as_rays():
    lines = pca(moments_of(stretched()), 3, "topk")
    rays = split(lines)
    x_ND = stretched()
    assert (rays.latents, rays.signed) == (24, False)
    torch.testing.assert_close(rays(x_ND), lines(x_ND), rtol=0, atol=1e-3)  # the same k projections
    z_NL = rays.encode(x_ND)
    torch.testing.assert_close(z_NL[:, :12] - z_NL[:, 12:], lines.encode(x_ND))
    assert (z_NL >= 0).all()
    with pytest.raises(ValueError, match="prefix"):
        split(pca(moments_of(stretched()), 3, "prefix"))


def test_ica_finds_the_directions_of_independent_sources():
    generator = torch.Generator().manual_seed(2)
    sources_NR = torch.empty(8000, 6).exponential_(generator=generator) * randn(8000, 6).sign()
    A_RD = randn(6, 9, seed=3)
    found = ica(sources_NR @ A_RD + 5, 9, 2)
    assert found.latents == 6  # no more have variance
    assert found.provenance["converged"]
    assert mcc(A_RD, found.directions, signed=True) > 0.95
    assert mcc(A_RD, pca(moments_of(sources_NR @ A_RD), 2, "topk").directions, signed=True) < 0.9
    assert not ica(sources_NR @ A_RD, 6, 2, iterations=1).provenance["converged"]


def test_ica_does_not_need_the_svd_at_scikit_learns_end(monkeypatch):
    """In float32 it did not converge on 20,000 activations of 1024 neurons, with one seed of three."""
    x_ND = randn(400, 6, seed=3) ** 3
    found = ica(x_ND, 6, 2)

    def does_not_converge(*_, **__):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr("sklearn.decomposition._fastica.linalg.pinv", does_not_converge)
    again = ica(x_ND, 6, 2)
    assert torch.equal(again.directions, found.directions)
    assert again.provenance == found.provenance


@pytest.mark.slow
def test_ksvd_finds_a_planted_dictionary():
    x_ND, W_LD = sparse_world(4000, 24, 16, 2, signed=True)
    found = ksvd(x_ND, 24, 2, seed=1, sweeps=30)
    assert mcc(W_LD, found.directions, signed=True) > 0.95
    assert fvu(x_ND, found(x_ND)) < 0.5 * fvu(x_ND, ksvd(x_ND, 24, 2, seed=1, sweeps=1)(x_ND))


def test_a_sweep_of_ksvd_is_rank_one_least_squares_and_replaces_what_is_unused():
    """At k = 1 a direction becomes the first singular vector of its users, up to one power step;
    an unused one the worst.
    """
    X_SD = torch.tensor([[2.0, 0.1, 0.0], [1.0, 0.2, 0.0], [0.0, 0.0, 3.0], [0.0, 2.0, 2.0]])
    W_LD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [-0.6, 0.0, -0.8]])
    new_LD = sweep(X_SD, W_LD, 1)
    torch.testing.assert_close(new_LD[0], F.normalize(torch.tensor([5.0, 0.4, 0.0]), dim=0))  # 2 x_0 + 1 x_1
    torch.testing.assert_close(new_LD[1], F.normalize(torch.tensor([0.0, 4.0, 13.0]), dim=0))  # 3 x_2 + 2 x_3
    torch.testing.assert_close(new_LD[2], F.normalize(X_SD[3], dim=0))  # what is left of it is the most


@pytest.mark.slow
def test_semi_nmf_never_raises_its_loss_and_finds_nonnegative_sums():
    generator = torch.Generator().manual_seed(3)
    Z_NL = torch.rand(1500, 5, generator=generator) * (torch.rand(1500, 5, generator=generator) < 0.4)
    W_LD = randn(5, 12, seed=8)
    x_ND = Z_NL @ W_LD
    for X_ND in (x_ND, x_ND - x_ND.mean(0)):
        _, losses = semi_nmf_fit(X_ND, 5, 0, 100)
        assert all(later <= before + 1e-6 for before, later in pairwise(losses))
        assert losses[-1] < 0.6 * losses[0]
    found_LD, losses = semi_nmf_fit(x_ND, 5, 0, 2000)
    assert losses[-1] < 0.01
    assert nearest(W_LD, F.normalize(found_LD.float()), signed=False)[1].mean() > 0.9
    found = semi_nmf(x_ND, 5, 5)
    assert not found.signed
    assert found.bias.equal(x_ND.double().mean(0).float())
    with pytest.raises(ValueError, match="latents=13"):
        semi_nmf(x_ND, 13, 5)


def test_nmf_finds_parts_and_leaves_negative_sites():
    generator = torch.Generator().manual_seed(4)
    parts_LD = torch.zeros(6, 20)
    for latent in range(6):
        parts_LD[latent, 3 * latent : 3 * latent + 4] = 1 + torch.rand(4, generator=generator)
    Z_NL = torch.rand(3000, 6, generator=generator) * (torch.rand(3000, 6, generator=generator) < 0.3)
    x_ND = Z_NL @ parts_LD
    found = nmf(x_ND, 6, 2, iterations=200)
    assert mcc(parts_LD, found.directions) > 0.95
    assert (found.directions >= 0).all()
    assert found.bias.equal(torch.zeros(20))
    assert nmf(x_ND - 0.02, 6, 2) is not None  # a GELU's few negative entries
    assert nmf(x_ND - x_ND.mean(0), 6, 2) is None


@pytest.mark.slow
def test_kmeans_is_scikit_learns_on_separate_clusters_and_its_code_is_the_nearest_ray():
    centres_LD = torch.tensor([[10.0, 0.0], [-10.0, 2.0], [0.0, 10.0]])
    x_ND = centres_LD.repeat_interleave(200, 0) + 0.1 * randn(600, 2)
    found = kmeans(x_ND, 3)
    centroids_LD = torch.stack([part.mean(0) for part in x_ND.split(200)])
    away_LD = F.normalize(centroids_LD - x_ND.mean(0))
    assert (nearest(away_LD, found.directions, signed=False)[1] > 0.9999).all()
    assert (found.k, found.signed) == (1, False)
    nearest_N = torch.cdist(x_ND, centroids_LD).amin(1)
    error_N = (found(x_ND) - x_ND).norm(dim=1)
    assert error_N.square().mean() < nearest_N.square().mean()  # a length of each vector's own
    codes = found.encode_sparse(x_ND)
    assert codes.offsets.diff().equal(torch.ones(600, dtype=torch.int64))


FITS = {
    "pca_split": lambda x_ND: split(pca(moments_of(x_ND), 2, "topk")),
    "pca_transform": lambda x_ND: transform(moments_of(x_ND)).at_bits(9),
    "ica": lambda x_ND: ica(x_ND, 8, 2, seed=3, iterations=20),
    "semi_nmf": lambda x_ND: semi_nmf(x_ND, 5, 2, seed=3, iterations=5),
    "nmf": lambda x_ND: nmf(x_ND.relu(), 5, 2, seed=3, iterations=5),
    "kmeans": lambda x_ND: kmeans(x_ND, 9, seed=3),
    "ksvd": lambda x_ND: ksvd(x_ND, 20, 2, seed=3, sweeps=2),
}


@pytest.mark.parametrize("name", FITS)
def test_fits_repeat_themselves_and_are_saved(name, tmp_path):
    x_ND, _ = sparse_world(600, 20, 10, 2, signed=False)
    first, again = FITS[name](x_ND), FITS[name](x_ND)
    assert first.directions.equal(again.directions)
    loaded = load(first.save(tmp_path / name))
    assert loaded(x_ND).equal(first(x_ND))
    assert loaded.provenance == first.provenance
    assert loaded.signed == first.signed


NOTHING = SiteFit(Site("planted", 6, 0), Moments(), TokenSums(1, 6), {})


class Fixed:
    """What a method of at most two codes is listed as."""

    def __init__(self, dictionary):
        self.dictionary = dictionary

    def __call__(self, _):
        return self.dictionary


def test_a_method_of_few_codes_is_measured_once_at_its_own_bits():
    codebook = Linear(6, 12, 1, "topk", randn(12, 6), signed=False)
    null = Linear(6, 12, 1, "topk", randn(12, 6), signed=False)
    null.provenance["role"] = "control"
    rays = [Linear(6, 12, k, "topk", randn(12, 6), signed=False) for k in (1, 2, 4)]
    listed = [Baseline("two", Fixed(codebook), max_k=2), Baseline("free", Fixed(null))]
    found = baselines_at_equal_bits(NOTHING, listed, rays, 2, {"tokens": 100})
    assert [entry.name for entry in found] == ["two_k1", "two_k2", "free_k1", "free_k2", "free_k4"]
    assert [(entry.method, entry.role) for entry in found[1:3]] == [("two", "baseline"), ("free", "control")]
    assert [entry.k for entry in found] == [entry.dictionary.k for entry in found] == [1, 2, 1, 2, 4]
    assert found[0].dictionary.bits() == pytest.approx(math.log2(12) + 8)
    with pytest.raises(ValueError, match="max_k=0"):
        Baseline("none", Fixed(codebook), max_k=0)


def test_budgets_are_those_of_rays_with_nothing_beside_them():
    """At one k a dense part costs bits of its own, and a lookup of tokens none:
    neither is what others are measured at.
    """
    topk, dense = TopK(16, 64, 4), BottleneckTopK(16, 64, 4, rank=8)
    told = TokenBiasTopK(16, 64, 4, vocabulary=5)
    signed, adaptive = AbsTopK(16, 64, 4), BatchTopK(16, 64, 4)
    assert plain_rays([dense, topk, told, signed, adaptive]) == [topk]
    assert plain_rays([signed, dense]) == [signed, dense]  # nothing plainer
    assert headline_budget([dense, topk], 4) == topk.bits(value_bits=BUDGET_BITS) < dense.bits(value_bits=BUDGET_BITS)


def test_rays_of_one_k_and_two_widths_are_two_budgets():
    """4 + log2 16 and 4 + log2 2^14 bits: a signed baseline of 16 latents, with 9 bits for one code, 16.9 for two and
    24.1 for three, needs 1 and 3 for them.
    """
    rays = [Linear(6, L, 1, "topk", randn(L, 6), signed=False) for L in (16, 2**14)]
    listed = [Baseline("pca", Fixed(Linear(6, 16, 1, "topk", randn(16, 6), signed=True)), budgets="headline")]
    assert [entry.k for entry in baselines_at_equal_bits(NOTHING, listed, rays, 1, {"tokens": 100})] == [1, 3]


def test_a_transform_code_is_measured_at_the_bits_of_rays_with_2_4_and_8_bits_for_each_value():
    """Rays of log2 16 + b and log2 C(16, 2) + 2 b bits: 6, 8 and 12, and 10.9, 14.9 and 22.9, rounded up."""
    moments = moments_of(randn(500, 6) * torch.logspace(1, -1, 6))
    rays = [Linear(6, 16, k, "topk", randn(16, 6), signed=False) for k in (1, 2)]
    listed = [Baseline("pca_transform", lambda _: transform(moments), family="PCA")]
    entries = baselines_at_equal_bits(NOTHING, listed, rays, 1, {"tokens": 100})
    assert [entry.dictionary.bits() for entry in entries] == [6, 8, 11, 12, 15, 23]
    assert entries[0].name == f"pca_transform_k{entries[0].k}_6bits"
    assert {entry.dictionary.provenance["tokens"] for entry in entries} == {100}
