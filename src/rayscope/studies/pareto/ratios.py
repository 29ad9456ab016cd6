"""dCE of baselines over that of the rays at equal bits, over the same resamples of documents.

B bootstrap draws.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rayscope.evaluation.entry import Entry
from rayscope.evaluation.measurement import Measurement
from rayscope.studies.intervals import resamples

LARGEST = 1000.0  # a ratio of losses; the denominator can vanish


class Ratios:
    def __init__(self, measured: Measurement, entries: Sequence[Entry], draws: int):
        self.measured, self.entries = measured, entries
        ones = torch.ones(1, measured.documents, dtype=torch.float64)
        self.weights_BG = torch.cat([ones, resamples(measured.documents, draws)])

    def dce(self, entry: Entry) -> Tensor:
        """[1 + B]: of all documents, then of each draw."""
        return self.measured.statistics(entry)["dce"](self.weights_BG)

    def least(self, methods: Sequence[str], ks: Iterable[int], seed: int, coder: str = "own") -> tuple[float, Tensor]:
        """(value, [B]): the least over sites, ks and methods, of baselines fitted with the seed of the rays.

        coder: of the rays; baselines have their own.
        """
        ratios = []
        for rays in self.entries:
            if (rays.method, rays.coder, rays.seed) != ("rays", coder, seed) or rays.k is None or rays.k not in ks:
                continue
            here = [entry for entry in self.entries if entry.site == rays.site and entry.coder == "own"]
            rivals = [at_bits(here, method, rays.dictionary.bits(), seed) for method in methods]
            ratios += [ratio(self.dce(rival), self.dce(rays)) for rival in rivals if rival]
        if not ratios:
            raise ValueError(f"study.run.baselines: none of {', '.join(methods)} is measured at the bits of the rays")
        least_B = torch.stack(ratios).amin(0)
        return least_B[0].item(), least_B[1:]


def ratio(theirs: Tensor, mine: Tensor) -> Tensor:
    """theirs / mine; where mine costs nothing, LARGEST if theirs costs something, and 0, no gain, if neither does."""
    free = torch.where(theirs > 0, LARGEST, 0.0)
    return torch.where(mine > 0, theirs / mine, free).clamp(-LARGEST, LARGEST)


def at_bits(entries: Iterable[Entry], method: str, bits: float, seed: int) -> Entry | None:
    """The method's entry of the fewest bits at or above these, unless one code less would be enough.

    Fitted with this seed, or, if the method was fitted once, with whatever it was.
    """
    fitted = [entry for entry in entries if entry.method == method]
    if len({entry.seed for entry in fitted}) > 1:
        fitted = [entry for entry in fitted if entry.seed == seed]
    enough = [entry for entry in fitted if entry.dictionary.bits() >= bits - 1e-9]
    if not enough:
        return None
    nearest = min(enough, key=lambda entry: entry.dictionary.bits()).dictionary
    less = nearest.bits(nearest.k - 1) if nearest.k > 1 else 0.0
    return next(entry for entry in enough if entry.dictionary is nearest) if less < bits else None
