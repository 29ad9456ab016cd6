"""Hard negatives: the other tokens that a detector takes for its own, and how well it tells them apart.

N vectors, T tokens (a detector each), C candidates, H hard negatives of a detector.
Next to a million other vectors any detector is specific; a latent that fires after ' and' and after ' or' is exposed
only by comparing these two.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

HARD = 5  # tokens a detector
OCCURRENCES = 10  # of a candidate, at least, in the validation and in the test text


@dataclass(frozen=True)
class Candidates:
    """The C token ids that may be hard negatives, ascending: those that occur often enough in both texts."""

    ids_C: Tensor

    @classmethod
    def of(cls, seen_N: Tensor, new_N: Tensor, occurrences: int = OCCURRENCES) -> "Candidates":
        """seen_N, new_N: the token ids of the vectors of validation and of test."""
        vocabulary = int(torch.cat([seen_N, new_N]).max()) + 1
        counts = torch.minimum(*(ids_N.bincount(minlength=vocabulary) for ids_N in (seen_N, new_N)))
        return cls((counts >= occurrences).nonzero()[:, 0])

    def __len__(self) -> int:
        return len(self.ids_C)

    def places(self, ids: Tensor) -> Tensor:
        """Where each id is among the candidates; C for an id that is not."""
        place = torch.searchsorted(self.ids_C, ids)
        known = F.pad(self.ids_C, (0, 1), value=-1)[place] == ids
        return torch.where(known, place, len(self))


def fires_most(
    scores_NT: Tensor, thresholds_T: Tensor, seen_N: Tensor, tokens_T: Tensor, candidates: Candidates
) -> Tensor:
    """(T, H): for each detector the ids of the candidates, its own token aside, on whose vectors it most often says yes
    (score > threshold); of equal ones the greatest mean score, then the lowest id. -1 where no candidate is left.

    seen_N: the token id of each vector.
    """
    places_N, tokens = candidates.places(seen_N), len(tokens_T)
    yes_CT = _means(scores_NT.double() > thresholds_T, places_N, len(candidates))
    mean_CT = _means(scores_NT, places_N, len(candidates))
    own_CT = candidates.ids_C[:, None] == tokens_T
    order_CT = mean_CT.argsort(dim=0, descending=True, stable=True)
    by_yes_CT = yes_CT.masked_fill(own_CT, -1).gather(0, order_CT).argsort(dim=0, descending=True, stable=True)
    order_CT = order_CT.gather(0, by_yes_CT)[:HARD]
    hard_CT = candidates.ids_C[order_CT].masked_fill(own_CT.gather(0, order_CT), -1)
    return F.pad(hard_CT.T, (0, HARD - len(hard_CT)), value=-1).reshape(tokens, HARD)


def _means(values_NT: Tensor, places_N: Tensor, candidates: int) -> Tensor:
    """[C, T]: the mean over each candidate's vectors."""
    sums_CT = torch.zeros(candidates + 1, values_NT.shape[1], dtype=torch.float64)
    sums_CT.index_add_(0, places_N, values_NT.double())
    return sums_CT[:candidates] / places_N.bincount(minlength=candidates + 1)[:candidates, None]


def hard_auroc(scores_NT: Tensor, new_N: Tensor, tokens_T: Tensor, hard_TH: Tensor) -> Tensor:
    """(T, H): AUROC of each detector between the vectors of its own token and those of each of its hard negatives; NaN
    without one or the other."""
    order_N = new_N.argsort(stable=True)
    ids_N = new_N[order_N]
    wanted_TW = torch.cat([tokens_T[:, None], hard_TH], 1)
    starts_TW, stops_TW = (torch.searchsorted(ids_N, wanted_TW.contiguous(), right=right) for right in (False, True))
    auroc_TH = torch.full(hard_TH.shape, torch.nan, dtype=torch.float64)
    for t, (starts, stops) in enumerate(zip(starts_TW.tolist(), stops_TW.tolist(), strict=True)):
        rows = [order_N[start:stop] for start, stop in zip(starts, stops, strict=True)]
        own, *negatives = (scores_NT[r, t] for r in rows)
        if not len(own):
            continue
        own = own.sort().values
        others = torch.cat(negatives)
        above = len(own) - (torch.searchsorted(own, others) + torch.searchsorted(own, others, right=True)) / 2
        for h, part in enumerate(above.double().split([len(n) for n in negatives])):
            auroc_TH[t, h] = part.mean() / len(own)
    return auroc_TH
