"""Fronts: what a method costs at every rate, and the rates at which one costs less than another.

P points of a method, R rates, leading axes (...) the value and the ends of its interval, or bootstrap draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

BETWEEN = 200  # rates looked at between the least and the greatest that two sides have


@dataclass(frozen=True)
class Front:
    """The lower convex hull of points (bits, loss), from the fewest bits to the least loss.

    What lies between two of its points is reached by coding one part of the tokens as one says and the rest as the
    other: bits and FVU are then the means of both, weighted by the parts, and dCE nearly so.

    loss_P: (..., P). Which points are on the front, of a loss with leading axes, the first of these decides.
    """

    bits_P: np.ndarray
    loss_P: np.ndarray
    points_P: np.ndarray  # where in what was given

    @classmethod
    def of(cls, bits_P: Sequence[float] | np.ndarray, loss_P: Sequence[float] | np.ndarray) -> "Front | None":
        """None if no point has both a rate above 0 and a loss. Points without either are left out."""
        bits_P, loss_P = np.asarray(bits_P, float), np.asarray(loss_P, float)
        first_P = loss_P.reshape(-1, len(bits_P))[0]
        there = np.flatnonzero(np.isfinite(bits_P) & (bits_P > 0) & np.isfinite(first_P))
        kept: list[int] = []
        for point in there[np.lexsort((first_P[there], bits_P[there]))]:
            if kept and first_P[point] >= first_P[kept[-1]]:
                continue  # as many bits or more, and no less loss
            while len(kept) > 1 and not convex(bits_P, first_P, kept[-2], kept[-1], point):
                kept.pop()
            kept.append(int(point))
        points_P = np.array(kept, int)
        return cls(bits_P[points_P], loss_P[..., points_P], points_P) if kept else None

    def at(self, bits_R: np.ndarray) -> np.ndarray:
        """(..., R): NaN for a rate below the fewest bits or above the most."""
        bits_R = np.asarray(bits_R, float)
        right_R = np.searchsorted(self.bits_P, bits_R).clip(0, len(self.bits_P) - 1)
        left_R = np.maximum(right_R - 1, 0)
        step_R = self.bits_P[right_R] - self.bits_P[left_R]
        part_R = np.divide(bits_R - self.bits_P[left_R], step_R, out=np.ones_like(bits_R), where=step_R > 0)
        loss_R = (1 - part_R) * self.loss_P[..., left_R] + part_R * self.loss_P[..., right_R]
        within_R = (bits_R >= self.bits_P[0]) & (bits_R <= self.bits_P[-1])
        return np.where(within_R, loss_R, np.nan)


def convex(bits_P: np.ndarray, loss_P: np.ndarray, a: int, b: int, c: int) -> bool:
    """Is b below the line from a to c?"""
    left, right = (loss_P[b] - loss_P[a]) * (bits_P[c] - bits_P[a]), (loss_P[c] - loss_P[a]) * (bits_P[b] - bits_P[a])
    return bool(left < right)


@dataclass(frozen=True)
class Contest:
    """A front against the best of several, at every rate that it and at least one of them have.

    rates_R: ascending; ours_R, theirs_R: (..., R); best_R: the name of the rival of the least loss.
    """

    rates_R: np.ndarray
    ours_R: np.ndarray
    theirs_R: np.ndarray
    best_R: np.ndarray

    @classmethod
    def of(cls, ours: Front, rivals: Mapping[str, Front], rates: Sequence[float] = ()) -> "Contest | None":
        """None if no rival has a rate in common with it. rates: those to look at besides BETWEEN of them."""
        ends = [(max(ours.bits_P[0], f.bits_P[0]), min(ours.bits_P[-1], f.bits_P[-1])) for f in rivals.values()]
        ends = [(low, high) for low, high in ends if low <= high]
        if not ends:
            return None
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        corners = [ours.bits_P, *(front.bits_P for front in rivals.values()), np.asarray(rates, float)]
        rates_R = np.unique(np.concatenate([*corners, np.geomspace(low, high, BETWEEN), [low, high]]))
        rates_R = rates_R[(rates_R >= low) & (rates_R <= high)]
        names, theirs_MR = list(rivals), np.stack([front.at(rates_R) for front in rivals.values()])
        first_MR = theirs_MR.reshape(len(names), -1, len(rates_R))[:, 0]
        common_R = np.isfinite(first_MR).any(0)  # rivals may leave a gap between them
        rates_R, theirs_MR, first_MR = rates_R[common_R], theirs_MR[..., common_R], first_MR[:, common_R]
        best_R = np.nanargmin(first_MR, 0)
        theirs_R = np.moveaxis(theirs_MR, 0, -1)[..., np.arange(len(rates_R)), best_R]
        return cls(rates_R, ours.at(rates_R), theirs_R, np.array(names)[best_R])

    @property
    def ratio_R(self) -> np.ndarray:
        """(..., R): theirs over ours, above 1 where ours costs less; infinite where ours costs nothing."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.theirs_R / self.ours_R

    def crossings(self) -> list[float]:
        """The rates at which the two cost the same, the lesser loss being another's below and above."""
        difference_R = self._first(self.ours_R) - self._first(self.theirs_R)
        signs = np.flatnonzero(difference_R)
        found = []
        for left, right in pairwise(signs):
            if difference_R[left] * difference_R[right] < 0:
                part = difference_R[left] / (difference_R[left] - difference_R[right])
                found.append(float(self.rates_R[left] + part * (self.rates_R[right] - self.rates_R[left])))
        return found

    def outcomes(self) -> list[tuple[float, float, str]]:
        """(from, to, outcome) in order of the rates: better, worse, or unclear where intervals overlap or are missing.

        Of losses with the leading axis (value, low, high). Lower is better.
        """
        _, low_R, high_R = self.ours_R
        _, their_low_R, their_high_R = self.theirs_R
        outcome_R = np.where(high_R < their_low_R, "better", np.where(low_R > their_high_R, "worse", "unclear"))
        starts = np.flatnonzero(np.r_[True, outcome_R[1:] != outcome_R[:-1]])
        ends = np.r_[starts[1:] - 1, len(outcome_R) - 1]
        return [
            (float(self.rates_R[start]), float(self.rates_R[end]), str(outcome_R[start]))
            for start, end in zip(starts, ends, strict=True)
        ]

    @staticmethod
    def _first(loss_R: np.ndarray) -> np.ndarray:
        return loss_R.reshape(-1, loss_R.shape[-1])[0]
