"""FVU and dCE of every method against bits."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from rayscope.drawing import COLOURS, LINES, MARKERS, label, log_axis, panels
from rayscope.evaluation.fronts import Front

METRICS = {"fvu": "FVU", "dce": "dCE (nats per token)"}
BAND = ("random", "frozen")  # directions that know nothing of the data


def figure(table: pd.DataFrame) -> str:
    """Position 0 left out: a row per site, the front of each method under each coder (of means over seeds), and the
    BAND shaded.
    """
    coded = table[table["position0"] == "excluded"].dropna(subset=["bits"])
    by_coder = coded["method"] + " by " + coded["coder"]
    coded = coded.assign(method=coded["method"].where(coded["coder"] == "own", by_coder))
    keys = ["site", "method", "coder", "role", "k", "value_bits"]
    curves = coded.groupby(keys, sort=False, dropna=False)[["bits", *METRICS]].mean().reset_index()
    in_band = curves["method"].isin(BAND)
    looks = looks_of(curves[~in_band])
    sites = list(dict.fromkeys(coded["site"]))
    with panels(2 * len(sites), 3.4) as (axes, svg):
        for one, (site, metric) in zip(axes, product(sites, METRICS), strict=True):
            here = curves["site"] == site
            draw_lines(one, curves[here], metric, looks)
            draw_band(one, curves[here & in_band], metric)
            log_axis(one, "x", "bits per token (log)")
            if (curves.loc[here, metric] > 0).all():
                log_axis(one, "y", "")
            one.set_ylabel(METRICS[metric])
            one.set_title(label(site))
        return svg()


def looks_of(curves: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """{method: its look}: the hue is the role, the tint the method."""
    roles = dict(zip(curves["method"], curves["role"], strict=True))
    looks = {}
    for i, (method, role) in enumerate(roles.items()):
        alike = [other for other in roles if roles[other] == role]
        tint = 0.6 * alike.index(method) / len(alike)
        looks[method] = {
            "color": tuple((1 - tint) * c + tint for c in to_rgb(COLOURS[role])),
            "marker": MARKERS[i % len(MARKERS)],
            "ls": LINES[i % len(LINES)],
            "lw": 2 if method == "rays" else 1,
        }
    return looks


def draw_lines(axes: Axes, curves: pd.DataFrame, metric: str, looks: dict[str, dict[str, Any]]) -> None:
    for method, look in looks.items():
        curve = curves[curves["method"] == method]
        if front := Front.of(curve["bits"], curve[metric]):
            axes.plot(front.bits_P, front.loss_P, label=label(method), **look)


def draw_band(axes: Axes, curves: pd.DataFrame, metric: str) -> None:
    if curves.empty:
        return
    bits = np.unique(curves["bits"])
    fronts = [Front.of(curve["bits"], curve[metric]) for _, curve in curves.groupby("method")]
    values = [np.interp(bits, front.bits_P, front.loss_P) for front in fronts if front]
    low, high = np.min(values, 0), np.max(values, 0)
    axes.fill_between(bits, low, high, color=COLOURS["control"], alpha=0.25, lw=0, label=" and ".join(BAND))
