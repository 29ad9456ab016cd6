"""Codes on 256 levels: by hand, the quantiser's error bound, and what it costs a dictionary."""

import pytest
import torch

from rayscope.dictionaries import AbsTopK, TopK
from rayscope.dictionaries.base import Codes
from rayscope.evaluation.metrics import fvu
from rayscope.evaluation.quantisation import LEVELS, Calibration

LATER = torch.zeros(1000, dtype=torch.bool)


def codes(rows: list[dict[int, float]], latents: int) -> Codes:
    z_NL = torch.zeros(len(rows), latents)
    for n, row in enumerate(rows):
        for latent, value in row.items():
            z_NL[n, latent] = value
    return Codes.of_dense(z_NL)


def calibrated(seen: Codes) -> Calibration:
    calibration = Calibration(seen.latents)
    calibration.update(seen, LATER[: len(seen)])
    return calibration


def column(values: torch.Tensor, latent: int = 0, latents: int = 1) -> Codes:
    """One code of the latent for each value."""
    return Codes(torch.full((len(values),), latent), values, torch.arange(len(values) + 1), latents)


def test_by_hand():
    """Latent 0 is seen at 2 and -6: |z| from 2 / 1.5 to 6 * 1.5. Latent 1 once, at 4: from 2 to 8.
    Latent 2 never: from 2 to 6.
    """
    grid = calibrated(codes([{0: 2.0, 1: 4.0}, {0: -6.0}, {}], 3)).grid()
    torch.testing.assert_close(grid.low_PL[0], torch.tensor([4 / 3, 2, 2]))
    torch.testing.assert_close(grid.step_PL[0] * 255, torch.tensor([9 - 4 / 3, 6, 4]))
    test = codes([{0: 100.0, 1: 0.5, 2: -3.99}, {}, {0: -0.01, 1: 5.005}], 3)
    found = grid.quantise(test, LATER[:3])
    step = 6 / 255
    expected = [9, 2, -(2 + 127 * 4 / 255), -4 / 3, 2 + round(3.005 / step) * step]  # clipped, clipped, nearest, ...
    torch.testing.assert_close(found.values_M, torch.tensor(expected))
    assert torch.equal(found.indices_M, test.indices_M)
    assert torch.equal(found.offsets, test.offsets)


def test_position_0_has_a_range_of_its_own():
    """A code of 3000 there must not make every later code of the latent one of a few coarse levels."""
    seen, first_N = codes([{0: 3000.0}, {0: 1.0}, {0: 2.0}, {1: 5.0}], 2), torch.tensor([True, False, False, False])
    calibration = Calibration(2)
    for part in (slice(0, 1), slice(1, 4)):  # in two batches
        calibration.update(Codes.of_dense(seen.dense()[part]), first_N[part])
    grid = calibration.grid()
    found = grid.quantise(codes([{0: 2900.0}, {0: 1.5}, {1: 2000.0}], 2), torch.tensor([True, False, True])).values_M
    assert abs(found[0] - 2900) < 3000 * (2 - 0.5) / 255  # half a step is less
    assert abs(found[1] - 1.5) < 0.006
    assert found[2] == 3000  # never seen there: the range of what was, one point
    assert calibration.frequency("excluded").tolist() == [2.5 / 4, 1.5 / 4]
    assert calibration.frequency("included").tolist() == [3.5 / 5, 1.5 / 5]


def test_256_levels_and_half_a_step_is_the_greatest_error():
    values = torch.rand(500, generator=torch.Generator().manual_seed(0)) * 5 + 0.3
    grid = calibrated(column(values)).grid()
    z = torch.linspace(float(values.min()), float(values.max()), 20_000)
    found = grid.quantise(column(z), torch.zeros(20_000, dtype=torch.bool)).values_M
    step = float(grid.step_PL[0, 0])
    assert (found - z).abs().max() <= step / 2 + 1e-5
    assert (found - z).abs().max() > 0.99 * step / 2
    ends = grid.quantise(column(torch.tensor([1e-9, 1e9])), LATER[:2]).values_M
    levels = torch.cat([found, ends]).unique()
    assert len(levels) == LEVELS
    torch.testing.assert_close(levels.diff(), torch.full((LEVELS - 1,), step), rtol=1e-3, atol=0)


def test_a_signed_code_keeps_its_sign_and_none_becomes_zero():
    x_ND = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    dictionary = AbsTopK(16, 64, 5)
    dictionary.prepare(x_ND, 100)
    seen = dictionary.encode_sparse(x_ND[:50])
    test = dictionary.encode_sparse(x_ND[50:])
    found = calibrated(seen).grid().quantise(test, LATER[:250])
    assert torch.equal(found.values_M.sign(), test.values_M.sign())
    assert (found.values_M < 0).any()
    assert torch.equal((found.dense() != 0), (test.dense() != 0))


def test_a_dictionary_loses_little_and_something():
    x_ND = torch.randn(2000, 16, generator=torch.Generator().manual_seed(2))
    dictionary = TopK(16, 32, 8)
    dictionary.prepare(x_ND, 100)
    grid = calibrated(dictionary.encode_sparse(x_ND[:1000])).grid()
    test = x_ND[1000:]
    raw = fvu(test, dictionary(test))
    coded = fvu(test, dictionary.decode_sparse(grid.quantise(dictionary.encode_sparse(test), LATER)))
    assert 0 < abs(coded - raw) < 0.005 * raw


def test_where_nothing_fires_nothing_breaks():
    nothing = codes([{}, {}], 4)
    grid = calibrated(nothing).grid()
    assert len(grid.quantise(nothing, LATER[:2]).values_M) == 0
    assert grid.quantise(codes([{1: 3.0}], 4), LATER[:1]).values_M.tolist() == [0]  # no range at all is known
    none = Codes(torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(1, dtype=torch.long), 4)
    assert calibrated(none).frequency("excluded").isnan().all()
    with pytest.raises(ValueError, match="validation: no vector, so no range"):
        calibrated(none).grid()
