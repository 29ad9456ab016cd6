"""The training log: training.csv in the run's folder always, other loggers beside it. The x axis is tokens."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger
from torch import Tensor

from rayscope.files import whole_file

EDGES = np.arange(-6, 0.5, 0.5)  # of log10 density


class TrainingLog(Logger):
    """A row of training.csv each time something is logged; density histograms as counts between 1e-6, 10^-5.5, ... 1."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args, **kwargs) -> None:
        """The run's configuration is saved beside the log."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Lightning's own metrics are not among what `log` writes."""

    def write(self, tokens: int, row: dict[str, Any]) -> None:
        new, columns = not self.path.is_file(), ["tokens", *row]
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(columns)
            writer.writerow([tokens, *row.values()])

    def keep(self, tokens: int) -> None:
        """Forgets what was logged after `tokens`, where the run goes on, and a line that a kill cut short.

        Raises ValueError, with the line, for a file that is no training log; if nothing of it were kept, it is not read.
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


def log(loggers: Sequence[Any], tokens: int, scalars: dict[str, float], densities: Mapping[str, Tensor | None]) -> None:
    """What is not finite, and densities that are None, are blank in training.csv."""
    counts = {name: None if density is None else histogram(density) for name, density in densities.items()}
    for logger in loggers:
        if isinstance(logger, TrainingLog):
            rounded = {name: f"{value:.6g}" if math.isfinite(value) else "" for name, value in scalars.items()}
            written = {name: "" if c is None else json.dumps(c.tolist()) for name, c in counts.items()}
            logger.write(tokens, {**rounded, **written})
        elif isinstance(logger, WandbLogger):
            import wandb

            charts = {name: wandb.Histogram(np_histogram=(c, EDGES)) for name, c in counts.items() if c is not None}
            logger.experiment.define_metric("*", step_metric="tokens")
            logger.experiment.log({"tokens": tokens, **scalars, **charts})
        else:
            logger.log_metrics({"tokens": tokens, **scalars}, step=tokens)
