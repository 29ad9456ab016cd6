"""A study: a question, predictions registered before the run, what was found -> table.csv, figure.svg, verdict.json."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rayscope.files import write_whole
from rayscope.limits import met
from rayscope.runs.run import Unfinished
from rayscope.studies.budgets import budgets, converged, to_csv
from rayscope.studies.intervals import Observed
from rayscope.studies.setting import Findings, Setting

FEWEST_SEEDS = 2  # of one, nothing tells how another would have come out
NOTHING = Observed.exactly(math.nan)


@dataclass(frozen=True)
class Prediction:
    """In words, and as a limit such as ">= 2" on what is observed; without one the number is reported, not judged."""

    prediction: str
    threshold: str | None = None

    def __post_init__(self):
        met(0.0, self.threshold)  # raises ValueError for what is no limit before the study runs, not after

    def verdict(self, observed: Observed, seeds: int = FEWEST_SEEDS) -> dict[str, Any]:
        """{prediction, threshold, observed, ci, pass}: a prediction passes where its whole interval does.

        pass is null if what is observed varies and only one seed says how.
        """
        ends = [met(end, self.threshold) for end in (observed.value, observed.low, observed.high)]
        numbers = [x if math.isfinite(x) else None for x in (observed.value, observed.low, observed.high)]
        passed = None if self.threshold is None else None not in numbers and all(ends)
        if seeds < FEWEST_SEEDS and None not in numbers and len(set(numbers)) > 1:
            passed = None
        ci = numbers[1:]
        return {**vars(self), "observed": numbers[0], "ci": ci, "pass": passed}


def conduct(
    run: Callable[..., Findings],
    setting: Setting,
    *,
    name: str,
    question: str,
    predictions: dict[str, Prediction],
    size: str,
    options: Mapping[str, Any] | None = None,
    trained_on: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs a study and writes what it found; returns the verdict: {study, question, size, seeds, budgets, pass,
    converged, predictions}.

    options: of `run`. trained_on: those of them that say how many tokens it trains on. With any, it runs at a third of
    them and at all of them, tables in one (column `budget`), and the verdict is that of the greatest budget at which a
    prediction is observed; of one that is observed at none, as with a null that is left out, nothing is said.
    pass: every prediction that has a threshold holds; null if none has one, or if one was not judged and none failed.
    Raises ValueError if what is observed was not predicted, and Unfinished once a part of the arms is trained.
    """
    found: dict[int | None, Findings] = {}
    unfinished: Unfinished | None = None
    for budget in budgets(setting, options or {}, trained_on):
        try:
            found[budget.tokens] = budget.findings(run)
        except Unfinished as part:
            unfinished = part
    if unfinished:
        raise unfinished
    *_, last = found.values()
    write_whole(setting.folder / "table.csv", to_csv(pd.concat([each.table for each in found.values()])))
    write_whole(setting.folder / "figure.svg", last.figure)
    for each in found.values():
        if not set(each.observed) <= set(predictions):
            raise ValueError(
                f"study {name}: predictions {', '.join(predictions)}, but it observes {', '.join(each.observed)}"
            )
    seeds = len(set(setting.seeds))
    judged = {
        key: of_budgets({
            tokens: prediction.verdict(each.observed[key], seeds)
            for tokens, each in found.items()
            if key in each.observed
        } or {None: prediction.verdict(NOTHING, seeds) | {"pass": None}})
        for key, prediction in predictions.items()
    }  # fmt: skip
    asked = [one for one in judged.values() if one["threshold"] is not None]
    verdict = {
        "study": name,
        "question": question,
        "size": size,
        "model": setting.source.model.name,
        "seeds": list(setting.seeds),
        "budgets": [tokens for tokens in found if tokens is not None],
        "pass": whether([one["pass"] for one in asked]),
        "converged": whether([one["converged"] for one in asked]),
        "predictions": judged,
    }
    write_whole(setting.folder / "verdict.json", json.dumps(verdict, indent=1, allow_nan=False))
    return verdict


def of_budgets(by_tokens: dict[int | None, dict[str, Any]]) -> dict[str, Any]:
    """The verdict at the greatest of them, and whether it has converged: null if it was observed at one alone.

    at: {tokens: observed}, unless it has converged or nothing was trained.
    """
    first, *more = by_tokens.values()  # one budget or two
    last = more[-1] if more else first
    found = {**last, "converged": converged(first, last) if more else None}
    if found["converged"] or None in by_tokens:
        return found
    return {**found, "at": {str(tokens): one["observed"] for tokens, one in by_tokens.items()}}


def whether(each: Sequence[bool | None]) -> bool | None:
    """All of them; null if there are none, or if one is and none is false."""
    return False if False in each else None if None in each or not each else True
