"""Directions by coder: what each method's directions cost under each coder at one rate, with the seconds it takes."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayscope.escapes import visible
from rayscope.report.metrics import METRICS
from rayscope.report.readings import KEYS, readings, seconds_said, with_seconds
from rayscope.report.tables import headline_bits, points

ROLES = ("baseline", "directions", "rays")


@dataclass(frozen=True)
class Cell:
    """A method under a coder at one rate. seconds: per 1,000 vectors; NaN if they are not known. same: its own codes,
    which are this coder's too.
    """

    bits: float
    fvu: float
    dce: float
    seconds: float
    same: bool = False

    def shown(self) -> list[str]:
        """bits, FVU, dCE, seconds."""
        numbers = [METRICS["bits"].show(self.bits), METRICS["fvu"].show(self.fvu), METRICS["dce"].show(self.dce)]
        return [*numbers, seconds_said(self.seconds)]


def by_coder(
    table: pd.DataFrame, seconds: pd.DataFrame, site: str, rate: float, position0: str = "excluded"
) -> dict[tuple[str, str], dict[str, Cell]]:
    """{(role, method): {coder: Cell}} of the ROLES at a site, as `readings` gives them; nothing without a rate.

    table: see `tables.points`; seconds: encode_seconds.csv. A method whose own codes another coder of the table would
    give too has the same cell under both.
    """
    here = table[(table["site"] == site) & (table["position0"] == position0) & table["role"].isin(ROLES)]
    also = seconds[seconds["site"] == site].drop_duplicates("dictionary").set_index("dictionary")["also"]
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    for row in readings(with_seconds(here, seconds), rate).to_dict("records") if math.isfinite(rate) else ():
        cells = found.setdefault((row["role"], row["method"]), {})
        cells[row["coder"]] = cell = Cell(row["bits"], row["fvu"], row["dce"], row["seconds_per_1000"])
        mine = here.loc[(here[KEYS] == [row[key] for key in KEYS]).all(axis=1), "dictionary"]
        for other in str(also.get(mine.iloc[0], "")).split():
            if other in set(here["coder"]):
                cells.setdefault(other, replace(cell, same=True))
    return found


def coders_of(found: dict[tuple[str, str], dict[str, Cell]]) -> list[str]:
    """Own first."""
    return sorted({coder for cells in found.values() for coder in cells}, key=lambda coder: (coder != "own", coder))


def coder_table(found: dict[tuple[str, str], dict[str, Cell]], site: str) -> Table:
    """A row per method: its bits, and under each coder FVU, dCE and seconds."""
    title = Text(visible(f"{site}: directions by coder"))
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), show_edge=False)
    shown.add_column("directions", overflow="fold")
    shown.add_column("bits", justify="right", no_wrap=True)
    for coder in coders_of(found):
        for heading in (f"{coder}: FVU", "dCE nats", "per 1,000"):
            shown.add_column(heading, justify="right", no_wrap=True)
    for (_, method), cells in found.items():
        texts = [
            text for coder in coders_of(found) for text in (cells[coder].shown()[1:] if coder in cells else [""] * 3)
        ]
        shown.add_row(Text(f"  {visible(method)}"), next(iter(cells.values())).shown()[0], *texts)
    return shown


def print_coders(evaluation: pd.DataFrame, seconds: pd.DataFrame, console: Console) -> None:
    """A short table per site, if there is more than one coder."""
    table = points(evaluation)
    for site in dict.fromkeys(table["site"]):
        found = by_coder(table, seconds, site, headline_bits(table))
        if len(coders_of(found)) > 1:
            console.print(coder_table(found, site), end="\n\n")


def coder_tables(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the page shows of each site: {site, coders, rows of {method, cells}}. found: the files of a run."""
    if "evaluation.csv" not in found or "encode_seconds.csv" not in found:
        return []
    table, tables = points(found["evaluation.csv"]), []
    for site in dict.fromkeys(table["site"]):
        methods = by_coder(table, found["encode_seconds.csv"], site, headline_bits(table))
        coders = coders_of(methods)
        rows = [
            {"method": method, "cells": [cells[c].shown() if c in cells else [""] * 4 for c in coders]}
            for (_, method), cells in methods.items()
        ]
        tables.append({"site": site, "coders": coders, "rows": rows})
    return [one for one in tables if len(one["coders"]) > 1]
