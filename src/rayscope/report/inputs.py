"""The files of a run's folder that a report is made from: which there are, and how they are read."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rayscope.report.tables import COLUMNS, ROLES
from rayscope.report.texts import NAMED

TEXT = {
    *("site", "dictionary", "method", "family", "role", "kind", "coder", "metric", "position0", "split"),
    *("predicate", "token", "labels", "also", "device", *NAMED),
    *("found", "censored", "hard_ids", "hard_tokens"),
}
FEATURES = [
    "site",
    "dictionary",
    "method",
    "role",
    "kind",
    "k",
    "predicate",
    "token",
    "rank",
    "balanced_accuracy",
    "precision_at_80",
    "hard_auroc",
    "found",
    "hard_tokens",
    "labels",
    "appeared_after",
    "appeared_by",
    "censored",
]
FILES = {  # file: (what it holds, the command that makes it, columns that it must have)
    "config.yaml": ("what was run", "train", []),
    "environment.json": ("versions, threads and command", "train", []),
    "training.csv": ("training curves", "train", ["tokens"]),
    "evaluation.csv": ("the comparison, its figures and verdicts", "evaluate", COLUMNS),
    "evaluation_elsewhere.csv": ("the headline's dictionaries on text of another kind", "demo", COLUMNS),
    "latent_density.csv": ("density histograms", "evaluate", ["site", "dictionary", "latent", "density"]),
    "encode_seconds.csv": (
        "how long encoding takes",
        "evaluate",
        ["site", "dictionary", "method", "k", "coder", "also", "seconds_per_1000"],
    ),
    "token_features.csv": ("token-feature figures", "features", FEATURES),
    "contexts.json": ("latents with their top contexts", "features", []),
}
RETURN = "\ue00d"  # private use: stands for a carriage return while a CSV file is read


def read(run: Path) -> dict[str, Any]:
    """{file: its content} of what is there. Raises ValueError for a file that is not what its command writes."""
    return {name: read_file(run / name) for name in FILES if (run / name).is_file()}


def read_file(path: Path) -> Any:
    """A table for .csv, what JSON holds for .json, else the text.

    Raises ValueError, with what to do, for one that cannot be read.
    """
    _, command, needed = FILES[path.name]
    try:
        if path.suffix == ".csv":
            return read_csv(path, needed)
        text = path.read_text(encoding="utf-8", errors="replace")
        return json.loads(text) if path.suffix == ".json" else text
    except (json.JSONDecodeError, RecursionError, csv.Error, Damaged) as error:
        raise ValueError(f"{path}: {error}; remove it, and `rayscope {command}` makes it again") from None


class Damaged(ValueError):
    """A table that is not what was written."""


def read_csv(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    """Read by the csv module, to which tokens such as NA, null and "\\0" are text; blank numbers are nan.

    Raises Damaged for a table that was cut off, lacks a column of `needed`, or has something else than numbers there,
    or an unknown role.
    """
    text = path.read_bytes().decode("utf-8", "replace")
    if (
        "\r\n" not in text.partition("\n")[0] + "\n"
    ):  # then a carriage return is a token's, which writers leave unquoted
        text = text.replace("\r", RETURN)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(lines, [])
    if not header:
        raise Damaged("it is empty")
    missing = [column for column in needed if column not in header]
    if missing:
        raise Damaged(f"no column {missing[0]!r}; the columns should be {', '.join(needed)}")
    if len(set(header)) < len(header):
        raise Damaged("two columns of one name")
    body = [[field.replace(RETURN, "\r") for field in line] for line in lines if line]
    uneven = next((i for i, line in enumerate(body, 2) if len(line) != len(header)), None)
    if uneven:
        raise Damaged(f"record {uneven} has not the {len(header)} fields of the header; was it cut off?")
    if not text.endswith(("\n", RETURN)):
        raise Damaged("the last line has no end; was it cut off?")
    table = pd.DataFrame(body, columns=header, dtype=object)
    for column in table.columns:
        if column not in TEXT:
            numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
            strange = table[column][numbers.isna() & ~table[column].isin(["", "nan"])]
            if column in needed and len(strange):
                raise Damaged(f"record {strange.index[0] + 2} has {column}={strange.iloc[0]!r:.40}, not a number")
            table[column] = numbers
    strange = table["role"][~table["role"].isin(ROLES)] if "role" in needed else []
    if len(strange):
        raise Damaged(f"record {strange.index[0] + 2} has role={strange.iloc[0]!r:.40}, not one of {', '.join(ROLES)}")
    return table
