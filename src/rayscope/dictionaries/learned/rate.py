"""The learning rate of a dictionary that was given none."""

import math

REACH = 2.0  # c below: how far Adam can move a number in a run, if every step has the same sign
LARGEST = 6e-3


def default_rate(latents: int, steps: float = math.inf) -> float:
    """min(6e-3, max(2e-4 / sqrt(latents / 2^14), c / steps)), c = 2: Adam's, at the height of its schedule.

    The rule by width is that of long runs (Gao et al. 2024, 2406.04093). Adam moves a number by about the rate per
    step, so at that rate a run of few steps ends before it is anywhere. c: FVU falls up to 2 or 3 in
    the runs tried, of two widths and up to 600,000 tokens, and more latents die beyond
    (docs/log/2026-11-25-learning-rate.md).
    """
    return min(LARGEST, max(2e-4 / (latents / 2**14) ** 0.5, REACH / steps))
