"""The training log: training.csv in the run's folder always, other loggers beside it. The x axis is tokens."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger
from torch import Tensor

from rayscope.files import write_whole

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
        new = not self.path.is_file()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["tokens", *row])
            writer.writerow([tokens, *row.values()])

    def keep(self, tokens: int) -> None:
        """Forgets what was logged after `tokens`, where the run goes on, and a line that a kill cut short."""
        if self.path.is_file():
            header, *lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
            kept = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= tokens]
            if kept:
                write_whole(self.path, "".join([header, *kept]))
            else:
                self.path.unlink()


def histogram(density_L: Tensor) -> np.ndarray:
    """Counts of log10 density between EDGES; the silent latents are in the first."""
    exponents = density_L.detach().cpu().double().clamp(min=1e-6).log10().numpy()
    return np.histogram(exponents, np.append(EDGES[:-1], 0.0 + 1e-9))[0]


def log(loggers: Sequence[Any], tokens: int, scalars: dict[str, float], densities: dict[str, Tensor]) -> None:
    counts = {name: histogram(density) for name, density in densities.items()}
    for logger in loggers:
        if isinstance(logger, TrainingLog):
            rounded = {name: f"{value:.6g}" if math.isfinite(value) else "" for name, value in scalars.items()}
            logger.write(tokens, {**rounded, **{name: json.dumps(c.tolist()) for name, c in counts.items()}})
        elif isinstance(logger, WandbLogger):
            import wandb

            charts = {name: wandb.Histogram(np_histogram=(c, EDGES)) for name, c in counts.items()}
            logger.experiment.define_metric("*", step_metric="tokens")
            logger.experiment.log({"tokens": tokens, **scalars, **charts})
        else:
            logger.log_metrics({"tokens": tokens, **scalars}, step=tokens)
