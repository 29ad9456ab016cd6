"""Reproduced: the latents of a dictionary that others, trained from other seeds and on other documents, have too.

N test vectors, M training vectors, D site width, L and K latents of two dictionaries, C latents looked at, G documents,
B draws, U values seen in test (such as tokens). All dictionaries are of rays: directions are matched by their cosine,
not by its size.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from scipy.sparse import coo_array, csc_array, csr_array
from torch import Tensor

from rayscope.console import track
from rayscope.dictionaries import Codes, Dictionary
from rayscope.evaluation.matching import mutual_nearest
from rayscope.evaluation.reconstruction import pieces
from rayscope.features.token_features import collect
from rayscope.features.tokens import Labels
from rayscope.streams.stream import Batch, Stream

CHUNK = 2**22  # numbers of a dense matrix at one time
COUNTS = ("all", "current_token", "previous_token", "beyond_tokens", "beyond_tokens_and_position")
Counts = dict[tuple[float, str], Tensor]  # {(tau, one of COUNTS): [B]}
Halves = Sequence[Sequence[Dictionary]]  # [h][s]: the dictionary of seed s trained on half h


@dataclass(frozen=True)
class HeldOut:
    """Test vectors, where activations are compared; weights_BG: of their documents in order of their number."""

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


@dataclass(frozen=True)
class Reading:
    """Something known of each vector, such as its token.

    places_N, places_M: of a vector's value among the U that occur in test; U for any other.
    """

    places_N: Tensor
    places_M: Tensor

    @classmethod
    def of(cls, test_N: Tensor, seen_M: Tensor) -> "Reading":
        values_U, places_N = test_N.unique(return_inverse=True)
        places_M = torch.searchsorted(values_U, seen_M).clamp(max=len(values_U) - 1)
        return cls(places_N, torch.where(values_U[places_M] == seen_M, places_M, len(values_U)))

    @cached_property
    def counts_U(self) -> Tensor:
        """One more than U: the last is of all values that do not occur in test."""
        return self.places_M.bincount(minlength=int(self.places_N.max()) + 2)

    def means(self, seen_MC: coo_array) -> Tensor:
        """[N, C]: the mean of a latent's activations over the training vectors of a test vector's value; over all, if
        training had none."""
        U, C = len(self.counts_U), seen_MC.shape[1]  # type: ignore[index]
        vectors, latents = seen_MC.coords
        cells = self.places_M.numpy()[vectors] * C + latents
        sums_UC = torch.from_numpy(np.bincount(cells, seen_MC.data, U * C)).view(U, C)
        means_UC = sums_UC / self.counts_U.clamp_min(1)[:, None]
        means_UC[self.counts_U == 0] = sums_UC.sum(0) / len(self.places_M)
        return means_UC[self.places_N]


@dataclass(frozen=True)
class Coded:
    """The directions of a dictionary, and its codes of test and of training vectors."""

    directions_LD: Tensor
    test_NL: csc_array
    seen_ML: csc_array

    def test(self, latents_C: Tensor) -> Tensor:
        """[N, C], dense, float64."""
        return torch.from_numpy(self.test_NL[:, latents_C.numpy()].toarray()).double()


def by_latent(codes: Codes) -> csc_array:
    shape = (len(codes), codes.latents)
    return csr_array((codes.values_M.numpy(), codes.indices_M.numpy(), codes.offsets.numpy()), shape).tocsc()


def reproduced(
    dictionaries: Mapping[str, Halves],
    seen: Stream | Collection[Batch],
    held_out: HeldOut,
    *,
    taus: Sequence[float],
    explained: float,
) -> dict[str, list[Counts]]:
    """For each site.key and seed, how many of its dictionary's latents others have too: the mean over the two halves.

    A latent must be matched both in the same half by the next seed and in the other half by the seed before (the same
    seed, if there are two). No match is between two dictionaries of one seed, which begin at the same directions. Two
    latents match if each is the other's nearest by cosine, so that none serves twice, and are counted at tau if cosine
    and correlation of activations over test vectors are at least tau in both matches.
    COUNTS: all of them; those of which the mean given the current token, or the previous one, explains more than
    `explained` of the variance (see `explained_variance`; one may be in both); those that neither explains; and of
    those the ones that the position does not explain either.
    seen: batches of training text that means are taken on, read once; its codes are kept, 8 bytes for each. The rarer a
    token there, the noisier its mean, so that with little of it directions of rare tokens count as beyond tokens.
    """
    for halves in dictionaries.values():
        check_seeds(halves)
    placed = {
        key: {(half, seed): one for half in (0, 1) for seed, one in enumerate(halves[half])}
        for key, halves in dictionaries.items()
    }
    known, seen_codes = collect(track(seen, "means by token", unit="batches"), placed)
    here, test_codes = collect(pieces(held_out.test), placed)
    readings = [Reading.of(test_N, seen_M) for test_N, seen_M in zip(fields(here), fields(known), strict=True)]
    found: dict[str, list[Counts]] = {}
    for key, halves in dictionaries.items():
        coded = {
            place: Coded(one.directions, by_latent(test_codes[key].pop(place)), by_latent(seen_codes[key].pop(place)))
            for place, one in placed[key].items()
        }
        seeds, found[key] = len(halves[0]), []
        for seed in range(seeds):
            both = [
                counts(
                    coded[half, seed],
                    (coded[half, (seed + 1) % seeds], coded[1 - half, (seed - 1) % seeds]),
                    readings,
                    held_out,
                    taus,
                    explained,
                )
                for half in (0, 1)
            ]
            found[key].append({name: (both[0][name] + both[1][name]) / 2 for name in both[0]})
    return found


def check_seeds(halves: Halves) -> None:
    if len(halves) != 2 or len(halves[0]) < 2 or len(halves[1]) != len(halves[0]):
        sizes = " and ".join(str(len(half)) for half in halves)
        raise ValueError(f"{sizes} dictionaries; two halves need the same seeds, at least two")


def fields(labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    return labels.current_N, labels.previous_N, labels.positions_N


def counts(
    base: Coded,
    others: tuple[Coded, Coded],
    readings: Sequence[Reading],
    held_out: HeldOut,
    taus: Sequence[float],
    explained: float,
) -> Counts:
    matches = [mutual_nearest(base.directions_LD, other.directions_LD) for other in others]
    cosine_L = torch.minimum(matches[0][1], matches[1][1])
    total: Counts = {name: held_out.weights_BG.new_zeros(len(held_out.weights_BG)) for name in product(taus, COUNTS)}
    for chosen_C in candidates(cosine_L >= min(taus), len(held_out.test)):
        a_NC, seen_MC = base.test(chosen_C), base.seen_ML[:, chosen_C.numpy()].tocoo()
        alike_BC = torch.minimum(*(
            correlation(held_out, a_NC, other.test(partner_L[chosen_C]))
            for other, (partner_L, _) in zip(others, matches, strict=True)
        ))  # fmt: skip
        alike_BC = alike_BC.minimum(cosine_L[chosen_C])
        current_BC, previous_BC, position_BC = (
            explained_variance(held_out, a_NC, reading.means(seen_MC)) > explained for reading in readings
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


def candidates(kept_L: Tensor, vectors: int) -> Iterator[Tensor]:
    """Their numbers, so many at a time that a dense column each is at most CHUNK numbers."""
    chosen = kept_L.nonzero()[:, 0]
    return iter(chosen.split(max(1, CHUNK // vectors))) if len(chosen) else iter(())


def correlation(held_out: HeldOut, a_NC: Tensor, b_NC: Tensor) -> Tensor:
    """[B, C]: Pearson's, over the vectors of each draw of documents; 0 where one does not vary."""
    n_B1, sum_of = held_out.vectors_B1, held_out.by_document
    a_BC, b_BC = sum_of(a_NC) / n_B1, sum_of(b_NC) / n_B1
    covariance_BC = sum_of(a_NC * b_NC) / n_B1 - a_BC * b_BC
    variances_BC = (sum_of(a_NC.square()) / n_B1 - a_BC.square()) * (sum_of(b_NC.square()) / n_B1 - b_BC.square())
    return torch.where(variances_BC > 0, covariance_BC / variances_BC.clamp_min(1e-300).sqrt(), 0.0)


def explained_variance(held_out: HeldOut, a_NC: Tensor, predicted_NC: Tensor) -> Tensor:
    """[B, C]: 1 - sum (a - predicted)^2 / sum (a - mean a)^2, the mean that of all test vectors. Out of sample: below 0
    where the prediction is worse than the mean."""
    spread_BC = held_out.by_document((a_NC - a_NC.mean(0)).square())
    return 1 - held_out.by_document((a_NC - predicted_NC).square()) / spread_BC
