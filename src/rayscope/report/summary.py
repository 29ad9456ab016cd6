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
from rayscope.report.tables import ROLES, at_k, documents_said, headline_k, rows, seeds_said, values_said
from rayscope.report.texts import texts_said, unlike_said
from rayscope.report.verdicts import BASELINES, answer, sentence, verdicts


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
    for heading in ("k", "bits", "FVU", "95%", "dCE nats", "95%"):
        shown.add_column(heading, justify="right", no_wrap=True, style="dim" if heading == "95%" else None)
    previous = None
    for row in table.to_dict("records"):
        if row["role"] != previous:
            shown.add_row(Text(ROLES[row["role"]], style="italic dim"))
        cells = [
            Text(f"  {visible(row['dictionary'])}"),
            "" if math.isnan(row["k"]) else f"{row['k']:.0f}",
            METRICS["bits"].show(row["bits"]),
        ]
        for name in ("fvu", "dce"):
            low, high = METRICS[name].show(row[f"{name}_low"]), METRICS[name].show(row[f"{name}_high"])
            cells += [METRICS[name].show(row[name]), f"{low} {high}".strip()]
        shown.add_row(*cells, style="bold" if row["role"] == "rays" else None)
        previous = row["role"]
    return shown


def print_summary(evaluation: pd.DataFrame, console: Console, k: float | None = None) -> None:
    """The table that matters for each site, and whether rays beat PCA there at equal bits."""
    headline = headline_k(rows(evaluation)) if k is None else k
    found = [row for row in verdicts(evaluation, roles=("rays",)) if row["k"] == headline]
    unlike = unlike_said(evaluation)
    for site in dict.fromkeys(evaluation["site"]):
        here = [row for row in found if row["site"] == site]
        console.print(summary_table(evaluation, site, headline))
        said = f"Do rays beat {' and '.join(BASELINES)} here? {answer(here)} {visible(unlike)}"
        console.print(Text(said.rstrip(), style="bold"))
        for row in here:
            console.print(Text(f"  {visible(sentence(row))}"), soft_wrap=True)
        console.print()
    words = (
        "FVU: fraction of variance unexplained. dCE: rise of the loss, nats/token. Lower is better. "
        "bits: a token's code."
    )
    console.print(Text(f"{words} {values_said(evaluation)} {seeds_said(evaluation)}."))
    if documents := documents_said(evaluation):
        console.print(Text(f"Measured on {documents}."))
    if texts := texts_said(evaluation):
        console.print(Text(visible(texts)))
