"""Whether rays win, read on fronts: every learned method, under every coder, against the best of each family."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rayscope.evaluation.fronts import Contest, Front
from rayscope.evaluation.metrics import FEWEST_DOCUMENTS
from rayscope.report.metrics import METRICS
from rayscope.report.tables import LEARNED

READ = ("fvu", "dce")
DIRECTIONS = "directions"  # the family of all signed learned methods


@dataclass(frozen=True)
class Verdict:
    """A method under a coder against a family, in one metric, at every rate that both have. See `Contest`."""

    site: str
    position0: str
    method: str
    coder: str
    role: str
    family: str
    metric: str
    contest: Contest
    documents: float

    @property
    def judged(self) -> bool:
        """Are there enough documents for intervals?"""
        return not self.documents < FEWEST_DOCUMENTS

    @property
    def span(self) -> tuple[float, float]:
        return float(self.contest.rates_R[0]), float(self.contest.rates_R[-1])

    def at(self, bits: float) -> dict | None:
        """{ours, theirs, best, outcome} at the nearest rate looked at; None outside the span."""
        low, high = self.span
        if not low <= bits <= high:
            return None
        nearest = int(np.abs(self.contest.rates_R - bits).argmin())
        outcome = next(
            how for start, end, how in self.contest.outcomes() if start <= self.contest.rates_R[nearest] <= end
        )
        ours, theirs = (float(side[0, nearest]) for side in (self.contest.ours_R, self.contest.theirs_R))
        return {"ours": ours, "theirs": theirs, "best": str(self.contest.best_R[nearest]), "outcome": outcome}


def fronts(points: pd.DataFrame, metric: str) -> dict[tuple[str, str, str], Front]:
    """{(role, method, coder): front} of the points of one site and view; a loss is (value, low, high)."""
    columns = [metric, f"{metric}_low", f"{metric}_high"]
    found = {}
    for key, mine in points.groupby(["role", "method", "coder"], sort=False):
        if front := Front.of(mine["bits"].to_numpy(float), mine[columns].to_numpy(float).T):
            found[key] = front
    return found


def verdicts(points: pd.DataFrame, rate: float = math.nan) -> list[Verdict]:
    """Of every learned method, under each coder, against each family of baselines under any, and of rays against
    directions under the same coder.

    points: see `tables.points`. rate: one that is looked at for certain.
    """
    rates = [rate] if math.isfinite(rate) else []
    found = []
    for (site, position0), here in points.groupby(["site", "position0"], sort=False):
        families = dict.fromkeys(here.loc[here["role"] == "baseline", "family"])
        for metric in READ:
            known = fronts(here, metric)
            rivals = {family: best_of(here[here["family"] == family], known, "baseline") for family in families}
            signed = {coder: best_of(here[here["coder"] == coder], known, DIRECTIONS) for coder in set(here["coder"])}
            for (role, method, coder), front in known.items():
                if role not in LEARNED:
                    continue
                mine = here[(here["role"] == role) & (here["method"] == method) & (here["coder"] == coder)]
                documents = mine[f"{metric}_documents"].min()
                for family, theirs in {**rivals, DIRECTIONS: signed[coder]}.items():
                    if role != family and (contest := Contest.of(front, theirs, rates)):
                        found.append(Verdict(site, position0, method, coder, role, family, metric, contest, documents))
    return found


def best_of(points: pd.DataFrame, known: dict[tuple[str, str, str], Front], role: str) -> dict[str, Front]:
    """{method and coder in words: front} of the points of this role, among which the best is taken at each rate."""
    keys = dict.fromkeys(points.loc[points["role"] == role, ["method", "coder"]].itertuples(index=False, name=None))
    return {said(*key): known[role, *key] for key in keys if (role, *key) in known}


def said(method: str, coder: str) -> str:
    """A method under a coder, in words."""
    return method if coder == "own" else f"{method} by {coder}"


def ranges(outcomes: Sequence[tuple[float, float, str]], outcome: str) -> str:
    """Where this is the outcome, in words; empty if nowhere."""
    start, end = outcomes[0][0], outcomes[-1][1]
    where = [(low, high) for low, high, how in outcomes if how == outcome]
    if where == [(start, end)]:
        return f"at every rate ({start:.0f} to {end:.0f} bits)" if start < end else f"at {start:.0f} bits"
    words = []
    for low, high in where:
        if low == start:
            words.append(f"up to {high:.0f} bits")
        elif high == end:
            words.append(f"from {low:.0f} bits")
        else:
            words.append(f"from {low:.0f} to {high:.0f} bits" if low < high else f"at {low:.0f} bits")
    return " and ".join(words)


def outcome_said(verdict: Verdict) -> str:
    """Where it is lower and where higher, in words."""
    if not verdict.judged:
        return f"too few documents ({verdict.documents:.0f}; an interval needs {FEWEST_DOCUMENTS})"
    outcomes = verdict.contest.outcomes()
    lower, higher = ranges(outcomes, "better"), ranges(outcomes, "worse")
    if not lower and not higher:
        low, high = verdict.span
        return f"intervals overlap {f'from {low:.0f} to {high:.0f} bits' if low < high else f'at {low:.0f} bits'}"
    parts = [f"lower {lower}"] * bool(lower) + [f"higher {higher}"] * bool(higher)
    levels = [f"{rate:.0f}" for rate in verdict.contest.crossings()]
    return ", ".join(parts) + (f"; level at {' and '.join(levels)} bits" if levels else "")


def sentence(verdict: Verdict, rate: float = math.nan) -> str:
    """One verdict in words, with the numbers at a rate if both have it."""
    metric, who = METRICS[verdict.metric], said(verdict.method, verdict.coder)
    words = f"{metric.heading} of {who} against {verdict.family}: {outcome_said(verdict)}"
    if there := verdict.at(rate):
        ours, theirs = metric.show(there["ours"]), metric.show(there["theirs"])
        words += f"; at {rate:.0f} bits {ours} against {theirs} ({there['best']})"
    return words


def by_method(found: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """{method and coder in words: its verdicts}."""
    grouped: dict[str, list[Verdict]] = {}
    for verdict in found:
        grouped.setdefault(said(verdict.method, verdict.coder), []).append(verdict)
    return grouped


def answer(found: Iterable[Verdict]) -> str:
    """Do they beat the best of each family, in all metrics? One sentence of all their verdicts."""
    found = list(found)
    if not found:
        return "Not answered: no rate in common with any other method."
    few = [verdict.documents for verdict in found if not verdict.judged]
    if len(few) == len(found):
        return f"Not answered: too few documents ({min(few):.0f}; an interval needs {FEWEST_DOCUMENTS})."
    groups: dict[str, list[str]] = {}
    for family in dict.fromkeys(verdict.family for verdict in found):
        outcomes = [verdict.contest.outcomes() for verdict in found if verdict.family == family and verdict.judged]
        hows = {how for one in outcomes for *_, how in one}
        if hows == {"better"}:
            groups.setdefault("at every rate", []).append(family)
        elif "better" not in hows:
            groups.setdefault("at no rate", []).append(family)
        else:
            groups.setdefault("at some rates", []).append(family)
    start = "Yes" if list(groups) == ["at every rate"] else "No" if list(groups) == ["at no rate"] else "In part"
    order = ("at every rate", "at some rates", "at no rate")
    parts = [f"{how} against {', '.join(groups[how])}" for how in order if how in groups]
    return f"{start}: {'; '.join(parts)}."
