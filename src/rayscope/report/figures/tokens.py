"""Token features by frequency rank: how well a latent tells a token, and when it appeared in training."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from rayscope.drawing import label, log_axis, panels, token_label
from rayscope.report.figures.style import Styles
from rayscope.report.tables import LEARNED, at_k, headline_k


def token_figure(features: pd.DataFrame, look: Styles) -> str:
    """Balanced accuracy of the best latent against frequency rank, one panel per site and predicate."""
    drawn = at_headline(features).dropna(subset=["balanced_accuracy", "rank"])
    places = list(drawn.groupby(["site", "predicate"], sort=True).groups)
    if not places:
        return ""
    with panels(len(places), 3.3) as (axes, svg):
        for one, (site, predicate) in zip(axes, places, strict=True):
            here = drawn[(drawn["site"] == site) & (drawn["predicate"] == predicate)]
            real, shuffled = here[here["labels"] == "real"], here[(here["labels"] == "shuffled")]
            floor = shuffled[shuffled["kind"] != "probe"] if (shuffled["kind"] != "probe").any() else shuffled
            ends = (
                ("ceiling: linear probe", real[real["kind"] == "probe"], "-"),
                ("floor: shuffled labels", floor, (0, (3, 2))),
            )
            for name, rows, line in ends:
                if len(rows):
                    x, y = medians(rows["rank"].to_numpy(float), rows["balanced_accuracy"].to_numpy(float))
                    one.plot(x, y, color="#000000", linestyle=line, linewidth=1.1, label=name, zorder=3)
            for key in look:
                rows = real[(real["role"] == key[0]) & (real["method"] == key[1])]
                if rows.empty:
                    continue
                ranks, scores = rows["rank"].to_numpy(float), rows["balanced_accuracy"].to_numpy(float)
                if key[0] in LEARNED:
                    one.plot(
                        ranks,
                        scores,
                        look[key]["marker"],
                        color=look[key]["color"],
                        alpha=0.22,
                        markersize=2.5,
                        zorder=2,
                        mew=0,
                    )
                one.plot(*medians(ranks, scores), label=label(key[1]), zorder=4, **{**look[key], "marker": None})
            log_axis(one, "x", "token's rank by frequency (1 = most frequent, log)")
            mark_tokens(one, here)
            one.set_ylim(min(0.45, here["balanced_accuracy"].min() - 0.02), 1.01)
            one.set_ylabel("balanced accuracy")
            one.set_title(f"{label(site)}: {label(predicate)} token", pad=34)
        return svg()


def appeared_figure(features: pd.DataFrame, look: Styles) -> str:
    """Between which snapshots a token appeared, against frequency rank; censored ones on top."""
    drawn = at_headline(features[features["labels"] == "real"])
    drawn = drawn[drawn["role"].isin(LEARNED)].dropna(subset=["rank"])
    drawn = drawn[drawn.groupby(["site", "method"])["appeared_by"].transform("count") > 0]
    places = list(drawn.groupby(["site", "predicate"], sort=True).groups)
    if not places:
        return ""
    top, bottom = drawn["appeared_by"].max() * 1.6, drawn["appeared_by"].min() / 2  # 0 tokens have no logarithm
    with panels(len(places), 3.0) as (axes, svg):
        for one, (site, predicate) in zip(axes, places, strict=True):
            here = drawn[(drawn["site"] == site) & (drawn["predicate"] == predicate)]
            for key in look:
                rows = here[(here["role"] == key[0]) & (here["method"] == key[1])]
                if rows.empty:
                    continue
                seen, censored = rows.dropna(subset=["appeared_by"]), rows[rows["censored"] == "True"]
                color, marker = look[key]["color"], look[key]["marker"]
                ends = seen["appeared_after"].clip(lower=bottom), seen["appeared_by"]
                one.vlines(seen["rank"], *ends, color=color, alpha=0.35, linewidth=1.2)
                plain = {"linestyle": "", "color": color, "markersize": 4}
                one.plot(seen["rank"], ends[1], marker, alpha=0.6, mew=0, label=label(key[1]), **plain)
                one.plot(censored["rank"], np.full(len(censored), top), "|", alpha=0.5, **{**plain, "markersize": 6})
            one.axhline(top, color="#bbbbbb", linewidth=0.5)
            one.annotate(
                "censored",
                (0.01, top),
                xycoords=("axes fraction", "data"),
                ha="left",
                va="bottom",
                fontsize=7,
                color="#777777",
            )
            log_axis(one, "x", "token's rank by frequency (1 = most frequent, log)")
            log_axis(one, "y", "training tokens (log)")
            mark_tokens(one, here)
            one.set_title(f"{label(site)}: {label(predicate)} token", pad=34)
        return svg()


def at_headline(features: pd.DataFrame) -> pd.DataFrame:
    """Rows of the headline k, and of those that have no k."""
    return at_k(features.assign(position0="", coder="own"), headline_k(features))


def medians(ranks: np.ndarray, scores: np.ndarray, bins: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Median score in equal steps of log rank."""
    cells = np.floor(np.log(ranks) / (np.log(ranks.max()) + 1e-9) * bins * 0.999).astype(int)
    used = np.unique(cells)
    middle = [np.exp(np.log(ranks[cells == cell]).mean()) for cell in used]
    return np.array(middle), np.array([np.median(scores[cells == cell]) for cell in used])


def mark_tokens(axes: Axes, tokens: pd.DataFrame) -> None:
    """' and' by name, and a few tokens of other ranks above the panel for orientation."""
    ranks = tokens.drop_duplicates("rank").set_index("rank")["token"].sort_index()
    special = [rank for rank, token in ranks.items() if token == " and"]
    wanted = np.geomspace(ranks.index.min(), ranks.index.max(), 6)
    for rank in special + [ranks.index[int(np.abs(np.log(ranks.index) - np.log(w)).argmin())] for w in wanted]:
        far = rank in special or all(abs(math.log(rank / other)) > 0.6 for other in special)
        if not far:
            continue
        strong = rank in special
        axes.axvline(
            rank, color="#000000" if strong else "#bbbbbb", linewidth=0.9 if strong else 0.5, linestyle=":", zorder=1
        )
        axes.annotate(
            token_label(ranks[rank]),
            (rank, 1.01),
            xycoords=("data", "axes fraction"),
            rotation=40,
            fontsize=8.5 if strong else 8,
            fontweight="bold" if strong else "normal",
            color="#000000" if strong else "#777777",
        )
