"""What rays_vs_directions measured: its table, and the draws behind it.

B bootstrap draws.
"""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false

from collections.abc import Hashable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rayscope.dictionaries import Dictionary
from rayscope.dictionaries.code_length import VALUE_BITS
from rayscope.model.sites import Site
from rayscope.studies.arms import Arm
from rayscope.studies.rays_vs_directions.polarity import Polarity

RAYS, DIRECTIONS = "A_rays_2m", "B_directions_m"  # which cost the same bits
RAYS_M, DIRECTIONS_2M = "C_rays_m", "D_directions_2m"  # as many as the others, for fewer and for more bits
COLUMNS = [
    "stream", "site", "arm", "coder", "k", "latents", "bits", "bits_over_A", "seed", "metric", "value", "low", "high",
    "position0", "tokens", "trained_tokens", "value_bits",
]  # fmt: skip
QUANTISED = ("fvu", "dce", "kl")


def world_stream(share: float) -> str:
    """The name in the table of a planted world, of whose features this share is bipolar."""
    return f"planted_{share:g}"


class Records:
    """Rows, and [1 + B] the value and draws of what is drawn, by (stream, hook, arm, metric, coder), position 0 left
    out.

    bits_over_A: over the bits of RAYS at the same k.
    """

    def __init__(self):
        self.rows: list[dict[str, Any]] = []
        self.values: dict[tuple, float] = {}
        self.drawn: dict[tuple, Tensor] = {}
        self.polarities: dict[tuple, Polarity] = {}

    def add(
        self,
        stream: str,
        site: Site,
        arm: Arm,
        dictionary: Dictionary,
        metric: str,
        value: float,
        draws_B: Tensor | None = None,
        *,
        tokens: int,
        position0: str = "excluded",
        coder: str = "own",
    ) -> None:
        row = {"stream": stream, "site": site.hook, "metric": metric, "value": value, "position0": position0}
        row |= {"arm": arm.method, "coder": coder, "k": arm.k, "seed": arm.seed}
        row |= {"latents": dictionary.latents, "tokens": tokens}
        row |= {"bits": dictionary.bits(), "trained_tokens": dictionary.provenance.get("tokens")}
        row |= {"value_bits": VALUE_BITS if metric in QUANTISED else None}
        key: tuple[Hashable, ...] = (stream, site.hook, arm, metric, coder)
        if position0 == "excluded":
            self.values[key] = value
        if draws_B is not None:
            row["low"], row["high"] = torch.nanquantile(draws_B, torch.tensor([0.025, 0.975]).double()).tolist()
            if position0 == "excluded":
                self.drawn[key] = torch.cat([draws_B.new_tensor([value]), draws_B])
        self.rows.append(row)

    def value(self, *key: Hashable) -> float:
        return self.values[key]

    def table(self) -> pd.DataFrame:
        table = pd.DataFrame(self.rows)
        of_reference = table[table["arm"] == RAYS].groupby("k")["bits"].first()
        table["bits_over_A"] = table["bits"] / table["k"].map(of_reference)
        table.loc[table["arm"] == "planted", "bits_over_A"] = float("nan")
        return table.reindex(columns=COLUMNS)
