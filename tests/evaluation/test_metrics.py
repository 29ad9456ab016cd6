import math

import numpy as np
import pytest
import torch

from rayscope.dictionaries.code_length import bits, bits_entropy, entropy, k_of_bits
from rayscope.evaluation import metrics
from rayscope.evaluation.metrics import (
    ErrorSums,
    VarianceSums,
    bootstrap_weights,
    errors,
    fvu,
    interval,
    loss_recovered,
    ratio_of_sums,
)


def some(seed: int = 0, vectors: int = 200, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(vectors, width, generator=generator) + 3
    return x_ND, x_ND + 0.3 * torch.randn(vectors, width, generator=generator)


def test_fvu_by_hand():
    """Mean (1, 2); variance 5 + 5; errors 1 + 1."""
    assert fvu(torch.tensor([[2.0, 0], [0, 4]]), torch.tensor([[2.0, 1], [0, 3]])) == pytest.approx(0.2, abs=1e-15)


def test_fvu_of_the_mean_is_1_and_of_the_identity_0():
    x_ND, _ = some()
    assert fvu(x_ND, x_ND.double().mean(0).expand_as(x_ND)) == pytest.approx(1, abs=1e-12)
    assert fvu(x_ND, x_ND) == 0
    assert fvu(x_ND, torch.zeros_like(x_ND)) > 5  # not measured against zero


def test_fvu_is_one_ratio_of_sums_over_all_coordinates():
    x_ND, x_hat_ND = (t.double() * torch.tensor([10.0, 1, 1, 1, 1, 1, 0.1]) for t in some())
    expected = (x_ND - x_hat_ND).square().sum() / (x_ND - x_ND.mean(0)).square().sum()
    assert fvu(x_ND, x_hat_ND) == pytest.approx(expected.item(), rel=1e-12)


def test_fvu_ignores_scale_and_offset_and_how_vectors_are_cut_into_batches():
    x_ND, x_hat_ND = (t.double() for t in some())
    value = fvu(x_ND, x_hat_ND)
    assert fvu(-17 * x_ND, -17 * x_hat_ND) == pytest.approx(value, rel=1e-12)
    assert fvu(x_ND + 5, x_hat_ND + 5) == pytest.approx(value, rel=1e-12)
    documents_N = torch.arange(200) % 3
    for size in (1, 33, 200):
        spread = VarianceSums(7, 3)
        sums = ErrorSums(spread)
        for part in torch.arange(200).split(size):
            spread.update(x_ND[part], documents_N[part])
            sums.update(*errors(x_ND[part], x_hat_ND[part]), documents_N[part])
        assert sums.fvu(torch.ones(1, 3, dtype=torch.float64)).item() == pytest.approx(value, rel=1e-10)


def test_a_large_offset_costs_no_digits():
    x_ND, x_hat_ND = (t.double() for t in some())
    value = fvu(x_ND, x_hat_ND)
    assert fvu(x_ND + 1e6, x_hat_ND + 1e6) == pytest.approx(value, rel=1e-6)
    x_ND, x_hat_ND = (x_ND + 1e6).float(), (x_hat_ND + 1e6).float()  # as activations come
    exact = (x_ND.double() - x_hat_ND.double()).square().sum() / (x_ND.double() - x_ND.double().mean(0)).square().sum()
    assert fvu(x_ND, x_hat_ND) == pytest.approx(exact.item(), rel=1e-9)


def test_document_weights_repeat_documents():
    """Weights (2, 0, 1): document 0 twice and document 1 absent; fvu's mean stays that of the whole sample."""
    x_ND, x_hat_ND = some()
    documents_N = torch.arange(200) % 3
    spread = VarianceSums(7, 3)
    spread.update(x_ND, documents_N)
    sums = ErrorSums(spread)
    sums.update(*errors(x_ND, x_hat_ND), documents_N)
    drawn = torch.cat([(documents_N == d).nonzero()[:, 0] for d in (0, 0, 2)])
    weights_BG = torch.tensor([[2.0, 0, 1], [1, 1, 1]], dtype=torch.float64)
    error, spread = (x_ND - x_hat_ND)[drawn].square().sum(), (x_ND - x_ND.mean(0))[drawn].square().sum()
    expected = [float(error / spread), fvu(x_ND, x_hat_ND)]
    torch.testing.assert_close(sums.fvu(weights_BG), torch.tensor(expected, dtype=torch.float64))
    ratio_N = x_hat_ND.double().norm(dim=1) / x_ND.double().norm(dim=1)
    expected_ratio = torch.stack([ratio_N[drawn].mean(), ratio_N.mean()])
    torch.testing.assert_close(sums.l2_ratio(weights_BG), expected_ratio)


def test_bits_by_hand():
    assert bits(5, 2, signed=False) == pytest.approx(math.log2(10) + 16)
    assert bits(5, 2, signed=True) == pytest.approx(math.log2(10) + 18)
    assert bits(5, 2, signed=True, fixed_support=True) == pytest.approx(18)
    assert bits(5, 5, signed=False) == pytest.approx(40)
    assert bits(5, 0, signed=False) == pytest.approx(0)
    several = bits(5, torch.tensor([0.0, 2, 5]), signed=False)
    torch.testing.assert_close(several, torch.tensor([0, math.log2(10) + 16, 40], dtype=torch.float64))


def test_bits_of_values_by_hand():
    """Three bits a value and one for a sign; latents that are always on are signed."""
    assert bits(5, 2, signed=False, value_bits=3) == pytest.approx(math.log2(10) + 6)
    assert bits(5, 2, signed=True, value_bits=3) == pytest.approx(math.log2(10) + 8)
    assert bits(5, 2, signed=False, dense=2, value_bits=3) == pytest.approx(math.log2(3) + 6 + 8)
    assert k_of_bits(math.log2(10) + 6, 5, signed=False, value_bits=3) == 2
    _, indices_M, offsets = supports(2)
    none, active = bits_entropy(indices_M, offsets, torch.tensor([0.5, 0.5]), signed=True, value_bits=3)[[0, 3]]
    assert active - none == pytest.approx(2 * 4)


def test_entropy_by_hand():
    assert entropy(torch.tensor([0, 2, 1, 0, 1])) == pytest.approx(1.5)
    assert entropy(torch.tensor([7])) == 0


def test_bits_of_latents_that_are_always_on():
    """Five latents, the last two always on: one of C(3, 2) supports, two values, and nine bits for each of the two."""
    assert bits(5, 2, signed=False, dense=2) == pytest.approx(math.log2(3) + 16 + 18)
    assert bits(5, 2, signed=True, fixed_support=True, dense=2) == pytest.approx(18 + 18)
    assert bits(5, 3, signed=False, dense=2) == pytest.approx(24 + 18)
    assert k_of_bits(math.log2(3) + 34, 5, signed=False, dense=2) == 2
    assert k_of_bits(1e9, 5, signed=False, dense=2) == 3


def supports(latents: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every subset of the latents, as (N, L) and in compressed rows."""
    on_NL = (torch.arange(2**latents)[:, None] >> torch.arange(latents)) % 2
    offsets = torch.nn.functional.pad(on_NL.sum(1).cumsum(0), (1, 0))
    return on_NL, on_NL.nonzero()[:, 1], offsets


def test_bits_entropy_by_hand():
    """Two latents with p = 1/2 and 1/4. None: log2(2 * 4/3); the first: the same; the second:
    log2(2 * 4); both: the same.
    """
    _, indices_M, offsets = supports(2)
    p_L = torch.tensor([0.5, 0.25])
    none, second = 1 + math.log2(4 / 3), 3.0
    index = torch.tensor([none, none, second, second], dtype=torch.float64)
    active = torch.tensor([0, 1, 1, 2], dtype=torch.float64)
    torch.testing.assert_close(bits_entropy(indices_M, offsets, p_L, signed=False), index + 8 * active)
    torch.testing.assert_close(bits_entropy(indices_M, offsets, p_L, signed=True), index + 9 * active)
    fixed = bits_entropy(indices_M, offsets, p_L, signed=True, fixed_support=True)
    torch.testing.assert_close(fixed, 9 * active)
    dense = bits_entropy(indices_M, offsets, torch.tensor([0.5, 1.0]), signed=False, dense=1)
    torch.testing.assert_close(dense, 1 + 9 + 8 * torch.tensor([0, 1, 0, 1], dtype=torch.float64))


def test_bits_entropy_is_a_code_length():
    """Over all supports of four latents 2^-bits sums to 1;
    its mean is the entropy where p is true, and no less elsewhere.
    """
    on_NL, indices_M, offsets = supports(4)
    true_L, wrong_L = torch.tensor([0.5, 0.25, 0.1, 0.03]).double(), torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    chance_N = torch.where(on_NL == 1, true_L, 1 - true_L).prod(1)
    entropy = -(chance_N * chance_N.log2()).sum().item()
    value_N = 8 * on_NL.sum(1)
    for p_L, excess in ((true_L, 0.0), (wrong_L, None)):
        index_N = bits_entropy(indices_M, offsets, p_L, signed=False) - value_N
        assert torch.exp2(-index_N).sum().item() == pytest.approx(1, abs=1e-12)
        mean = (chance_N * index_N).sum().item()
        assert mean == pytest.approx(entropy, abs=1e-12) if excess == 0 else mean > entropy + 0.05
    tied_N = chance_N * (on_NL[:, 0] == on_NL[:, 1])  # latents that do not fire independently
    tied_N /= tied_N.sum()
    p_L = (tied_N[:, None] * on_NL).sum(0)
    index_N = bits_entropy(indices_M, offsets, p_L, signed=False) - value_N
    assert (tied_N * index_N).sum() > -(tied_N[tied_N > 0] * tied_N[tied_N > 0].log2()).sum() + 0.1


def test_bits_entropy_of_latents_that_fire_alike_is_nearly_log2_of_L_choose_k_and_of_zipf_far_less():
    """Alike: above it by log2 of the chance that independent latents fire k times, about log2 sqrt(2 pi k)."""
    latents, k = 24_576, 32
    row, offsets = torch.arange(k) * 700, torch.tensor([0, k])
    alike = bits_entropy(row, offsets, torch.full((latents,), k / latents), signed=False).item()
    assert alike - bits(latents, k, signed=False) == pytest.approx(0.5 * math.log2(2 * math.pi * k), abs=0.01)
    zipf_L = 1 / torch.arange(1, latents + 1).double()
    p_L = (zipf_L * 6.0).clamp(max=0.5)  # about k a token
    active_L = ((1 - p_L) / p_L).log2()
    expected = -torch.log2(1 - p_L).sum() + (p_L * active_L).sum()  # the entropy, from its definition
    drawn = torch.rand(400, latents, generator=torch.Generator().manual_seed(0)) < p_L
    offsets = torch.nn.functional.pad(drawn.sum(1).cumsum(0), (1, 0))
    found_N = bits_entropy(drawn.nonzero()[:, 1], offsets, p_L, signed=False) - 8 * drawn.sum(1)
    assert found_N.mean().item() == pytest.approx(expected.item(), rel=0.02)
    assert found_N.mean() < 0.8 * (bits(latents, float(p_L.sum()), signed=False) - 8 * p_L.sum())


def test_bits_of_the_sizes_in_the_literature():
    """24,576 latents at k = 32 against 768 signed principal components: 41 of the largest, 67 of the first."""
    budget = bits(24_576, 32, signed=False)
    assert budget == pytest.approx(math.log2(math.comb(24_576, 32)) + 256, abs=1e-6)
    assert round(budget) == 605
    assert bits(768, 41, signed=True) < budget < bits(768, 42, signed=True)
    assert bits(768, 67, signed=True, fixed_support=True) == 603
    assert k_of_bits(budget, 768, signed=True) == 42  # the least that costs as much: a baseline is never given less
    assert k_of_bits(budget, 768, signed=True, fixed_support=True) == 68


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_k_of_bits_undoes_bits(signed: bool, fixed: bool):
    for k in (1, 2, 17, 60):
        assert k_of_bits(bits(256, k, signed, fixed), 256, signed, fixed) == k
        assert k_of_bits(bits(256, k, signed, fixed) + 0.01, 256, signed, fixed) == k + 1
    assert k_of_bits(1e9, 256, signed, fixed) == 256


def test_loss_recovered_by_hand():
    """Two documents, the second drawn twice in the second row: (8 + 2 - 5 - 2) / (8 + 2 - 3 - 1), then with 2 of it."""
    ablated_G, spliced_G, clean_G = torch.tensor([[8.0, 2], [5, 2], [3, 1]]).double()
    weights_BG = torch.tensor([[1.0, 1], [1, 2]]).double()
    found_B = loss_recovered(ablated_G, spliced_G, clean_G)(weights_BG)
    torch.testing.assert_close(found_B, torch.tensor([3 / 6, 3 / 7]).double())
    ones = torch.ones(1, 2).double()
    assert loss_recovered(ablated_G, clean_G, clean_G)(ones).item() == 1
    assert loss_recovered(ablated_G, ablated_G, clean_G)(ones).item() == 0
    assert loss_recovered(ablated_G, ablated_G + 1, clean_G)(ones).item() == pytest.approx(-2 / 6)
    assert math.isnan(loss_recovered(clean_G, clean_G, clean_G)(ones).item())


def test_bootstrap_draws_as_many_documents_as_there_are():
    weights_BG = bootstrap_weights(30, 500, seed=1)
    assert weights_BG.shape == (500, 30)
    assert (weights_BG.sum(1) == 30).all()
    assert weights_BG.mean().item() == 1
    assert weights_BG.var().item() == pytest.approx(1 - 1 / 30, abs=0.05)  # binomial, not a permutation
    assert torch.equal(weights_BG, bootstrap_weights(30, 500, seed=1))
    assert not torch.equal(weights_BG, bootstrap_weights(30, 500, seed=2))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Means over tokens where tokens of a document share their document's level:
    an interval over tokens would not cover.
    """
    rng, truth, hits, widths = np.random.default_rng(0), 2.0, 0, []
    for trial in range(200):
        sizes = rng.integers(5, 40, size=60)
        levels = truth + rng.normal(size=60)
        sums_G = torch.tensor([rng.normal(level, 1, size).sum() for level, size in zip(levels, sizes, strict=True)])
        statistic = ratio_of_sums(sums_G, torch.tensor(sizes, dtype=torch.float64))
        low, high = interval(statistic, bootstrap_weights(60, 300, seed=trial))
        hits += low <= truth <= high
        widths.append(high - low)
    assert 0.88 <= hits / 200 <= 0.985
    assert 0.4 < np.mean(widths) < 0.7  # 2 * 1.96 / sqrt(60) = .51, more for unequal sizes


def test_ratio_of_sums_is_a_mean_over_tokens_not_over_documents():
    statistic = ratio_of_sums(torch.tensor([10.0, 1]), torch.tensor([10.0, 2]))
    torch.testing.assert_close(statistic(torch.tensor([[1.0, 1], [0, 1]])), torch.tensor([11 / 12, 0.5]))
    assert metrics.interval(statistic, torch.ones(50, 2), 5) == pytest.approx((11 / 12, 11 / 12))


def test_what_does_not_vary_has_no_fvu():
    for x_ND in (torch.full((50, 3), 1e4), torch.ones(1, 3), torch.zeros(4, 3), torch.full((7, 3), 1 / 3)):
        assert math.isnan(metrics.fvu(x_ND, x_ND))
        assert math.isnan(metrics.fvu(x_ND, x_ND + 1))
    barely = torch.full((50, 3), 1e4).double()
    barely[::2] += 1e-3
    assert metrics.fvu(barely, barely.mean(0).expand_as(barely)) == pytest.approx(1, rel=1e-4)


def test_an_interval_takes_documents_and_draws_enough():
    statistic = ratio_of_sums(torch.arange(9.0), torch.ones(9))
    for weights_BG, documents, known in (
        (bootstrap_weights(9, 20), None, True), (bootstrap_weights(9, 19), None, False),
        (bootstrap_weights(9, 0), None, False),
        (bootstrap_weights(9, 20), 5, True), (bootstrap_weights(9, 20), 4, False),
    ):  # fmt: skip
        low, high = interval(statistic, weights_BG.float(), documents)
        assert (low < high) if known else (math.isnan(low) and math.isnan(high))


def test_a_ratio_over_nothing_is_no_number():
    statistic = ratio_of_sums(torch.tensor([1.0, 2]), torch.tensor([0.0, 4]))
    assert statistic(torch.tensor([[1.0, 0], [1, 1]])).isnan().tolist() == [True, False]
