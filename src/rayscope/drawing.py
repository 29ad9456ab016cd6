"""What every figure looks like: colours, panels with one legend, axes, labels."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

COLOURS = {"rays": "#0072b2", "directions": "#d55e00", "baseline": "#009e73", "told": "#8a5aa8", "control": "#7a7a7a"}
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


@contextmanager
def panels(count: int, height: float = 3.0, columns: int = 2) -> Iterator[tuple[list[Axes], Callable[[], str]]]:
    """Axes in rows of `columns`, and a function that gives the SVG with one legend below them all."""
    columns = min(columns, count)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
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
