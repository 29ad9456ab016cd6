"""dCE of rays and of the best of a family on their fronts, over the same resamples of documents.

B bootstrap draws, P points, R rates.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from rayscope.evaluation.entry import Entry
from rayscope.evaluation.fronts import Contest, Front
from rayscope.evaluation.measurement import Measurement
from rayscope.studies.intervals import resamples
from rayscope.studies.pareto.ratios import ratio

VALUE_BITS = 4  # of a value at the rate where fronts are read: more change dCE little


class Rates:
    def __init__(self, measured: Measurement, entries: Sequence[Entry], draws: int):
        self.measured, self.entries = measured, entries
        ones = torch.ones(1, measured.documents, dtype=torch.float64)
        self.weights_BG = torch.cat([ones, resamples(measured.documents, draws)])

    def front(self, entries: Iterable[Entry]) -> Front | None:
        """Of all points of these entries that were spliced; loss_P is (1 + B, P): of all documents, then each draw."""
        bits, losses = [], []
        for entry in entries:
            meter = self.measured.meter(entry)
            for value_bits in meter.codec.value_bits:
                statistics = self.measured.statistics(entry, value_bits=value_bits)
                if "dce" in statistics:
                    bits.append(meter.whole(value_bits=value_bits)["bits"])
                    losses.append(statistics["dce"](self.weights_BG))
        return Front.of(bits, torch.stack(losses, -1).numpy()) if bits else None

    def contests(self, coder: str, family: str, seed: int, bits: float) -> list[Contest]:
        """At each site: rays of a seed under a coder against every method and coder of a family, fitted with that seed,
        or with whatever it was. bits: a rate that is looked at. Without the sites that have no rate in common."""
        found = []
        for site in dict.fromkeys(entry.site for entry in self.entries):
            here = [entry for entry in self.entries if entry.site == site]
            rays = self.front(e for e in here if (e.method, e.coder, e.seed) == ("rays", coder, seed))
            methods: dict[tuple[str, str], list[Entry]] = {}
            for entry in here:
                if entry.family == family and entry.role == "baseline":
                    methods.setdefault((entry.method, entry.coder), []).append(entry)
            fronts = {" ".join(key): self.front(of_seed(mine, seed)) for key, mine in methods.items()}
            rivals = {name: front for name, front in fronts.items() if front}
            if rays and (contest := Contest.of(rays, rivals, [bits])):
                found.append(contest)
        return found

    def ratio_at(self, coder: str, family: str, seed: int, bits: float) -> tuple[float, Tensor]:
        """(value, [B]): the least over sites of the family's dCE over that of rays at a rate; NaN if no site has it."""
        ratios = []
        for contest in self.contests(coder, family, seed, bits):
            theirs_RB, ours_RB = torch.from_numpy(contest.theirs_R).T, torch.from_numpy(contest.ours_R).T
            ratios += [ratio(theirs_RB[r], ours_RB[r]) for r in np.flatnonzero(contest.rates_R == bits)]
        return least(ratios, len(self.weights_BG))

    def level(self, coder: str, family: str, seed: int, bits: float) -> tuple[float, Tensor]:
        """(value, [B]): the least over sites of the greatest rate up to which rays cost no more than the family; the
        greatest rate of all if they never do, and the least if they do there."""
        levels = []
        for contest in self.contests(coder, family, seed, bits):
            more_BR = contest.ours_R > contest.theirs_R
            first_B = np.where(more_BR.any(1), more_BR.argmax(1), len(contest.rates_R))
            levels.append(torch.from_numpy(contest.rates_R[np.maximum(first_B - 1, 0)]))
        return least(levels, len(self.weights_BG))


def of_seed(entries: Sequence[Entry], seed: int) -> list[Entry]:
    """Those fitted with this seed, or, of a method that was fitted once, all."""
    several = len({entry.seed for entry in entries}) > 1
    return [entry for entry in entries if not several or entry.seed == seed]


def headline_rate(entries: Iterable[Entry], k: int) -> float:
    """Bits of rays of this k with values at VALUE_BITS: the least of the sites'."""
    return min(e.dictionary.bits(value_bits=VALUE_BITS) for e in entries if e.method == "rays" and e.k == k)


def least(values: Sequence[Tensor], size: int) -> tuple[float, Tensor]:
    least_B = torch.stack(list(values)).amin(0) if values else torch.full((size,), torch.nan, dtype=torch.float64)
    return least_B[0].item(), least_B[1:]
