"""How well one latent detects a token: AUROC, thresholds and the choice among all latents. Pure functions.

N vectors, L latents, M non-zero codes, T tokens, U different latents.
A labelling is classes_N: the place of each vector's token among the T, or T for any other token; a token's positives
are the vectors of its class, its negatives all others. A detector is a latent and a sign; it says yes where
sign * z > threshold.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries.base import Codes


class Ranked:
    """The codes of every latent in rising order of sign * z, sorted once for any number of labellings.

    The zeros of a latent are one tie group between its negative and its positive entries and are never written out,
    so that all L x T pairs cost a scatter over the M entries. Counts and mid-ranks are exact (integers, halves):
    results do not depend on the order of summation.
    """

    def __init__(self, codes: Codes, sign: int = 1):
        kept = codes.values_M != 0
        values_M, latents_M, rows_M = (
            codes.values_M[kept] * sign,
            codes.indices_M[kept].long(),
            codes.rows_M[kept],
        )
        if not values_M.isfinite().all():
            raise ValueError("codes hold NaN or inf; a detector needs finite codes")
        order_M = torch.from_numpy(np.argsort(values_M.numpy()))  # several times faster than torch's
        order_M = order_M[latents_M[order_M].argsort(stable=True)]
        self.values_M, self.latents_M, self.rows_M = values_M[order_M].double(), latents_M[order_M], rows_M[order_M]
        self.vectors, self.latents = len(codes), codes.latents

        entries_L = self.latents_M.bincount(minlength=self.latents)
        self.starts_L = entries_L.cumsum(0) - entries_L
        self.zeros_L = self.vectors - entries_L
        self.negatives_L = self.latents_M[self.values_M < 0].bincount(minlength=self.latents)

        first_M = torch.ones_like(self.latents_M, dtype=torch.bool)
        first_M[1:] = (self.latents_M.diff() != 0) | (self.values_M.diff() != 0)
        starts = first_M.nonzero()[:, 0]
        ties = F.pad(starts, (0, 1), value=len(order_M)).diff()
        group_M = first_M.cumsum(0) - 1
        start_M = starts[group_M]
        zeros_M = self.zeros_L[self.latents_M]
        lower_M = start_M - self.starts_L[self.latents_M] + torch.where(self.values_M > 0, zeros_M, 0)
        self.midrank_M = lower_M + (ties[group_M].double() + 1) / 2
        self.at_least_M = self.vectors - lower_M  # vectors with this score or a greater one
        self.below_M = self._thresholds(start_M, zeros_M)

    def _thresholds(self, start_M: Tensor, zeros_M: Tensor) -> Tensor:
        """A threshold just under each entry: half way to the next lower score, or 0 (fires at all) where that is 0."""
        has_lower_M = start_M > self.starts_L[self.latents_M]
        lower_M = self.values_M[(start_M - 1).clamp(min=0)]
        halfway_M = torch.where(has_lower_M, (lower_M + self.values_M) / 2, -torch.inf)
        over_zeros_M = (self.values_M > 0) & (zeros_M > 0) & ~(has_lower_M & (lower_M > 0))
        return torch.where(over_zeros_M, 0.0, halfway_M)

    def _pairs(self, classes_N: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of entries whose vector has one of the tokens: which, their (latent, token) pair; hits_LT, positives_T."""
        classes_M = classes_N[self.rows_M]
        entries = (classes_M < tokens).nonzero()[:, 0]
        pairs = self.latents_M[entries] * tokens + classes_M[entries]
        hits_LT = pairs.bincount(minlength=self.latents * tokens).view(self.latents, tokens)
        return entries, pairs, hits_LT, positives(classes_N, tokens)

    def auroc(self, classes_N: Tensor, tokens: int) -> Tensor:
        """[L, T]: (R - P(P + 1)/2) / (P (N - P)), R the sum of the P positives' mid-ranks; NaN without both classes."""
        entries, pairs, hits_LT, positives_T = self._pairs(classes_N, tokens)
        ranks_LT = pairs.bincount(self.midrank_M[entries], self.latents * tokens).view_as(hits_LT)
        zeros_midrank_L = self.negatives_L + (self.zeros_L.double() + 1) / 2
        ranks_LT = ranks_LT + (positives_T - hits_LT) * zeros_midrank_L[:, None]
        positives_T = positives_T.double()
        return (ranks_LT - positives_T * (positives_T + 1) / 2) / (positives_T * (self.vectors - positives_T))

    def best_cut(self, classes_N: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """[L, T] twice: the greatest gain over all thresholds, P Q (recall + specificity - 1) for P positives and Q
        negatives as an exact integer, and its threshold; of equal ones the greatest.

        At the best threshold the lowest score that is let in belongs to a positive (or to zero), so the M entries and
        the zeros are all the candidates there are. Letting nothing in has gain 0 and is always one of them.
        """
        entries, pairs, hits_LT, positives_T = self._pairs(classes_N, tokens)
        order = pairs.argsort(stable=True)
        entries, pairs = entries[order], pairs[order]
        values, classes = self.values_M[entries], pairs % tokens
        place = torch.arange(len(pairs))
        silent_LT = positives_T - hits_LT  # positives at zero
        true = hits_LT.view(-1).cumsum(0)[pairs] - place + torch.where(values < 0, silent_LT.view(-1)[pairs], 0)
        gain = self._gain(true, self.at_least_M[entries], positives_T[classes])

        best = gain.new_zeros(hits_LT.numel()).scatter_reduce_(0, pairs, gain, "amax")
        winners = ((gain == best[pairs]) & (gain > 0)).nonzero()[:, 0]
        last = torch.full_like(best, -1).scatter_reduce_(0, pairs[winners], entries[winners], "amax").view_as(hits_LT)
        thresholds_LT = self.greatest_L[:, None].expand(hits_LT.shape).clone()
        thresholds_LT[last >= 0] = self.below_M[last[last >= 0]]
        gain_LT = best.view_as(hits_LT)
        if not self.negatives_L.any():
            return gain_LT, thresholds_LT
        below_zero = pairs[values < 0].bincount(minlength=hits_LT.numel()).view_as(hits_LT)
        zero_LT = self._gain(positives_T - below_zero, (self.vectors - self.negatives_L)[:, None], positives_T)
        has_cut_L = (self.negatives_L > 0) & (self.zeros_L > 0)
        cut_L = torch.where(has_cut_L, self._value(self.starts_L + self.negatives_L - 1) / 2, -torch.inf)[:, None]
        better_LT = (zero_LT > gain_LT) | ((zero_LT == gain_LT) & (zero_LT > 0) & (cut_L > thresholds_LT))
        better_LT &= has_cut_L[:, None]
        return torch.where(better_LT, zero_LT, gain_LT), torch.where(better_LT, cut_L, thresholds_LT)

    def _gain(self, true: Tensor, let_in: Tensor, positives: Tensor) -> Tensor:
        """P Q (TP/P - FP/Q) = TP Q - FP P."""
        return true * (self.vectors - positives) - (let_in - true) * positives

    @property
    def greatest_L(self) -> Tensor:
        """The greatest score of each latent: the threshold that lets nothing in."""
        entries_L = self.vectors - self.zeros_L
        last_L = self._value(self.starts_L + entries_L - 1)
        return torch.where(self.zeros_L > 0, last_L.clamp(min=0) * (entries_L > 0), last_L)

    def _value(self, places: Tensor) -> Tensor:
        return F.pad(self.values_M, (0, 1))[places.clamp(min=0)]  # one more, for codes without an entry


@dataclass(frozen=True)
class Detectors:
    """One detector per token, as chosen, and what it scored where it was chosen; `found_T` is False (and the rest
    without meaning) where no choice could be made."""

    latents_T: Tensor
    signs_T: Tensor
    thresholds_T: Tensor
    balanced_accuracy_T: Tensor
    found_T: Tensor


def positives(classes_N: Tensor, tokens: int) -> Tensor:
    return classes_N.bincount(minlength=tokens + 1)[:tokens]


def choose(ranked: Sequence[Ranked], classes_N: Tensor, tokens: int) -> Detectors:
    """The best detector of each token among all latents, `ranked` for sign +1 and, for signed codes, for -1 as well.

    The best has the greatest balanced accuracy at its best threshold; of equal ones the greatest AUROC, then the
    lowest latent, then sign +1.
    """
    cuts = [r.best_cut(classes_N, tokens) for r in ranked]
    gain = torch.stack([gain_LT for gain_LT, _ in cuts], 1).flatten(0, 1)  # latent 0 +, latent 0 -, latent 1 +, ...
    thresholds = torch.stack([threshold_LT for _, threshold_LT in cuts], 1).flatten(0, 1)
    auroc_LT = ranked[0].auroc(classes_N, tokens)
    auroc = torch.stack([auroc_LT, 1 - auroc_LT][: len(ranked)], 1).flatten(0, 1).nan_to_num(0.0)
    chosen_T = auroc.masked_fill(gain < gain.amax(0), -torch.inf).argmax(0)
    place = (chosen_T, torch.arange(tokens))
    positives_T = positives(classes_N, tokens)
    pairs_T = positives_T * (len(classes_N) - positives_T)
    signs_T = 1 - 2 * (chosen_T % len(ranked))
    return Detectors(
        chosen_T // len(ranked), signs_T, thresholds[place], 0.5 + 0.5 * gain[place].double() / pairs_T, pairs_T > 0
    )


def columns(codes: Codes, latents_T: Tensor) -> Tensor:
    """z_NT: the codes of some latents, dense."""
    latents_U, inverse_T = latents_T.unique(return_inverse=True)
    place_L = torch.full((codes.latents,), -1).index_put_((latents_U,), torch.arange(len(latents_U)))
    column_M = place_L[codes.indices_M.long()]
    kept = column_M >= 0
    z_NU = codes.values_M.new_zeros(len(codes), len(latents_U))
    z_NU.index_put_((codes.rows_M[kept], column_M[kept]), codes.values_M[kept], accumulate=True)
    return z_NU[:, inverse_T]


@dataclass(frozen=True)
class AtThreshold:
    """What detectors that say yes where score > threshold reach, each for its token; NaN where that has no meaning."""

    balanced_accuracy_T: Tensor  # (TP / P + TN / Q) / 2
    f1_T: Tensor  # 2 TP / (2 TP + FP + FN)
    recall_T: Tensor  # TP / P
    precision_T: Tensor  # TP / (TP + FP)


def at_threshold(scores_NT: Tensor, classes_N: Tensor, thresholds_T: Tensor) -> AtThreshold:
    """NaN without both classes; precision also for a detector that never says yes."""
    tokens = scores_NT.shape[1]
    said_NT = scores_NT.double() > thresholds_T
    true_T = (said_NT & (classes_N[:, None] == torch.arange(tokens))).sum(0).double()
    positives_T = positives(classes_N, tokens)
    negatives_T = len(classes_N) - positives_T
    false_T = said_NT.sum(0) - true_T
    measured = (
        (true_T / positives_T + 1 - false_T / negatives_T) / 2,
        2 * true_T / (true_T + false_T + positives_T),
        true_T / positives_T,
        true_T / (true_T + false_T),
    )
    defined_T = (positives_T > 0) & (negatives_T > 0)
    return AtThreshold(*(value_T.where(defined_T, torch.nan) for value_T in measured))


def precision_at(recall: float, scores_NT: Tensor, classes_N: Tensor) -> Tensor:
    """(T): precision at the greatest threshold at which that fraction of a token's positives, or more, is found.

    All vectors of one score are let in together: a latent that is silent on too many positives lets in everything.
    NaN without both classes.
    """
    tokens = scores_NT.shape[1]
    precision_T = torch.full((tokens,), torch.nan, dtype=torch.float64)
    for t, count in enumerate(positives(classes_N, tokens).tolist()):
        if 0 < count < len(classes_N):
            own = scores_NT[classes_N == t, t]
            least = own.sort(descending=True).values[math.ceil(recall * count - 1e-9) - 1]
            precision_T[t] = (own >= least).sum().double() / (scores_NT[:, t] >= least).sum()
    return precision_T


def scores_auroc(scores_NT: Tensor, classes_N: Tensor) -> Tensor:
    """AUROC of column t for token t, from mid-ranks as in `Ranked.auroc`; NaN without both classes."""
    auroc_T = []
    for sorted_N, own_P in _by_columns(scores_NT, classes_N):
        below_P, upto_P = np.searchsorted(sorted_N, own_P), np.searchsorted(sorted_N, own_P, side="right")
        rank_sum, P, N = (below_P + upto_P + 1).sum() / 2, len(own_P), len(sorted_N)
        auroc_T.append((rank_sum - P * (P + 1) / 2) / (P * (N - P)) if 0 < P < N else math.nan)
    return torch.tensor(auroc_T, dtype=torch.float64)


def scores_thresholds(scores_NT: Tensor, classes_N: Tensor) -> Tensor:
    """The threshold of column t with the greatest balanced accuracy for token t, as in `Ranked.best_cut`."""
    thresholds_T = []
    for sorted_N, own_P in _by_columns(scores_NT, classes_N):
        below_P = np.searchsorted(sorted_N, own_P)  # a threshold just under a positive lets in it and all above
        P, N = len(own_P), len(sorted_N)
        true_P, let_in_P = P - np.searchsorted(own_P, own_P), N - below_P
        gain_P = true_P * (N - P) - (let_in_P - true_P) * P
        best = P - 1 - int(gain_P[::-1].argmax()) if P else 0  # of equal ones the greatest threshold
        if not P or gain_P[best] <= 0:
            thresholds_T.append(float(sorted_N[-1]))
        else:  # with a gain above 0 some score is lower
            lower, upper = float(sorted_N[below_P[best] - 1]), float(own_P[best])
            thresholds_T.append((lower + upper) / 2 if lower else 0.0)
    return torch.tensor(thresholds_T, dtype=torch.float64)


def _by_columns(scores_NT: Tensor, classes_N: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of column t, rising: all scores, and those of token t."""
    if not scores_NT.isfinite().all():
        raise ValueError("scores hold NaN or inf; a detector needs finite ones")
    for t, column_N in enumerate(scores_NT.T.contiguous()):
        yield np.sort(column_N.numpy()), np.sort(column_N[classes_N == t].numpy())
