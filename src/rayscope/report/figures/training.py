"""Training curves."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false

import pandas as pd
from matplotlib.ticker import FuncFormatter

from rayscope.drawing import label, panels, short
from rayscope.report.figures.style import Styles
from rayscope.report.tables import at_k, headline_k


def training_figure(training: pd.DataFrame, table: pd.DataFrame, look: Styles) -> str:
    """FVU and the dead share of each learned dictionary at the headline k against training tokens."""
    headline = at_k(table, headline_k(table)) if len(table) else table
    known = {(row.site, row.dictionary): (row.role, row.method) for row in headline.itertuples()}
    curves = []
    for column in training.columns:
        parts = str(column).split("/", 3)
        if len(parts) == 4 and parts[0] == "train" and parts[1] in ("fvu", "dead") and training[column].notna().any():
            key = known.get((parts[2], parts[3]))
            if key or not known:
                curves.append((parts[1], parts[2], parts[3], key, column))
    places = sorted({(metric, site) for metric, site, *_ in curves}, key=lambda place: (place[0] != "fvu", place[1]))
    if not places:
        return ""
    with panels(len(places), 2.5, columns=max(1, min(2, len({site for _, site in places})))) as (axes, svg):
        for one, (metric, site) in zip(axes, places, strict=True):
            for *place, name, key, column in curves:
                if (metric, site) == tuple(place):
                    points = training[["tokens", column]].dropna().sort_values("tokens")
                    line = {k: v for k, v in look.get(key, {}).items() if k != "marker"}
                    one.plot(points["tokens"], points[column], label=label(key[1] if key else name), **line)
            one.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
            one.set_xlabel("training tokens")
            one.set_ylabel({"fvu": "FVU of the batch", "dead": "share of latents dead"}[metric])
            one.set_ylim(bottom=0, top=None if metric == "dead" else min(1.5, one.get_ylim()[1]))
            one.set_title(label(site))
        return svg()
