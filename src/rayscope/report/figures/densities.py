"""How often latents fire."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

import math

import numpy as np
import pandas as pd

from rayscope.drawing import label, panels
from rayscope.report.figures.style import Styles
from rayscope.report.tables import ROLES, at_k, headline_k


def density_figure(density: pd.DataFrame, table: pd.DataFrame, look: Styles) -> str:
    """Histogram of log10 density of the latents that fired, one panel per site."""
    headline = at_k(table, headline_k(table)) if len(table) else table
    headline = headline[~headline["role"].isin(["reference", "control"])]
    known = {(row.site, row.dictionary): (row.role, row.method) for row in headline.itertuples()}
    shown = [not known or key in known for key in zip(density["site"], density["dictionary"], strict=True)]
    density = density[np.array(shown, bool)]
    sites = list(dict.fromkeys(density["site"]))
    if not sites:
        return ""
    with panels(len(sites), 3.0) as (axes, svg):
        for one, site in zip(axes, sites, strict=True):
            here = density[density["site"] == site]
            alive = here.loc[here["density"] > 0, "density"]
            if alive.empty:
                continue
            edges = np.linspace(math.floor(np.log10(alive.min())), 0, 41) if alive.min() < 1 else np.linspace(-1, 0, 41)
            for name, values in here.groupby("dictionary", sort=False)["density"]:
                key = known.get((site, name), ("rays", name))
                counts, _ = np.histogram(np.log10(values[values > 0]), edges)
                line = {k: v for k, v in look.get(key, {}).items() if k != "marker"}
                front = 2 + list(ROLES).index(key[0])
                one.stairs(100 * counts / len(values), edges, label=label(key[1]), zorder=front, linewidth=1.4, **line)
            one.set_xlabel("log10 of the share of tokens on which a latent fires")
            one.set_ylabel("% of latents")
            one.set_title(label(site))
        return svg()
