"""Quality against bits per token."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from rayscope.drawing import COLOURS, label, log_axis, panels
from rayscope.evaluation.fronts import Front
from rayscope.report.figures.style import Styles
from rayscope.report.metrics import METRICS
from rayscope.report.tables import ROLES
from rayscope.report.verdicts import fronts, said


def bits_figure(points: pd.DataFrame, metric: str, look: Styles) -> str:
    """A metric against bits per token, one panel per site, the front of each method under each coder. See `points`."""
    drawn = points[points["bits"] > 0].dropna(subset=[metric])
    sites = list(dict.fromkeys(drawn["site"]))
    if not sites:
        return ""
    with panels(len(sites), 3.6) as (axes, svg):
        for one, site in zip(axes, sites, strict=True):
            here = drawn[drawn["site"] == site]
            reference = points[(points["site"] == site) & (points["role"] == "reference")]
            mean = reference[reference["method"] == "mean"][metric].dropna()
            if len(mean) and (here[metric] > 0).all() and mean.iloc[0] > 0:
                one.axhline(
                    mean.iloc[0], color=COLOURS["control"], linewidth=1, linestyle=(0, (1, 2)), label="mean codec"
                )
            known = fronts(here, metric)
            for role, method, coder in sorted(known, key=lambda key: list(look).index(key[:2])):
                draw_front(one, known[role, method, coder], role, said(method, coder), look[role, method], coder)
            if (here[metric] > 0).all():
                log_axis(one, "y", "")
            log_axis(one, "x", "bits per token (log)")
            one.set_ylabel(f"{METRICS[metric].heading} ({METRICS[metric].unit})")
            one.set_title(label(site))
        return svg()


def draw_front(axes: Axes, front: Front, role: str, name: str, look: dict, coder: str) -> None:
    """Markers of another coder than a method's own are open."""
    value_P, low_P, high_P = front.loss_P
    bars = np.nan_to_num(np.clip([value_P - low_P, high_P - value_P], 0, None))
    width, order = 1.8 if role == "rays" else 1.1, 2 + list(ROLES).index(role)
    fill = {} if coder == "own" else {"markerfacecolor": "white"}
    axes.errorbar(
        front.bits_P, value_P, bars, label=label(name), elinewidth=1, lw=width, zorder=order, **{**look, **fill}
    )
