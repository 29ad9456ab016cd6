"""The training log: training.csv in the run's folder always, W&B alongside if asked. The x axis is tokens."""

import csv
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from torch import Tensor

from rayscope.files import whole_file

Counts = Mapping[str, np.ndarray | None]
TRAINING_LOG = "training.csv"
EDGES = np.arange(-6, 0.5, 0.5)  # of log10 density


class Log(Logger):
    """What `log` writes to. Of lightning's own interface nothing is used: it logs what we do not ask for."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args, **kwargs) -> None:
        """The run's configuration is saved with the run."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Lightning's own metrics are not among what `log` writes."""

    @abstractmethod
    def write(self, tokens: int, scalars: dict[str, float], counts: Counts) -> None:
        """A row; counts: of log10 density between EDGES, None for a dictionary that has none."""


class TrainingLog(Log):
    """A row of training.csv each time something is logged; density histograms as counts between 1e-6, 10^-5.5, ... 1.

    What is not finite, and counts that are None, are blank.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.columns = path, None  # columns: of the file, once it is looked at

    def write(self, tokens: int, scalars: dict[str, float], counts: Counts) -> None:
        rounded = {name: f"{value:.6g}" if math.isfinite(value) else "" for name, value in scalars.items()}
        drawn = {name: "" if count is None else json.dumps(count.tolist()) for name, count in counts.items()}
        row = {**rounded, **drawn}
        new, columns = not self.path.is_file(), ["tokens", *row]
        if not new and self.columns is None:
            with self.path.open("rb") as file:
                self.columns = fields(file.readline())
            if self.columns != columns:
                raise self.foreign(1, "its columns are those of other dictionaries")
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(columns)
            writer.writerow([tokens, *row.values()])

    def keep(self, tokens: int) -> None:
        """Forgets what was logged after `tokens`, where the run goes on, and a line that a kill cut short.

        Raises ValueError, with the line, for a file that is no training log;
        if nothing of it were kept, it is not read.
        """
        if not self.path.is_file():
            return
        if not tokens:
            return self.path.unlink()
        header, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        kept, last, columns = [], 0, len(fields(header))
        if header.endswith(b"\n") and fields(header)[0] != "tokens":
            raise self.foreign(1, "its first column is not tokens")
        for number, line in enumerate(lines, 2):
            if not line.endswith(b"\n"):
                break
            row = fields(line)
            if not row[0].isdecimal() or len(row) != columns:
                raise self.foreign(number, "it is no row of a training log")
            if int(row[0]) <= last:
                raise self.foreign(number, f"tokens {row[0]} after {last}")
            last = int(row[0])
            if last <= tokens:
                kept.append(line)
        if kept:
            with whole_file(self.path) as file:
                file.writelines([header, *kept])
        else:
            self.path.unlink()

    def foreign(self, line: int, why: str) -> ValueError:
        return ValueError(f"{self.path}, line {line}: {why}; move it away to go on without the rows before")


def rows(path: Path) -> Iterator[tuple[int, dict[str, float], Counts]]:
    """What `TrainingLog.write` was given, to six digits, up to a line that is no whole row."""
    header, *lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else [b""]
    columns = fields(header)
    for line in lines:
        row = fields(line)
        if not line.endswith(b"\n") or len(row) != len(columns) or not row[0].isdecimal():
            return
        values = {name: value for name, value in zip(columns[1:], row[1:], strict=True) if value}
        drawn = {name: value for name, value in values.items() if value.startswith("[")}
        try:
            scalars = {name: float(value) for name, value in values.items() if name not in drawn}
            counts = {name: np.array(json.loads(value)) for name, value in drawn.items()}
        except ValueError:
            return
        yield int(row[0]), scalars, counts


def fields(line: bytes) -> list[str]:
    """Of one line of CSV; what is not UTF-8 is no field of ours, and is replaced."""
    try:
        return next(csv.reader([line.decode("utf-8", "replace")])) or [""]
    except csv.Error:  # longer than any field of ours
        return [""]


def histogram(density_L: Tensor) -> np.ndarray:
    """Counts of log10 density between EDGES; the silent latents are in the first."""
    exponents = density_L.detach().cpu().double().clamp(min=1e-6).log10().numpy()
    return np.histogram(exponents, np.append(EDGES[:-1], 0.0 + 1e-9))[0]


def log(loggers: Sequence[Log], tokens: int, scalars: dict[str, float], densities: Mapping[str, Tensor | None]) -> None:
    counts = {name: None if density is None else histogram(density) for name, density in densities.items()}
    for logger in loggers:
        logger.write(tokens, scalars, counts)
