"""The headline's dictionaries on text of another kind, next to their numbers on the text of the run."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportCallIssue=false

import math
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayscope.escapes import visible
from rayscope.report.metrics import METRICS
from rayscope.report.tables import ROLES, rows
from rayscope.report.texts import texts_said

SHOWN = ("l0", "fvu", "dce")  # of each the number here and the number there


def compared_rows(evaluation: pd.DataFrame, elsewhere: pd.DataFrame, position0: str = "excluded") -> list[dict]:
    """{site, dictionary, role, k, cells} of everything measured elsewhere.

    A cell of each metric is {here, there, interval}, the interval that of the number there, if it has one.
    """
    here = {(row["site"], row["dictionary"]): row for row in of_view(evaluation, position0)}
    found = []
    for row in of_view(elsewhere, position0):
        if row["role"] == "reference":
            continue
        before, cells = here.get((row["site"], row["dictionary"]), {}), []
        for name in SHOWN:
            show, low, high = METRICS[name].show, row[f"{name}_low"], row[f"{name}_high"]
            cell = {"here": show(before.get(name, math.nan)), "there": show(row[name])}
            cells.append(cell | {"interval": f"{show(low)} to {show(high)}" if low < high else ""})
        line = {key: row[key] for key in ("site", "dictionary", "role")}
        found.append(line | {"k": "" if math.isnan(row["k"]) else f"{row['k']:.0f}", "cells": cells})
    return found


def of_view(evaluation: pd.DataFrame, position0: str) -> list[dict[str, Any]]:
    table = rows(evaluation)
    return table[table["position0"] == position0].to_dict("records")


def print_elsewhere(evaluation: pd.DataFrame, elsewhere: pd.DataFrame, console: Console) -> None:
    """One short table per site."""
    found = compared_rows(evaluation, elsewhere)
    for site in dict.fromkeys(row["site"] for row in found):
        title = Text(visible(f"{site}: here, and there on text of another kind"))
        shown = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), show_edge=False)
        shown.add_column("dictionary", overflow="fold")
        for heading in ("k", *(name for metric in SHOWN for name in (METRICS[metric].heading, "there"))):
            shown.add_column(heading, justify="right", no_wrap=True)
        previous = None
        for row in (row for row in found if row["site"] == site):
            if row["role"] != previous:
                shown.add_row(Text(ROLES[row["role"]], style="italic dim"))
            cells = [number for cell in row["cells"] for number in (cell["here"], cell["there"])]
            bold = "bold" if row["role"] == "rays" else None
            shown.add_row(Text(f"  {visible(row['dictionary'])}"), row["k"], *cells, style=bold)
            previous = row["role"]
        console.print(shown)
    console.print(Text(visible(texts_said(elsewhere))), end="\n\n")
