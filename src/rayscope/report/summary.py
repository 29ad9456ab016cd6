"""The table that a terminal shows."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false

import math

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayscope.escapes import visible
from rayscope.report.metrics import METRICS
from rayscope.report.tables import (
    ROLES,
    at_k,
    documents_said,
    headline_bits,
    headline_k,
    points,
    rows,
    seeds_said,
    values_said,
)
from rayscope.report.texts import texts_said, unlike_said
from rayscope.report.verdicts import answer, by_method, sentence, verdicts

PRIMARY = "dce"


def summary_table(evaluation: pd.DataFrame, site: str, k: float | None = None, position0: str = "excluded") -> Table:
    """Nulls on top, ours below, at the headline k; bits alongside FVU and dCE with 95% intervals."""
    table = rows(evaluation)
    table = table[(table["site"] == site) & (table["position0"] == position0)]
    table = at_k(table, headline_k(table) if k is None else k)
    shown = Table(
        title=Text(visible(f"{site}, position 0 {position0}")),
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    shown.add_column("dictionary", overflow="fold")
    for heading in ("k", "L0", "bits", "FVU", "95%", "dCE nats", "95%"):
        shown.add_column(heading, justify="right", no_wrap=True, style="dim" if heading == "95%" else None)
    previous = None
    for row in table.to_dict("records"):
        if row["role"] != previous:
            shown.add_row(Text(ROLES[row["role"]], style="italic dim"))
        cells = [
            Text(f"  {visible(row['dictionary'])}"),
            "" if math.isnan(row["k"]) else f"{row['k']:.0f}",
            METRICS["l0"].show(row["l0"]),
            METRICS["bits"].show(row["bits"]),
        ]
        for name in ("fvu", "dce"):
            low, high = METRICS[name].show(row[f"{name}_low"]), METRICS[name].show(row[f"{name}_high"])
            cells += [METRICS[name].show(row[name]), f"{low} {high}".strip()]
        shown.add_row(*cells, style="bold" if row["role"] == "rays" else None)
        previous = row["role"]
    return shown


def print_summary(evaluation: pd.DataFrame, console: Console, k: float | None = None) -> None:
    """The table that matters for each site, and at which rates rays beat the best of each family there."""
    table, unlike = rows(evaluation), unlike_said(evaluation)
    headline, rate = headline_k(table) if k is None else k, headline_bits(table)
    for site in dict.fromkeys(evaluation["site"]):
        console.print(summary_table(evaluation, site, headline))
        judged = verdicts(points(evaluation[evaluation["site"] == site]), rate)
        rays = [verdict for verdict in judged if verdict.role == "rays" and verdict.position0 == "excluded"]
        console.print(Text(f"Do rays beat the best of each family here? {visible(unlike)}", style="bold"))
        for who, found in by_method(rays).items() or [("", rays)]:
            console.print(Text(visible(f"  {who}: {answer(found)}" if who else f"  {answer(found)}"), style="bold"))
            for verdict in found:
                if verdict.metric == PRIMARY:
                    console.print(Text(f"    {visible(sentence(verdict, rate))}"), soft_wrap=True)
        console.print()
    words = (
        "FVU: fraction of variance unexplained. dCE: rise of the loss, nats/token. Lower is better. "
        "bits: a token's code. Verdicts are read on fronts over the rates that both sides have."
    )
    console.print(Text(f"{words} {values_said(evaluation)} {seeds_said(evaluation)}."))
    if documents := documents_said(evaluation):
        console.print(Text(f"Measured on {documents}."))
    if texts := texts_said(evaluation):
        console.print(Text(visible(texts)))
