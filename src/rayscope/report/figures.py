"""The report's figures: functions of the run's tables that return SVG text, or "" where there is nothing to draw.

Figures are made without pyplot and under matplotlib's own defaults; text becomes paths, labels are plain ASCII, and
dollar signs are no mathematics, so that no token can change a drawing. The same input gives the same bytes.
"""
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false, reportReturnType=false
# (what pandas' own annotations say of df[...] is a union of everything)

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rayscope.report.tables import METRICS, ROLES, at_k, family, headline_k, role

COLOURS = {"rays": "#0072b2", "directions": "#d55e00", "baseline": "#009e73", "null": "#7a7a7a"}
FIRST = {"rays": "o", "directions": "s", "baseline": "^", "null": "x"}
MARKERS, LINES = "^vDPX<>*p", ("-", "--", ":", "-.")
STYLE = {
    "text.parse_math": False,
    "text.usetex": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "rayscope",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.7,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
Styles = dict[tuple[str, str], dict]


def label(text: str, length: int = 40) -> str:
    """Printable ASCII, cut to a length."""
    text = "".join(c if c.isprintable() and c.isascii() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= length else f"{text[: length - 2]}.."


def token_label(token: str) -> str:
    return label(ascii(token), 16)


def styles(table: pd.DataFrame) -> Styles:
    """One look for each (role, family), the same in every figure: the hue is the role, the tint the family."""
    found: Styles = {}
    for name in ROLES:
        families = list(
            dict.fromkeys(table.loc[(table["role"] == name) & ~table["kind"].isin(["codec", "probe"]), "family"])
        )
        families.sort(key=lambda f: (f not in ("pca_topk", "pca_prefix", "topk"), f in ("pca_prefix",)))
        for i, one in enumerate(families):
            tint = 0.55 * i / max(len(families) - 1, 3)
            rgb = tuple((1 - tint) * c + tint for c in to_rgb(COLOURS[name]))
            marker = FIRST[name] if i == 0 else MARKERS[i % len(MARKERS)]
            found[name, one] = {"color": rgb, "marker": marker, "linestyle": LINES[i % len(LINES)]}
    return found


@contextmanager
def panels(count: int, height: float = 3.0, columns: int = 2) -> Iterator[tuple[list[Axes], Callable[[], str]]]:
    """Axes in rows of `columns`, and a function that gives the SVG with one legend below them all."""
    columns = min(columns, count)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        across = -(-count // columns)
        figure = Figure(
            figsize=(4.7 * columns + (0.0 if columns > 1 else 2.3), height * across + 0.6), layout="constrained"
        )
        figure.get_layout_engine().set(hspace=0.08 if across > 1 else 0.02)  # type: ignore[union-attr]
        axes = figure.subplots(across, columns, squeeze=False).flatten().tolist()
        for spare in axes[count:]:
            spare.set_axis_off()

        def svg() -> str:
            lines = {
                text: line for one in axes[:count] for line, text in zip(*one.get_legend_handles_labels(), strict=True)
            }
            if lines:
                longest = max(map(len, lines))
                ncols = max(1, min(len(lines), int(figure.get_figwidth() * 12 / (longest + 7))))
                figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=ncols)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
            text = buffer.getvalue()
            return text[text.index("<svg") :]

        yield axes[:count], svg


def log_axis(axes: Axes, which: str, label_text: str, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Log scale with plain numbers at 1, 2, 5."""
    getattr(axes, f"set_{which}scale")("log")
    low, high = sorted(getattr(axes, f"get_{which}lim")())
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1,) if low > 0 and high / low > 1e3 else subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    getattr(axes, f"set_{which}label")(label_text)


def short(value: float) -> str:
    """1,500,000 as 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def bits_figure(table: pd.DataFrame, metric: str, look: Styles) -> str:
    """A metric against bits per token, one panel a site, one line a family over its k."""
    drawn = table.dropna(subset=["bits", metric])
    sites = list(dict.fromkeys(drawn["site"]))
    if not sites:
        return ""
    with panels(len(sites), 3.6) as (axes, svg):
        for one, site in zip(axes, sites, strict=True):
            here = drawn[drawn["site"] == site]
            mean = table[(table["site"] == site) & (table["kind"] == "codec") & (table["dictionary"] == "mean")][
                metric
            ].dropna()
            if len(mean) and (here[metric] > 0).all() and mean.iloc[0] > 0:
                one.axhline(mean.iloc[0], color=COLOURS["null"], linewidth=1, linestyle=(0, (1, 2)), label="mean codec")
            for key in [key for key in look if key[1] in set(here["family"])]:
                mine = here[(here["role"] == key[0]) & (here["family"] == key[1])].sort_values(["latents", "bits"])
                for _, curve in mine.groupby("latents", dropna=False):
                    errors = [(curve[metric] - curve[f"{metric}_low"]), (curve[f"{metric}_high"] - curve[metric])]
                    bars = np.nan_to_num(np.clip([error.to_numpy(float) for error in errors], 0, None))
                    width = 1.8 if key[0] == "rays" else 1.1
                    front = 2 + list(ROLES).index(key[0])
                    one.errorbar(
                        curve["bits"],
                        curve[metric],
                        bars,
                        label=label(key[1]),
                        elinewidth=1,
                        lw=width,
                        zorder=front,
                        **look[key],
                    )
            if (here[metric] > 0).all():
                log_axis(one, "y", "")
            log_axis(one, "x", "bits per token (log)")
            one.set_ylabel(f"{METRICS[metric].heading} ({METRICS[metric].unit})")
            one.set_title(label(site))
        return svg()


def medians(ranks: np.ndarray, scores: np.ndarray, bins: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Median score in equal steps of log rank."""
    cells = np.floor(np.log(ranks) / (np.log(ranks.max()) + 1e-9) * bins * 0.999).astype(int)
    used = np.unique(cells)
    middle = [np.exp(np.log(ranks[cells == cell]).mean()) for cell in used]
    return np.array(middle), np.array([np.median(scores[cells == cell]) for cell in used])


def at_headline(features: pd.DataFrame) -> pd.DataFrame:
    """Rows of the headline k, and of those that have no k, with role and family."""
    features = features.assign(
        role=[role(kind, name) for kind, name in zip(features["kind"], features["dictionary"], strict=True)],
        family=[family(name, k) for name, k in zip(features["dictionary"], features["k"], strict=True)],
        position0="",
    )
    return at_k(features, headline_k(features))


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


def token_figure(features: pd.DataFrame, look: Styles) -> str:
    """Balanced accuracy of the best latent against frequency rank, one panel a site and predicate."""
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
                rows = real[(real["role"] == key[0]) & (real["family"] == key[1])]
                if rows.empty:
                    continue
                ranks, scores = rows["rank"].to_numpy(float), rows["balanced_accuracy"].to_numpy(float)
                if key[0] in ("rays", "directions"):
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
    """Training tokens at which a token's latent appeared, against frequency rank; those that never did on top."""
    drawn = at_headline(features[features["labels"] == "real"])
    drawn = drawn[drawn["role"].isin(["rays", "directions"])].dropna(subset=["rank"])
    drawn = drawn[drawn.groupby(["site", "family"])["appeared_at"].transform("count") > 0]
    places = list(drawn.groupby(["site", "predicate"], sort=True).groups)
    if not places:
        return ""
    top = drawn["appeared_at"].max() * 1.6
    with panels(len(places), 3.0) as (axes, svg):
        for one, (site, predicate) in zip(axes, places, strict=True):
            here = drawn[(drawn["site"] == site) & (drawn["predicate"] == predicate)]
            for key in look:
                rows = here[(here["role"] == key[0]) & (here["family"] == key[1])]
                if rows.empty:
                    continue
                seen, never = rows.dropna(subset=["appeared_at"]), rows[rows["appeared_at"].isna()]
                plain = {"linestyle": "", "marker": look[key]["marker"], "color": look[key]["color"], "markersize": 4}
                one.plot(
                    seen["rank"], seen["appeared_at"].clip(lower=1), alpha=0.6, mew=0, label=label(key[1]), **plain
                )
                one.plot(
                    never["rank"], np.full(len(never), top), **{**plain, "marker": "|", "markersize": 6}, alpha=0.5
                )
            one.axhline(top, color="#bbbbbb", linewidth=0.5)
            one.annotate(
                "never appeared",
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


def density_figure(density: pd.DataFrame, table: pd.DataFrame, look: Styles) -> str:
    """Histogram of log10 density of the latents that fired, one panel a site."""
    headline = at_k(table, headline_k(table)) if len(table) else table
    known = {(row.site, row.dictionary): (row.role, row.family) for row in headline.itertuples() if row.role != "null"}
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


def training_figure(training: pd.DataFrame, table: pd.DataFrame, look: Styles) -> str:
    """FVU and the dead share of each learned dictionary at the headline k against training tokens."""
    headline = at_k(table, headline_k(table)) if len(table) else table
    known = {(row.site, row.dictionary): (row.role, row.family) for row in headline.itertuples()}
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
