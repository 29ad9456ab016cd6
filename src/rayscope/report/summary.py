"""The table that a terminal shows."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayscope.escapes import visible
from rayscope.report.metrics import METRICS
from rayscope.report.readings import readings, seconds_said, with_seconds
from rayscope.report.tables import (
    ROLES,
    documents_said,
    headline_bits,
    points,
    seeds_said,
    values_said,
)
from rayscope.report.texts import texts_said, unlike_said
from rayscope.report.verdicts import READ, answer, by_method, said, sentence, verdicts

PRIMARY = "dce"


def summary_table(points: pd.DataFrame, site: str, rate: float, position0: str = "excluded") -> Table:
    """Every method under every coder at one rate, nulls on top, ours below: bits, FVU and dCE with 95% intervals."""
    here = points[(points["site"] == site) & (points["position0"] == position0)]
    shown = Table(
        title=Text(visible(f"{site}, position 0 {position0}, at {METRICS['bits'].show(rate) or 'no'} bits per token")),
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    shown.add_column("method", overflow="fold")
    for heading in ("L0", "bits", "FVU", "95%", "dCE nats", "95%", "per 1,000"):
        shown.add_column(heading, justify="right", no_wrap=True, style="dim" if heading == "95%" else None)
    previous = None
    for row in readings(here, rate).to_dict("records"):
        if row["role"] != previous:
            shown.add_row(Text(ROLES[row["role"]], style="italic dim"))
        cells = [Text(f"  {visible(said(row['method'], row['coder']))}")]
        cells += [METRICS[name].show(row[name]) for name in ("l0", "bits")]
        for name in READ:
            low, high = METRICS[name].show(row[f"{name}_low"]), METRICS[name].show(row[f"{name}_high"])
            cells += [METRICS[name].show(row[name]), f"{low} {high}".strip()]
        cells.append(seconds_said(row["seconds_per_1000"]))
        shown.add_row(*cells, style="bold" if row["role"] == "rays" else None)
        previous = row["role"]
    return shown


def print_summary(evaluation: pd.DataFrame, console: Console, seconds: pd.DataFrame | None = None) -> None:
    """The table that matters for each site, and at which rates rays beat the best of each family there.

    seconds: what encoding takes (encode_seconds.csv), if it was measured.
    """
    table, unlike = with_seconds(points(evaluation), seconds), unlike_said(evaluation)
    rate = headline_bits(table)
    for site in dict.fromkeys(evaluation["site"]):
        console.print(summary_table(table, site, rate))
        judged = verdicts(table[table["site"] == site], rate)
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
        "bits: a token's code. Each method is read on its front over k and bits per value."
    )
    console.print(Text(f"{words} {values_said(evaluation)} {seeds_said(evaluation)}."))
    if documents := documents_said(evaluation):
        console.print(Text(f"Measured on {documents}."))
    if texts := texts_said(evaluation):
        console.print(Text(visible(texts)))
