"""What rays_vs_directions observed of each of its predictions, from its records.

B bootstrap draws, S seeds, C cells (a site at a k), H sites, W planted worlds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayscope.model.sites import Site
from rayscope.studies.arms import Arm
from rayscope.studies.intervals import Observed, over_seeds
from rayscope.studies.pareto.ratios import LARGEST
from rayscope.studies.rays_vs_directions.records import DIRECTIONS, DIRECTIONS_2M, RAYS, RAYS_M, Records, world_stream

DRAWS = 1000
CODED = {"": "own", "_omp": "omp"}  # by the ends of predictions' names
AS_MANY = {"dce_ratio_m": (RAYS_M, DIRECTIONS), "dce_ratio_2m": (DIRECTIONS_2M, RAYS)}  # directions of either sign
NOTHING = Observed.exactly(float("nan"))


def observe(
    records: Records, sites: Sequence[Site], ks: list[int], null_k: int, seeds: Sequence[int], bipolar: Sequence[float]
) -> dict[str, Observed]:
    """By the name of the prediction that each answers; `rays_vs_directions` says what they are."""
    of, hooks = Observer(records, seeds), [site.hook for site in sites]
    hooks_of = {part: [site.hook for site in sites if site.part == part] for part in ("residual", "mlp")}
    return {
        "planted": of.planted(bipolar),
        "sign_flip": of.seedwise(lambda seed: of.bipolar_share("sign_flip", hooks, [null_k], seed).amin(0)),
        "bipolar_share": of.seedwise(lambda seed: of.bipolar_share("real", hooks, ks, seed).amax(0)),
        **{
            f"dce_ratio_{part}{end}": of.ratio("real", DIRECTIONS, RAYS, "dce", there, ks, coder)
            for end, coder in CODED.items()
            for part, there in hooks_of.items()
        },
        **{
            f"{name}{end}": of.ratio("real", top, below, "dce", hooks, ks, coder)
            for end, coder in CODED.items()
            for name, (top, below) in AS_MANY.items()
        },
        "flipped_fvu_ratio": of.ratio("sign_flip", RAYS, DIRECTIONS, "fvu", hooks, [null_k]),
        "shared_context": of.shared_context(hooks, ks),
    }


@dataclass(frozen=True)
class Observer:
    records: Records
    seeds: Sequence[int]

    def drawn(self, stream: str, hook: str, arm: str, k: int, seed: int, metric: str, coder: str = "own") -> Tensor:
        """[1 + B]: the value, and its draws."""
        return self.records.drawn[stream, hook, Arm(arm, k, seed), metric, coder]

    def seedwise(self, of: Callable[[int], Tensor]) -> Observed:
        """of: a seed's [1 + B]."""
        return over_seeds([(each[0].item(), each[1:]) for each in map(of, self.seeds)])

    def bipolar_share(self, stream: str, hooks: list[str], ks: list[int], seed: int) -> Tensor:
        """[H, 1 + B]: of the directions, a mean over ks."""
        return torch.stack(
            [
                torch.stack([self.drawn(stream, h, DIRECTIONS, k, seed, "bipolar_share") for k in ks]).mean(0)
                for h in hooks
            ]
        )

    def ratio(
        self, stream: str, top: str, below: str, metric: str, hooks: list[str], ks: list[int], coder: str = "own"
    ) -> Observed:
        """Geometric mean over hooks and ks; NaN if there are none, or if a value (not a draw) is not above 0."""
        if not hooks:
            return NOTHING
        top_SCB, below_SCB = (
            torch.stack([
                torch.stack([self.drawn(stream, h, arm, k, seed, metric, coder) for h in hooks for k in ks])
                for seed in self.seeds
            ])
            for arm in (top, below)
        )  # fmt: skip
        if not ((top_SCB[..., 0] > 0) & (below_SCB[..., 0] > 0)).all():
            return NOTHING
        found = over_seeds([(each[0].item(), each[1:]) for each in log_ratio(top_SCB, below_SCB).mean(1)])
        return Observed(*(math.exp(x) for x in (found.value, found.low, found.high)))

    def planted(self, bipolar: Sequence[float]) -> Observed:
        """|bipolar_share - what is planted|, of each world a mean over seeds; value and ends are the largest of all."""
        ends_W3 = []
        for share in bipolar:
            off = {
                arm.seed: (found - share).abs()
                for (stream, _, arm, metric, _), found in self.records.drawn.items()
                if (stream, metric) == (world_stream(share), "bipolar_share")
            }
            found = self.seedwise(off.__getitem__)
            ends_W3.append((found.value, found.low, found.high))
        return Observed(*torch.tensor(ends_W3, dtype=torch.float64).amax(0).tolist())

    def shared_context(self, hooks: list[str], ks: list[int]) -> Observed:
        """Shared less null of the directions: of each seed a mean over the cells where it is known.

        Only seeds are drawn, not documents.
        """
        metrics = ("shared_context", "shared_context_null")
        of_seeds = []
        for seed in self.seeds:
            each = [
                [self.records.value("real", h, Arm(DIRECTIONS, k, seed), m, "own") for m in metrics]
                for h in hooks
                for k in ks
            ]
            shared_C, null_C = torch.tensor(each, dtype=torch.float64).unbind(1)
            of_seeds.append((shared_C - null_C).nanmean())
        known = [(one.item(), one.expand(DRAWS)) for one in of_seeds if one.isfinite()]
        return over_seeds(known) if known else NOTHING


def log_ratio(top: Tensor, below: Tensor) -> Tensor:
    """log(top / below) within log LARGEST of 0; its bound where one of them is not above 0, and 0 where neither is."""
    log = (top.clamp(min=0) / below.clamp(min=0)).log().clamp(-math.log(LARGEST), math.log(LARGEST))
    return torch.where((top <= 0) & (below <= 0), 0.0, log)
