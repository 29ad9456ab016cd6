"""Budgets: a study at a third of its training tokens and at all of them, each in a folder of its own.

What moves in between has not converged: it is a number about the length of the training.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from rayscope.files import write_whole
from rayscope.studies.intervals import Observed
from rayscope.studies.setting import Findings, Setting

APART = 3
MOVED = 0.05  # of the number itself; less is converged
FOLDER = "budgets"
TABLE, FIGURE, OBSERVED = "table.csv", "figure.svg", "observed.json"


@dataclass(frozen=True)
class Budget:
    """tokens: trained on, None of a study that trains nothing; options: of the study's function at this budget."""

    tokens: int | None
    setting: Setting
    options: Mapping[str, Any]

    def findings(self, run: Callable[..., Findings]) -> Findings:
        """What is written in the folder already, or of the study, which is written there, what is observed last.

        Tables are as they are written, so that a study that resumes writes the same.
        """
        folder = self.setting.folder
        if self.tokens is None:
            return run(self.setting, **self.options)
        if not (folder / OBSERVED).is_file():
            found = run(self.setting, **self.options)
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / TABLE, to_csv(found.table))
            write_whole(folder / FIGURE, found.figure)
            ends = {name: [finite(x) for x in (o.value, o.low, o.high)] for name, o in found.observed.items()}
            write_whole(folder / OBSERVED, json.dumps(ends, allow_nan=False))
        table = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False)
        table.insert(0, "budget", str(self.tokens))
        numbers = json.loads((folder / OBSERVED).read_text())
        observed = {name: Observed(*(math.nan if x is None else x for x in of)) for name, of in numbers.items()}
        return Findings(table, observed, (folder / FIGURE).read_text())


def budgets(setting: Setting, options: Mapping[str, Any], names: Sequence[str]) -> Iterator[Budget]:
    """A third of the options of these names, then all of them; the options as they are, once, without names.

    names: such as tokens, or planted.tokens; the first is what a budget is called by.
    """
    if not names:
        yield Budget(None, setting, options)
        return
    for divisor in (APART, 1):
        divided = copy.deepcopy(dict(options))
        tokens, *_ = (divide(divided, name, divisor) for name in names)
        folder = setting.folder / FOLDER / str(tokens)
        yield Budget(tokens, replace(setting, folder=folder, divided=tuple(names) if divisor > 1 else ()), divided)


def divide(options: dict[str, Any], name: str, divisor: int) -> int:
    *path, last = name.split(".")
    for part in path:
        options = options[part]
    options[last] //= divisor
    return options[last]


def converged(small: dict[str, Any], large: dict[str, Any]) -> bool | None:
    """Of two verdicts: the number moved by less than MOVED of itself, and the verdict is the same; null without one."""
    was, now = small["observed"], large["observed"]
    if was is None and now is None:
        return None
    near = was is not None and now is not None and (was == now or abs(now - was) < MOVED * abs(now))
    return near and small["pass"] == large["pass"]


def to_csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.7g")


def finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
