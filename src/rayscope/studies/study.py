"""A study: a question, predictions registered before the run, what was found -> table.csv, figure.svg, verdict.json."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rayscope.evaluation.measure import documents_predicted
from rayscope.files import write_whole
from rayscope.limits import met
from rayscope.model.sites import Site
from rayscope.streams.source import Source
from rayscope.streams.stream import Stream
from rayscope.studies.intervals import Observed, enough_documents

FEWEST_SEEDS = 2  # of one, nothing tells how another would have come out


@dataclass(frozen=True)
class Setting:
    """What a study works with. folder: the run's, in which its arms are trained, each resumed from its checkpoint;
    size: whose options it was given.

    Raises ValueError without a site or a seed.
    """

    source: Source
    sites: tuple[Site, ...]
    seeds: tuple[int, ...]
    folder: Path
    size: str | None = None

    def __post_init__(self):
        if not self.sites:
            raise ValueError(
                "sites.patterns: no site given; a study needs at least one, such as blocks.3.hook_resid_post"
            )
        self.check_list("seeds", self.seeds, [0, 1, 2])

    @property
    def residual(self) -> Site:
        """The first residual site, or the first site if there is none."""
        return next((site for site in self.sites if site.part == "residual"), self.sites[0])

    def option(self, name: str) -> str:
        """What the user calls an argument of the study."""
        return f"study.sizes.{self.size}.{name}" if self.size else name

    def check_list(self, name: str, values: Sequence[int], such: list[int]) -> None:
        """Raises ValueError for none, and for a value given twice, which would count twice."""
        values = list(values)
        if not values:
            raise ValueError(f"{self.option(name)}=[]: give at least one, such as {such}")
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{self.option(name)}={values}: {value} is given more than once")

    def check_rows(self, **sizes: int) -> None:
        """Raises ValueError for a size, by its name, whose whole rows of the test split are none, or of too few
        documents for an interval: called before anything is trained."""
        text = self.source.text
        for name, tokens in sizes.items():
            said = f"{self.option(name)}={tokens}"
            if tokens < text.context:
                raise ValueError(f"{said} is less than one row of {text.context} tokens; raise it")
            enough_documents(documents_predicted(text.test, tokens, self.source.seed), said)

    def check_stream(self, stream: Stream, **size: int) -> Stream:
        """The same of a stream and the size, by its name, that it was asked for; returns the stream."""
        ((name, tokens),) = size.items()
        documents = {d for number in range(len(stream)) for d in stream.labels(number).documents_N.unique().tolist()}
        enough_documents(len(documents), f"{self.option(name)}={tokens}")
        return stream


@dataclass(frozen=True)
class Findings:
    """table: tidy, sizes stated in it; observed: by the name of the prediction that it answers; figure: SVG."""

    table: pd.DataFrame
    observed: dict[str, Observed]
    figure: str


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
    run: Callable[[Setting], Findings],
    setting: Setting,
    *,
    name: str,
    question: str,
    predictions: dict[str, Prediction],
    size: str,
) -> dict[str, Any]:
    """Runs a study and writes what it found; returns the verdict: {study, question, size, seeds, pass, predictions}.

    pass: every prediction that has a threshold holds; null if none has one, or if one was not judged and none failed.
    Raises ValueError if predictions and observations differ in name.
    """
    found = run(setting)
    write_whole(setting.folder / "table.csv", found.table.to_csv(index=False, float_format="%.7g"))
    write_whole(setting.folder / "figure.svg", found.figure)
    if set(found.observed) != set(predictions):
        raise ValueError(
            f"study {name}: predictions {', '.join(predictions)}, but it observes {', '.join(found.observed)}"
        )
    seeds = len(set(setting.seeds))
    judged = {key: predictions[key].verdict(observed, seeds) for key, observed in found.observed.items()}
    passes = [one["pass"] for one in judged.values() if one["threshold"] is not None]
    verdict = {
        "study": name,
        "question": question,
        "size": size,
        "model": setting.source.model.name,
        "seeds": list(setting.seeds),
        "pass": False if False in passes else None if None in passes or not passes else True,
        "predictions": judged,
    }
    write_whole(setting.folder / "verdict.json", json.dumps(verdict, indent=1, allow_nan=False))
    return verdict
