"""What the figures share: colours, markers, labels, panels and axes."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rayscope.report.tables import ROLES

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


def label(text: str, length: int = 40) -> str:
    """Printable ASCII, cut to a length."""
    text = "".join(c if c.isprintable() and c.isascii() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= length else f"{text[: length - 2]}.."


def token_label(token: str) -> str:
    return label(ascii(token), 16)
