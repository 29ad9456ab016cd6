"""Reproduced: the latents of a dictionary that others, trained from other seeds and on other documents, have too.

N vectors, D site width, L and M latents of two dictionaries, C latents looked at, G documents, B draws, U tokens seen.
All dictionaries are of rays: directions are matched by their cosine, not by its size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.activations import Batch
from rayscope.detection import columns
from rayscope.dictionaries import Codes, Dictionary
from rayscope.features import collect
from rayscope.reconstruction import pieces

CHUNK = 2**22  # numbers of a dense matrix at one time
COUNTS = ("all", "current_token", "previous_token", "beyond_tokens", "beyond_tokens_and_position")
Counts = dict[tuple[float, str], Tensor]  # {(tau, one of COUNTS): [B]}


@dataclass(frozen=True)
class HeldOut:
    """validation: where means by token are taken; test: where activations are compared. weights_BG: of the test documents
    in order of their number."""

    validation: Batch
    test: Batch
    weights_BG: Tensor

    @cached_property
    def documents_N(self) -> Tensor:
        return self.test.documents_N.unique(return_inverse=True)[1]

    def by_document(self, x_NC: Tensor) -> Tensor:
        """[B, C]: the sum over vectors under each draw of documents."""
        sums_GC = x_NC.new_zeros(self.weights_BG.shape[1], x_NC.shape[1]).index_add_(0, self.documents_N, x_NC)
        return self.weights_BG @ sums_GC

    @cached_property
    def vectors_B1(self) -> Tensor:
        return self.by_document(torch.ones(len(self.test), 1, dtype=torch.float64))


class Coded:
    """A dictionary with its codes of the held-out vectors of a site, which are made when they are asked for."""

    def __init__(self, dictionary: Dictionary, key: str, held_out: HeldOut):
        self.dictionary, self.key, self.held_out = dictionary, key, held_out

    @cached_property
    def test(self) -> Codes:
        return self._codes(self.held_out.test)

    @cached_property
    def validation(self) -> Codes:
        return self._codes(self.held_out.validation)

    def _codes(self, batch: Batch) -> Codes:
        return collect(pieces(batch), {self.key: {"it": self.dictionary}})[1][self.key]["it"]


def reproduced(
    halves: Sequence[Sequence[Dictionary]], key: str, held_out: HeldOut, *, taus: Sequence[float], explained: float
) -> list[Counts]:
    """For each seed s, how many latents of its dictionary, mean over the two halves that it was trained on, are matched
    both in the same half by the next seed and in the other half by the seed before (the same, where there are two).

    halves[h][s]: the dictionary of seed s trained on half h. No match is between two dictionaries of one seed, which
    begin at the same directions. Two latents match where each is the other's nearest by cosine, so that none serves
    twice, and are counted at tau where cosine and correlation of activations over test vectors, in both matches, are
    at least tau. Of `all`, those whose activation is explained by its mean given the current, the previous token for
    more than `explained` of its variance (see `explained_variance`; one may be in both), and those by neither, without
    and with a third such reading, the position.
    """
    seeds = len(halves[0])
    if len(halves) != 2 or seeds < 2 or len(halves[1]) != seeds:
        raise ValueError(
            f"{' and '.join(str(len(half)) for half in halves)} dictionaries; two halves need the same seeds, at least two"
        )
    coded = [[Coded(dictionary, key, held_out) for dictionary in half] for half in halves]
    found = []
    for seed in range(seeds):
        both = [
            counts(
                coded[half][seed],
                (coded[half][(seed + 1) % seeds], coded[1 - half][(seed - 1) % seeds]),
                taus,
                explained,
            )
            for half in (0, 1)
        ]
        found.append({name: (both[0][name] + both[1][name]) / 2 for name in both[0]})
    return found


def counts(base: Coded, others: tuple[Coded, Coded], taus: Sequence[float], explained: float) -> Counts:
    held_out = base.held_out
    matches = [mutual_nearest(base.dictionary.directions, other.dictionary.directions) for other in others]
    cosine_L = torch.minimum(matches[0][1], matches[1][1])
    total: Counts = {name: held_out.weights_BG.new_zeros(len(held_out.weights_BG)) for name in product(taus, COUNTS)}
    for chosen_C in candidates(cosine_L >= min(taus), len(held_out.test)):
        a_NC = columns(base.test, chosen_C).double()
        alike_BC = torch.minimum(*(
            correlation(held_out, a_NC, columns(other.test, partner_L[chosen_C]).double())
            for other, (partner_L, _) in zip(others, matches, strict=True)
        ))  # fmt: skip
        alike_BC = alike_BC.minimum(cosine_L[chosen_C])
        seen_MC = columns(base.validation, chosen_C).double()
        current_BC, previous_BC, position_BC = (
            explained_variance(held_out, a_NC, means_by(seen, seen_MC, here)) > explained
            for seen, here in zip(readings(held_out.validation), readings(held_out.test), strict=True)
        )
        kinds = {
            "all": torch.ones_like(current_BC),
            "current_token": current_BC,
            "previous_token": previous_BC,
            "beyond_tokens": ~(current_BC | previous_BC),
            "beyond_tokens_and_position": ~(current_BC | previous_BC | position_BC),
        }
        for tau, (name, kind_BC) in product(taus, kinds.items()):
            total[tau, name] += ((alike_BC >= tau) & kind_BC).double().sum(1)
    return total


def readings(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.tokens_N, batch.previous_N, batch.positions_N


def candidates(kept_L: Tensor, vectors: int) -> Iterator[Tensor]:
    """Their numbers, so many at a time that a dense column each is at most CHUNK numbers."""
    chosen = kept_L.nonzero()[:, 0]
    return iter(chosen.split(max(1, CHUNK // vectors))) if len(chosen) else iter(())


def mutual_nearest(A_LD: Tensor, B_MD: Tensor) -> tuple[Tensor, Tensor]:
    """(partner_L, cosine_L): the row of B nearest to each row of A where that row's nearest is this one; else -1, -1."""
    A_LD, B_MD = (F.normalize(W.detach().float(), eps=1e-30) for W in (A_LD, B_MD))
    nearest_L, cosine_L = nearest(A_LD, B_MD)
    back_M, _ = nearest(B_MD, A_LD)
    mutual_L = back_M[nearest_L] == torch.arange(len(A_LD))
    return torch.where(mutual_L, nearest_L, -1), torch.where(mutual_L, cosine_L, -1.0)


def nearest(A_LD: Tensor, B_MD: Tensor) -> tuple[Tensor, Tensor]:
    parts = [(A_CD @ B_MD.T).max(1) for A_CD in A_LD.split(max(1, CHUNK // len(B_MD)))]
    return torch.cat([part.indices for part in parts]).cpu(), torch.cat([part.values for part in parts]).cpu()


def correlation(held_out: HeldOut, a_NC: Tensor, b_NC: Tensor) -> Tensor:
    """[B, C]: Pearson's, over the vectors of each draw of documents; 0 where one does not vary."""
    n_B1, sum_of = held_out.vectors_B1, held_out.by_document
    a_BC, b_BC = sum_of(a_NC) / n_B1, sum_of(b_NC) / n_B1
    covariance_BC = sum_of(a_NC * b_NC) / n_B1 - a_BC * b_BC
    variances_BC = (sum_of(a_NC.square()) / n_B1 - a_BC.square()) * (sum_of(b_NC.square()) / n_B1 - b_BC.square())
    return torch.where(variances_BC > 0, covariance_BC / variances_BC.clamp_min(1e-300).sqrt(), 0.0)


def means_by(seen_M: Tensor, seen_MC: Tensor, here_N: Tensor) -> Tensor:
    """[N, C]: the mean of a latent's activations where it was seen at the token that is here; of all, at tokens not seen."""
    tokens_U, place_M = seen_M.unique(return_inverse=True)
    sums_UC = seen_MC.new_zeros(len(tokens_U) + 1, seen_MC.shape[1]).index_add_(0, place_M, seen_MC)
    means_UC = sums_UC / F.pad(place_M.bincount(), (0, 1), value=1)[:, None]
    means_UC[-1] = seen_MC.mean(0)
    place_N = torch.searchsorted(tokens_U, here_N).clamp(max=len(tokens_U) - 1)
    return means_UC[torch.where(tokens_U[place_N] == here_N, place_N, len(tokens_U))]


def explained_variance(held_out: HeldOut, a_NC: Tensor, predicted_NC: Tensor) -> Tensor:
    """[B, C]: 1 - sum (a - predicted)^2 / sum (a - mean a)^2, the mean that of all test vectors. Out of sample: below 0
    where the prediction is worse than the mean."""
    spread_BC = held_out.by_document((a_NC - a_NC.mean(0)).square())
    return 1 - held_out.by_document((a_NC - predicted_NC).square()) / spread_BC
