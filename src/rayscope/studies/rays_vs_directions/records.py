"""What rays_vs_directions measured: its table, the draws behind it, its figure.

B bootstrap draws.
"""

from collections.abc import Hashable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rayscope.dictionaries import Dictionary
from rayscope.drawing import COLOURS, MARKERS, label, log_axis, panels
from rayscope.model.sites import Site
from rayscope.studies.arms import Arm
from rayscope.studies.rays_vs_directions.polarity import Polarity

RAYS, DIRECTIONS = "A_rays_2m", "B_directions_m"  # which cost the same bits
COLUMNS = [
    "stream", "site", "arm", "k", "latents", "bits", "bits_over_A", "seed", "metric", "value", "low", "high",
    "position0", "tokens", "trained_tokens", "quantised",
]  # fmt: skip
QUANTISED = ("fvu", "dce", "kl")
SHADES = ("#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#009e73", "#7a7a7a")  # rays blue, directions orange


def world_stream(share: float) -> str:
    """The name in the table of a planted world, of whose features this share is bipolar."""
    return f"planted_{share:g}"


class Records:
    """Rows, and [1 + B] the value and draws of what is drawn, by (stream, hook, arm, metric), position 0 left out.

    reference: the arm whose bits are those of every other of its k (`bits_over_A`).
    """

    def __init__(self, reference: str):
        self.reference = reference
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
    ) -> None:
        row = {"stream": stream, "site": site.hook, "metric": metric, "value": value, "position0": position0}
        row |= {"arm": arm.method, "k": arm.k, "seed": arm.seed, "latents": dictionary.latents, "tokens": tokens}
        row |= {"bits": dictionary.bits(), "trained_tokens": dictionary.provenance.get("tokens")}
        row |= {"quantised": metric in QUANTISED}
        key: tuple[Hashable, ...] = (stream, site.hook, arm, metric)
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
        of_reference = table[table["arm"] == self.reference].groupby("k")["bits"].first()
        table["bits_over_A"] = table["bits"] / table["k"].map(of_reference)
        table.loc[table["arm"] == "planted", "bits_over_A"] = float("nan")
        return table.reindex(columns=COLUMNS)


def figure(records: Records, k: int, seed: int) -> str:
    """For each site dCE and FVU against bits, and the polarity of the directions' latents (k, seed) against density."""
    table = records.table()
    real = table[(table["stream"] == "real") & (table["position0"] == "excluded")]
    hooks = list(dict.fromkeys(real["site"]))
    with panels(3 * len(hooks), 2.8, columns=3) as (axes, svg):
        for row, hook in enumerate(hooks):
            for one, metric in zip(axes[3 * row :], ("dce", "fvu"), strict=False):
                here = real[(real["site"] == hook) & (real["metric"] == metric)]
                for (arm, group), colour, marker in zip(here.groupby("arm"), SHADES, MARKERS, strict=False):
                    mean = group.groupby("k")[["bits", "value"]].mean()
                    one.plot(mean["bits"], mean["value"], marker + "-", color=colour, label=str(arm))
                log_axis(one, "x", "bits per token")
                one.set_ylabel({"dce": "dCE, nats", "fvu": "FVU"}[metric])
                one.set_title(label(hook))
            scatter(axes[3 * row + 2], records, hook, k, seed)
        return svg()


def scatter(axes, records: Records, hook: str, k: int, seed: int) -> None:
    """Latents that ever fired, the most energetic 1000."""
    for (stream, site, arm), polarity in records.polarities.items():
        if (site, arm.k, arm.seed) != (hook, k, seed) or arm.method != DIRECTIONS:
            continue
        energy_L = polarity.energy_P2L.sum((0, 1))
        top = energy_L.argsort(descending=True)[:1000]
        top = top[energy_L[top] > 0]
        colour = COLOURS["directions" if stream == "real" else "control"]
        title = {"real": f"latent of B, k {k}", "sign_flip": "the same, signs flipped"}[stream]
        axes.plot(polarity.density_L[top], polarity.polarity_L[top], ".", ms=2.5, color=colour, alpha=0.5, label=title)
    log_axis(axes, "x", "density")
    axes.set_ylabel("polarity")
    axes.set_ylim(-0.02, 0.52)
