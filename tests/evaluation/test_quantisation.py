"""Values on levels: by hand, against closed forms and a plain Lloyd-Max, and what they cost a dictionary."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rayscope.dictionaries import AbsTopK, Linear
from rayscope.dictionaries.base import Codes
from rayscope.evaluation.calibration import Calibration
from rayscope.evaluation.metrics import fvu
from rayscope.evaluation.quantisation import Quantiser

LATER = torch.zeros(1000, dtype=torch.bool)


def codes(rows: list[dict[int, float]], latents: int) -> Codes:
    z_NL = torch.zeros(len(rows), latents)
    for n, row in enumerate(rows):
        for latent, value in row.items():
            z_NL[n, latent] = value
    return Codes.of_dense(z_NL)


def calibrated(seen: Codes, ends: bool = True) -> Calibration:
    calibration = Calibration(seen.latents, ends=ends)
    calibration.update(seen, torch.zeros(len(seen), dtype=torch.bool))
    return calibration


def fitted(seen: Codes | Calibration, bits: int, levels: str = "lloyd", ends: bool = True) -> Quantiser:
    values = (seen if isinstance(seen, Calibration) else calibrated(seen, ends)).values
    return Quantiser.fit(values, torch.full((len(values.count_C),), bits), ends, levels)


def column(values: Tensor, latent: int = 0, latents: int = 1) -> Codes:
    """One code of the latent for each value."""
    return Codes(torch.full((len(values),), latent), values, torch.arange(len(values) + 1), latents)


def quantised(quantiser: Quantiser, values: Tensor, latent: int = 0, latents: int = 1) -> Tensor:
    nowhere_N = torch.zeros(len(values), dtype=torch.bool)
    return quantiser.quantise(column(values, latent, latents), nowhere_N).values_M


def distortion(values: Tensor, bits: int, **options) -> float:
    found = quantised(fitted(column(values), bits, **options), values)
    return (found.double() - values.double()).square().mean().item()


def test_even_levels_by_hand():
    """Latent 0 has an end above 0, seen at 2 and 6: |z| from 2 / 1.5 to 6 * 1.5; and one below, seen once at -1: from
    1/2 to 2. Latent 1 once, at 4: from 2 to 8. Latent 2 never: from 1 to 6, those of all. Two bits: the centres of
    four parts.
    """
    quantiser = fitted(codes([{0: 2.0, 1: 4.0}, {0: 6.0}, {0: -1.0}], 3), 2, "uniform")
    test = codes([{0: 100.0, 1: 0.5, 2: 2.3}, {}, {0: -0.01, 1: 5.005}, {0: 4.0}], 3)
    found = quantiser.quantise(test, LATER[:4])
    low, part = 4 / 3, (9 - 4 / 3) / 4
    expected = [low + 3.5 * part, 2 + 0.5 * 1.5, 1 + 1.5 * 1.25, -(0.5 + 0.5 * 0.375), 2 + 2.5 * 1.5, low + 1.5 * part]
    torch.testing.assert_close(found.values_M, torch.tensor(expected))
    assert torch.equal(found.indices_M, test.indices_M)
    assert torch.equal(found.offsets, test.offsets)
    assert quantiser.floats == 2 * 3  # ranges alone: even levels need no table


@pytest.mark.parametrize("levels", ["lloyd", "uniform"])
def test_position_0_has_a_range_of_its_own(levels: str):
    """A code of 3000 there must not make every later code of the latent one of a few coarse levels."""
    seen, first_N = codes([{0: 3000.0}, {0: 1.0}, {0: 2.0}, {1: 5.0}], 2), torch.tensor([True, False, False, False])
    calibration = Calibration(2)
    for part in (slice(0, 1), slice(1, 4)):  # in two batches
        calibration.update(Codes.of_dense(seen.dense()[part]), first_N[part])
    quantiser = fitted(calibration, 8, levels)
    test = codes([{0: 2900.0}, {0: 1.5}, {1: 2000.0}], 2)
    found = quantiser.quantise(test, torch.tensor([True, False, True])).values_M
    assert abs(found[0] - 2900) <= 3000 / 2  # 3000 is all that was seen there
    assert abs(found[1] - 1.5) < (0.006 if levels == "uniform" else 0.5)
    assert found[2] == 3000  # never seen there: the range of what was, one point
    assert calibration.frequency("excluded").tolist() == [2.5 / 4, 1.5 / 4]
    assert calibration.frequency("included").tolist() == [3.5 / 5, 1.5 / 5]


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_even_levels_are_2_to_the_bits_and_half_a_step_is_the_greatest_error(bits: int):
    values = torch.linspace(0.3, 5.3, 100_000)
    quantiser = fitted(column(values), bits, "uniform")
    found = quantised(quantiser, z := torch.linspace(0.3, 5.3, 20_000))
    step = 5.0 / 2**bits
    assert (found - z).abs().max() == pytest.approx(step / 2, rel=0.02)
    ends = quantised(quantiser, torch.tensor([1e-9, 1e9]))
    levels = torch.cat([found, ends]).unique()
    assert len(levels) == 2**bits
    torch.testing.assert_close(levels.diff(), torch.full((2**bits - 1,), step), rtol=2e-3, atol=0)


@pytest.mark.parametrize(("bits", "published"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
@pytest.mark.parametrize("ends", [True, False])
def test_lloyd_of_a_gaussian_has_the_published_distortion(bits: int, published: float, ends: bool):
    """Max (1960), table I. With ends, the sign is one of the bits."""
    values = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(200_000) + 0.5) / 200_000)
    assert distortion(values, bits - ends, ends=ends) == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_lloyd_of_a_uniform_density_has_even_levels(bits: int):
    values = 3 + 2 * (torch.arange(100_000) + 0.5) / 100_000
    assert distortion(values, bits) == pytest.approx((2 / 2**bits) ** 2 / 12, rel=0.01)


@pytest.mark.parametrize("share", [0.5, 0.03])
def test_two_points_take_one_bit(share: float):
    values = torch.where(torch.arange(1000) < 1000 * share, 1.25, 7.5)
    torch.testing.assert_close(quantised(fitted(column(values), 1), values), values)


def test_a_skewed_density_wants_levels_that_are_free_of_the_sign():
    """Exponential about its mean: by two ends of one level each .437; by two levels anywhere less, as Lloyd finds."""
    values = -torch.log1p(-(torch.arange(5000) + 0.5) / 5000) - 1
    apart, free = distortion(values, 0), distortion(values, 1, ends=False)
    assert free < 0.85 * apart
    assert free == pytest.approx(plain_lloyd(values.numpy(), np.ones(len(values)), 2)[1], rel=1e-3)


def plain_lloyd(values: np.ndarray, weights: np.ndarray, levels: int) -> tuple[np.ndarray, float]:
    """(levels, weighted mean squared error), by nearest level and weighted means, from even levels."""
    found = np.linspace(values.min(), values.max(), 2 * levels + 1)[1::2]
    for _ in range(200):
        nearest = np.abs(values[:, None] - found).argmin(1)
        found = np.array([np.average(values[nearest == i], weights=weights[nearest == i]) for i in range(levels)])
    nearest = np.abs(values[:, None] - found).argmin(1)
    return found, np.average((values - found[nearest]) ** 2, weights=weights)


@pytest.mark.parametrize(("count", "bits", "own"), [(63, 1, False), (64, 3, True), (64, 4, False), (128, 4, True)])
def test_a_latent_has_levels_of_its_own_with_64_values_and_8_for_each_level(count: int, bits: int, own: bool):
    """Latent 0 is dense at the low end of its range, latent 1, with 10,000 values, at the high end."""
    few, many = torch.linspace(0, 1, count) ** 3 + 0.1, 1 - torch.linspace(0, 1, 10_000) ** 3 + 0.1
    seen = Calibration(2)
    for latent, values in enumerate((few, many)):
        seen.update(column(values, latent, 2), torch.zeros(len(values), dtype=torch.bool))
    quantiser = fitted(seen, bits)
    alone = fitted(column(few), bits) if own else None
    found = quantised(quantiser, few, 0, 2)
    if alone is not None:
        torch.testing.assert_close(found, quantised(alone, few))
    assert ((found - few).square().mean() < 1.2 * distortion_of_own(few, bits)) == own
    tables = 1 + 1  # latent 1's own, and latent 0's or that which other latents would share
    assert quantiser.floats == 2 * 2 + tables * 2**bits + (2**bits if own else 0)


def distortion_of_own(values: Tensor, bits: int) -> float:
    return plain_lloyd(values.double().numpy(), np.ones(len(values)), 2**bits)[1]


def test_shared_levels_are_lloyds_on_scaled_values_weighted_by_their_range():
    """Forty latents of 50 values each, whose ranges differ a hundredfold and whose densities differ with them."""
    generator = torch.Generator().manual_seed(3)
    power_L1, scale_L1 = torch.linspace(0.5, 3, 40)[:, None], torch.logspace(0, 2, 40)[:, None]
    z_LV = torch.rand(40, 50, generator=generator) ** power_L1 * scale_L1 + 0.1
    seen = Calibration(40)
    for latent, values in enumerate(z_LV):
        seen.update(column(values, latent, 40), torch.zeros(50, dtype=torch.bool))
    quantiser = fitted(seen, 2)
    assert quantiser.floats == 2 * 40 + 4
    low_L1, high_L1 = z_LV.amin(1, keepdim=True) / 1.02, z_LV.amax(1, keepdim=True) * 1.02
    u_LV = (z_LV - low_L1) / (high_L1 - low_L1)
    weight_LV = (high_L1 - low_L1).square().expand_as(z_LV)
    u, weight = (x_LV.flatten().double().numpy() for x_LV in (u_LV, weight_LV))
    _, least = plain_lloyd(u, weight, 4)
    unweighted, _ = plain_lloyd(u, np.ones(len(u)), 4)
    other = np.average(np.abs(u[:, None] - unweighted).min(1) ** 2, weights=weight)
    found_LV = torch.stack([quantised(quantiser, z_LV[latent], latent, 40) for latent in range(40)])
    error = ((found_LV - z_LV).square().sum() / weight.sum()).item()
    assert error == pytest.approx(least, rel=0.01)
    assert error < 0.98 * other


@pytest.mark.parametrize("levels", ["lloyd", "uniform"])
@pytest.mark.parametrize("bits", [1, 8])
def test_a_signed_code_keeps_its_sign_and_none_becomes_zero(levels: str, bits: int):
    x_ND = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    dictionary = AbsTopK(16, 64, 5)
    dictionary.prepare(x_ND, 100)
    seen = dictionary.encode_sparse(x_ND[:50])
    test = dictionary.encode_sparse(x_ND[50:])
    found = fitted(seen, bits, levels).quantise(test, LATER[:250])
    assert torch.equal(found.values_M.sign(), test.values_M.sign())
    assert (found.values_M < 0).any()
    assert torch.equal((found.dense() != 0), (test.dense() != 0))


def test_a_dictionary_loses_little_with_8_bits_and_more_the_fewer_they_are():
    x_ND = torch.randn(2000, 16, generator=torch.Generator().manual_seed(2))
    dictionary = Linear(16, 16, 8, "topk", torch.eye(16))
    seen, test = calibrated(dictionary.encode_sparse(x_ND[:1000])), x_ND[1000:]
    codes = dictionary.encode_sparse(test)
    coded = [fvu(test, dictionary.decode_sparse(fitted(seen, b).quantise(codes, LATER))) for b in (8, 4, 2, 1)]
    raw = fvu(test, dictionary(test))
    assert 0 < abs(coded[0] - raw) < 0.005 * raw
    assert coded[0] < coded[1] < coded[2] < coded[3]


@pytest.mark.parametrize("levels", ["lloyd", "uniform"])
def test_where_nothing_fires_nothing_breaks(levels: str):
    nothing = codes([{}, {}], 4)
    quantiser = fitted(nothing, 3, levels)
    assert len(quantiser.quantise(nothing, LATER[:2]).values_M) == 0
    assert quantiser.quantise(codes([{1: 3.0}], 4), LATER[:1]).values_M.tolist() == [0]  # no range at all is known
    once = fitted(codes([{1: 3.0}], 4), 3, levels)  # one value, at later positions alone
    for first_N in (LATER[:1], ~LATER[:1]):
        for latent in (0, 1):
            (value,) = once.quantise(codes([{latent: 3.0}], 4), first_N).values_M.tolist()
            assert 1.5 <= value <= 6
    none = Codes(torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(1, dtype=torch.long), 4)
    assert calibrated(none).frequency("excluded").isnan().all()
    with pytest.raises(ValueError, match="validation: no vector, so no levels"):
        fitted(none, 3)
