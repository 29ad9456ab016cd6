"""Intervals over seeds and documents: by hand, by the tables of t, and how often they hold the truth."""

import math

import numpy as np
import pytest
import torch

from rayscope.studies.intervals import ends, over_seeds

T_975 = {2: 12.706, 3: 4.303, 5: 2.776}  # by seeds, from a table


@pytest.mark.parametrize(("seeds", "t"), T_975.items())
def test_without_documents_it_is_the_interval_of_t(seeds, t):
    values_S = torch.arange(seeds, dtype=torch.float64) ** 2
    found = over_seeds([(value.item(), value.expand(37)) for value in values_S])
    half = t * (values_S.var() / seeds).sqrt().item()
    mean = values_S.mean().item()
    assert (found.value, found.low, found.high) == pytest.approx((mean, mean - half, mean + half), rel=1e-3)


def test_without_seeds_it_is_the_bootstraps():
    draws_B = torch.arange(1001, dtype=torch.float64)
    for seeds in (1, 3):
        found = over_seeds([(500.0, draws_B)] * seeds)
        assert (found.value, found.low, found.high) == pytest.approx((500.0, 25.0, 975.0), abs=1)


def test_what_is_no_number():
    worst = over_seeds([(1.0, torch.tensor([1.0, torch.inf]))] * 2)
    assert (worst.low, worst.high) == (1.0, torch.inf)  # a draw without a number to divide by stays the worst
    nothing = over_seeds([(math.nan, torch.tensor([1.0, 2.0])), (1.0, torch.tensor([1.0, 2.0]))])
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (1.0, 2.0)
    assert all(map(math.isnan, ends(np.zeros(0))))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_documents"),
    [(1.0, 0.0), (1.0, 0.5), (0.1, 1.0)],
    ids=["seeds vary alone", "both vary", "documents dominate"],
)
def test_95_percent_of_the_intervals_hold_the_truth(seeds, of_seeds, of_documents):
    """1,500 experiments with a truth of 0, normal errors of seeds and documents, and the bootstrap that many documents
    give in many draws."""
    generator = torch.Generator().manual_seed(seeds)
    experiments, bootstrap_B = 1500, of_documents * torch.special.ndtri(torch.arange(1, 200).double() / 200)
    held = 0
    for _ in range(experiments):
        document, *own = torch.randn(1 + seeds, generator=generator).double().tolist()
        values = [of_seeds * one + of_documents * document for one in own]
        found = over_seeds([(value, value + bootstrap_B) for value in values])
        held += found.low <= 0 <= found.high
    assert held / experiments == pytest.approx(0.95, abs=0.02)
