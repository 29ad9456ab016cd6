"""evaluation.csv as rows in reading order: roles, methods, the headline k."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rayscope.evaluation.metrics import FEWEST_DOCUMENTS
from rayscope.report.metrics import METRICS

KEYS = ["site", "dictionary", "method", "family", "role", "kind", "k", "coder", "latents", "position0"]
COLUMNS = [*KEYS, "value_bits", "metric", "value", "low", "high", "split", "tokens", "trained_tokens", "seed"]
ROLES = {
    "reference": "Reference codecs",
    "control": "Controls, whose directions know nothing of the data",
    "baseline": "Baselines",
    "told": "Learned, and told the token (which bits do not count)",
    "directions": "Learned directions (signed)",
    "rays": "Learned rays (never negative)",
}
LEARNED = ("rays", "directions")  # without side information
VALUE_BITS = 4  # of a value where methods are shown at one rate: more change FVU little


def rows(evaluation: pd.DataFrame) -> pd.DataFrame:
    """One row for each site, dictionary, k and position0, at its most bits per value: references on top, learned below.

    Columns: KEYS, value_bits, seeds, tokens, trained_tokens, and metric, metric_low, metric_high and metric_documents
    (NaN in a table that was made before they were counted) of every metric. Several seeds become their mean, an
    interval that covers all of theirs, and their fewest documents. Test rows alone, if there are any.
    """
    evaluation = checked(evaluation)
    most = most_bits(evaluation)
    table = summed_up(most, KEYS)
    groups = most.groupby(KEYS, dropna=False, sort=False)
    table["value_bits"] = groups["value_bits"].max().to_numpy()
    return in_order(table)


def checked(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Its test rows, if there are any. Raises ValueError if a column is missing."""
    if "documents" not in evaluation:
        evaluation = evaluation.assign(documents=math.nan)
    missing = [column for column in COLUMNS if column not in evaluation]
    if missing:
        raise ValueError(f"the evaluation has no column {missing[0]!r}; its columns should be {', '.join(COLUMNS)}")
    test = evaluation["split"] == "test"
    return evaluation[test] if test.any() else evaluation


def summed_up(evaluation: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row for each combination of the keys, with the columns of `rows`."""
    groups = evaluation.groupby(keys, dropna=False, sort=False)
    row = groups.ngroup()
    table = groups.agg(
        seeds=("seed", "nunique"), tokens=("tokens", "max"), trained_tokens=("trained_tokens", "max")
    ).reset_index()
    for column, how in (("value", "mean"), ("low", "min"), ("high", "max"), ("documents", "min")):
        values = pd.to_numeric(evaluation[column]).groupby([row, evaluation["metric"]]).agg(how).unstack()
        for name in METRICS:
            table[name if column == "value" else f"{name}_{column}"] = values.get(name, np.nan)
    return table


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    order = {name: i for i, name in enumerate(dict.fromkeys(table["method"]))}
    ranks = table.assign(role=table["role"].map(list(ROLES).index), method=table["method"].map(order))
    ranks = ranks.sort_values(["site", "position0", "role", "method", "latents", "k"], kind="stable")
    return table.loc[ranks.index].reset_index(drop=True)


def most_bits(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Each dictionary at its most bits per value, with what is the same at any number of them."""
    bits = evaluation["value_bits"].astype(float)
    most = bits.groupby([evaluation["site"], evaluation["dictionary"]]).transform("max")
    return evaluation[bits.isna() | (bits == most)]


def points(evaluation: pd.DataFrame) -> pd.DataFrame:
    """`rows`, but each dictionary at each of its bits per value."""
    bits = evaluation["value_bits"].astype(float)
    parts = [rows(evaluation[bits.isna() | (bits == b)]) for b in sorted(bits.dropna().unique())]
    return pd.concat(parts or [rows(evaluation)], ignore_index=True).drop_duplicates([*KEYS, "value_bits"])


def values_said(evaluation: pd.DataFrame) -> str:
    """What values were in FVU and dCE: at how many bits each, or as they are."""
    bits = sorted(evaluation["value_bits"].dropna().astype(int).unique())
    if not bits:
        return "Values are in full precision, not at the 8 bits that bits count."
    return f"Each was measured with its values at {listed(bits)} bits, as bits count them."


def listed(numbers: Sequence[int]) -> str:
    *some, last = map(str, numbers)
    return f"{', '.join(some)} and {last}" if some else last


def headline_k(table: pd.DataFrame) -> float:
    """The lower middle one of the k that learned dictionaries have (8 of 4, 8, 16, 32); nan if there are none."""
    learned = table[table["role"].isin(LEARNED)]
    ks = sorted((learned if len(learned) else table)["k"].dropna().unique())
    return float(ks[(len(ks) - 1) // 2]) if ks else math.nan


def headline_bits(points: pd.DataFrame) -> float:
    """The rate at which methods are shown: the fewest bits of rays at the headline k, coded by their own encoder with
    values at VALUE_BITS; of any learned dictionary, if there are no rays; nan without learned dictionaries.
    """
    learned = points[points["role"].isin(LEARNED) & (points["k"] == headline_k(points)) & (points["coder"] == "own")]
    learned = learned[learned["role"] == "rays"] if (learned["role"] == "rays").any() else learned
    learned = learned[learned["bits"] > 0]
    distance = (learned["value_bits"] - VALUE_BITS).abs()
    return float(learned["bits"][distance.isna() | (distance == distance.min())].min())


def at_k(table: pd.DataFrame, k: float) -> pd.DataFrame:
    """References, learned rows at this k, and of every other method the row nearest to those rays in bits per token.

    A learned method without this k shows its nearest one; each coder of a method is one of its own.
    """
    distance = (np.log(table["k"].astype(float)) - (math.log(k) if k > 0 else 0)).abs()
    if "bits" in table:
        rays = table[(table["role"] == "rays") & (table["k"] == k)]
        budget = rays.groupby(["site", "position0"])["bits"].min()
        places = pd.MultiIndex.from_frame(table[["site", "position0"]])
        bits = table["bits"].astype(float)
        in_bits = (
            np.log(bits.where(bits > 0)) - np.log(budget.where(budget > 0).reindex(places).to_numpy(float))
        ).abs()
        distance = distance.where(table["role"].isin(LEARNED), in_bits.fillna(distance))
    distance = distance.fillna(0.0)
    curve = [table[column] for column in ("site", "position0", "role", "method", "coder")]
    least = distance.groupby(curve).transform("min")
    return table[distance <= least + 1e-9]


def documents_said(evaluation: pd.DataFrame) -> str:
    """How many documents the numbers are of, and whether they are too few for intervals; empty if nobody counted."""
    table = rows(evaluation)
    read, spliced = (table[f"{metric}_documents"].max() for metric in ("fvu", "dce"))
    if math.isnan(read):
        return ""
    said = [counted(read)] + ([f"dCE and KL {counted(spliced)}"] if spliced != read and not math.isnan(spliced) else [])
    few = f"; intervals and verdicts need {FEWEST_DOCUMENTS}" if min(read, spliced) < FEWEST_DOCUMENTS else ""
    return f"{', '.join(said)}{few}"


def counted(documents: float) -> str:
    return f"{documents:,.0f} document{'' if documents == 1 else 's'}"


def seeds_said(evaluation: pd.DataFrame) -> str:
    """ "1 seed", or how many."""
    learned = evaluation[evaluation["role"].isin(LEARNED)]
    seeds = (learned if len(learned) else evaluation)["seed"].nunique()
    return f"{seeds} seed{'' if seeds == 1 else 's'}"
