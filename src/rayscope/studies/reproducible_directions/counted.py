"""What was counted on each stream: rows of the table, and what is observed of the predictions.

B draws of documents.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rayscope.dictionaries.code_length import bits
from rayscope.model.sites import Site
from rayscope.studies.intervals import Observed, over_seeds
from rayscope.studies.reproducible_directions.reproduced import Counts
from rayscope.studies.reproducible_directions.streams import REAL
from rayscope.studies.setting import Setting

Counted = dict[tuple[str, int], list[Counts]]  # {(stream, latents): by seed}; the first draw is all documents
BEYOND, BEYOND_POSITIONS = "beyond_tokens", "beyond_tokens_and_position"


def rows(counted: Counted, setting: Setting, k: int, sizes: dict[str, dict]) -> Iterator[dict]:
    """One for each seed, with its interval over documents, then one over seeds, of which the column is blank."""
    site = setting.residual
    for (name, latents), by_seed in counted.items():
        about = {"site": site.hook, "width": site.width, "stream": name, "latents": latents, "k": k}
        about |= {"bits": bits(latents, k, signed=False)}
        for tau, count in by_seed[0]:
            draws = [(one[tau, count][0].item(), one[tau, count][1:]) for one in by_seed]
            each = [*((s, [draw]) for s, draw in zip(setting.seeds, draws, strict=True)), (None, draws)]
            for seed, these in each:
                seen = over_seeds(these)
                row = about | {"seed": seed, "tau": tau, "metric": count, "value": seen.value}
                yield row | {"low": seen.low, "high": seen.high} | sizes[name]


def observed(counted: Counted, site: Site, widest: int, tau: float) -> dict[str, Observed]:
    """By the name of the prediction; of nulls, only if there are any."""
    nulls = [name for name, _ in counted if name != REAL]

    def of(name: str, count: str) -> list[Tensor]:
        return [one[tau, count] for one in counted[name, widest]]

    def over_width(count: str) -> Observed:
        return over_seeds([(x[0].item() / site.width, x[1:] / site.width) for x in of(REAL, count)])

    def worst(count: str) -> Observed:
        most = [torch.stack(each).amax(0) for each in zip(*(of(name, count) for name in nulls), strict=True)]
        return over_seeds([ratio(null_B, real_B) for null_B, real_B in zip(most, of(REAL, count), strict=True)])

    found = {"beyond": over_width(BEYOND), "beyond_positions": over_width(BEYOND_POSITIONS)}
    if nulls:
        counts = {"nulls": BEYOND, "nulls_beyond_positions": BEYOND_POSITIONS, "naive_nulls": "all"}
        found |= {name: worst(count) for name, count in counts.items()}
    return found


def ratio(null_B: Tensor, real_B: Tensor) -> tuple[float, Tensor]:
    """null / real and its draws. Without a real one the value is NaN, and a draw is at least 1: as bad as alike."""
    ratio_B = torch.where(real_B > 0, null_B / real_B.clamp_min(0.5), null_B.clamp_min(1.0))
    return ratio_B[0].item() if real_B[0] > 0 else float("nan"), ratio_B[1:]
