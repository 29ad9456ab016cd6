"""The files of a run's folder that a report is made from: which there are, and how they are read."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rayscope.report.tables import COLUMNS

TEXT = {"site", "dictionary", "kind", "metric", "position0", "split", "quantised", "predicate", "token", "labels"}
FEATURES = [
    "site",
    "dictionary",
    "kind",
    "k",
    "predicate",
    "token",
    "rank",
    "balanced_accuracy",
    "labels",
    "appeared_at",
]
FILES = {  # file: (what it holds, the command that makes it, columns that it must have)
    "config.yaml": ("what was run", "train", []),
    "environment.json": ("versions, threads and command", "train", []),
    "training.csv": ("training curves", "train", ["tokens"]),
    "evaluation.csv": ("the comparison, its figures and verdicts", "evaluate", COLUMNS),
    "latent_density.csv": ("density histograms", "evaluate", ["site", "dictionary", "latent", "density"]),
    "token_features.csv": ("token-feature figures", "features", FEATURES),
    "contexts.json": ("latents with their top contexts", "features", []),
}
RETURN = "\ue00d"  # private use: stands for a carriage return while a CSV file is read


def read(run: Path) -> dict[str, Any]:
    """{file: its content} of what is there."""
    found: dict[str, Any] = {}
    for name, (_, _, needed) in FILES.items():
        path = run / name
        if path.is_file():
            try:
                text = path.suffix != ".csv" and path.read_text(encoding="utf-8", errors="replace")
                found[name] = (
                    read_csv(path, needed) if not text else json.loads(text) if path.suffix == ".json" else text
                )
            except (json.JSONDecodeError, csv.Error) as error:
                raise ValueError(f"{path} cannot be read ({error}); make it again or remove it") from None
    return found


def read_csv(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    """Read by the csv module, to which tokens such as NA, null and "\\0" are text; blank numbers are nan."""
    text = path.read_bytes().decode("utf-8", "replace")
    if (
        "\r\n" not in text.partition("\n")[0] + "\n"
    ):  # then a carriage return is a token's, which writers leave unquoted
        text = text.replace("\r", RETURN)
    lines = csv.reader(io.StringIO(text, newline=""))
    header = next(lines, [])
    body = [[field.replace(RETURN, "\r") for field in line] for line in lines if line]
    missing = [column for column in needed if column not in header]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns should be {', '.join(needed)}")
    uneven = next((i for i, line in enumerate(body, 2) if len(line) != len(header)), None)
    if uneven:
        raise ValueError(f"{path}: record {uneven} has not the {len(header)} fields of the header; was it cut off?")
    table = pd.DataFrame(body, columns=header, dtype=object)
    for column in table.columns:
        if column not in TEXT:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table
