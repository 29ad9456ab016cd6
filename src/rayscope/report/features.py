"""Token features in one table: means over tokens and how many are found, of every dictionary and of the probe."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayscope.escapes import visible
from rayscope.report.tables import ROLES

MEANS = {"balanced_accuracy": "balanced accuracy", "precision_at_80": "precision", "hard_auroc": "hard AUROC"}
PREDICATES = ("current", "previous")
FLOOR = "shuffled labels"
MEANING = (
    "Means over tokens, of the best latent of each on test text: balanced accuracy; precision at recall .8; hard "
    "AUROC, the least AUROC against each of the five other tokens on which that latent fires most. A token is found if "
    "its balanced accuracy and its hard AUROC are both over .8."
)


def means(features: pd.DataFrame) -> pd.DataFrame:
    """A row per site, predicate and dictionary, in reading order: MEANS, and found of so many tokens.

    The probe is one of the references. The last row of a site and predicate is the floor: all dictionaries (not the
    probe) with shuffled labels, in one.
    """
    floor = features[(features["labels"] == "shuffled") & (features["kind"] != "probe")]
    floor = floor.assign(dictionary=FLOOR, role="control", k=np.nan)
    kept = pd.concat([features[features["labels"] == "real"], floor])
    kept = kept.assign(
        found=kept["found"].astype(str).eq("True"), known=kept["found"].astype(str).isin(["True", "False"])
    )
    groups = kept.groupby(["site", "predicate", "role", "dictionary"], sort=False, dropna=False)
    table = groups.agg(**{name: (name, "mean") for name in MEANS}, found=("found", "sum"), tokens=("known", "sum"))
    table = table.reset_index()
    order = {name: i for i, name in enumerate(dict.fromkeys(table["site"]))}
    keys = table.assign(
        site=table["site"].map(order), role=table["role"].map(list(ROLES).index), floor=table["dictionary"] == FLOOR
    )
    return table.loc[keys.sort_values(["site", "predicate", "floor", "role"], kind="stable").index].reset_index(
        drop=True
    )


def by_site(features: pd.DataFrame) -> list[dict[str, Any]]:
    """[{site, rows: [{name, role, cells}]}]: a row per dictionary, its cells those of the current and then those of the
    previous token."""
    table, sites = means(features), []
    for site in dict.fromkeys(table["site"]):
        here = table[table["site"] == site]
        rows = []
        for name in dict.fromkeys(here["dictionary"]):
            of_name = here[here["dictionary"] == name].set_index("predicate")
            cells: list[str] = []
            for predicate in PREDICATES:
                row = of_name.loc[predicate] if predicate in of_name.index else None
                cells += [""] * (len(MEANS) + 1) if row is None else shown(row)
            rows.append({"name": name, "role": of_name["role"].iloc[0], "cells": cells})
        sites.append({"site": site, "rows": rows})
    return sites


def shown(row: pd.Series) -> list[str]:
    """The cells of one predicate: every mean, then how many tokens are found."""
    values = ["" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in MEANS]
    return [*values, f"{row['found']} of {row['tokens']}" if row["tokens"] else ""]


def print_features(features: pd.DataFrame, console: Console) -> None:
    """A table for each site, and what its columns mean."""
    for one in by_site(features):
        title = Text(visible(f"{one['site']}, token features: current token, then previous token"))
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("dictionary", overflow="fold")
        for heading in ("bal. acc.", "prec.", "hard", "found") * len(PREDICATES):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in one["rows"]:
            table.add_row(visible(row["name"]), *row["cells"], style="bold" if row["role"] == "rays" else None)
        console.print(table)
        console.print()
    console.print(Text(MEANING))
