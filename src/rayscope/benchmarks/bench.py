"""Bench: what a part of the benchmark races with, and the rows and checks that come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rayscope.benchmarks.environments import python_of
from rayscope.benchmarks.race import WORKERS, Contender, Result, race
from rayscope.console import progress
from rayscope.limits import met

Record = dict[str, Any]


@dataclass
class Bench:
    """limits: of a row's ratio or of a check, by its name. scale: the part's own numbers."""

    part: str
    unit: str  # of a contender's `units`
    scale: Mapping[str, Any]
    limits: Mapping[str, str]
    peers: Sequence[str]
    rounds: int
    threads: int
    seed: int
    folder: Path  # for data; gone afterwards
    logs: Path
    environments: Path | None = None
    rows: list[Record] = field(default_factory=list)
    checks: list[Record] = field(default_factory=list)

    def contender(self, name: str, script: str, peer: str | None = None, **options: Any) -> Contender:
        """options: Contender's steps and units; all else is the worker's setting."""
        own = {key: options.pop(key) for key in ("steps", "units") if key in options}
        return Contender(name, WORKERS / f"{script}.py", {"seed": self.seed, **options}, peer, **own)

    def race(
        self, contenders: Sequence[Contender], rounds: int | None = None, warm_up: bool = True
    ) -> dict[str, Result]:
        """{name: result} of those whose peers are asked for."""
        taking = [one for one in contenders if one.peer is None or one.peer in self.peers]
        rounds = rounds or self.rounds
        names = ", ".join(one.name for one in taking)
        with progress(f"{self.part}: {names}"[:60], len(taking) * (rounds + warm_up), "turns") as advance:
            results = race(
                taking,
                rounds=rounds,
                threads=self.threads,
                logs=self.logs,
                python=partial(python_of, folder=self.environments),
                warm_up=warm_up,
                advance=advance,
            )
        return {result.contender.name: result for result in results}

    def compare(self, results: Mapping[str, Result], against: Mapping[str, str] | str = "", **shown: Any) -> None:
        """Adds a row a result. against: {name: the result that its times are divided by}, or the one of them all.

        A result that was raced again as the reference of another race keeps its first row.
        """
        for name, result in results.items():
            if any(row["contender"] == name for row in self.rows):
                continue
            reference = results.get(against if isinstance(against, str) else against.get(name, ""))
            row: Record = {"contender": name, "peer": result.contender.peer, **shown}
            if result.contender.settings.get("autocast"):
                row["autocast"] = True
            if result.error:
                self.rows.append({**row, "error": result.error})
                continue
            row |= {
                "per_second": result.units_per_second,
                "cpu_seconds": median(result.cpu_seconds),
                "seconds": result.seconds,
                **result.facts,
            }
            if reference and reference is not result and not reference.error:
                ratio = result.times(reference)
                row |= {"against": reference.contender.name, "ratio": ratio}
                row |= self.judged(name, ratio)
            self.rows.append(row)

    def check(self, name: str, value: float | None) -> None:
        """A number below the table; None, if what it needs failed or was not raced, leaves no trace."""
        if value is not None:
            self.checks.append({"check": name, "value": value, **self.judged(name, value)})

    def judged(self, name: str, value: float) -> Record:
        limit = self.limits.get(name)
        return {"limit": limit, "met": met(value, limit)} if limit else {}
