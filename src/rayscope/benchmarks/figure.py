"""How many times a peer's time is ours, as bars: drawn from the benchmark's JSON."""

from pathlib import Path
from typing import Any

from rayscope.drawing import COLOURS, label, log_axis, panels
from rayscope.files import write_whole

PALE = "#80b8d8"  # a peer helped by bfloat16 autocast


def figure(results: dict[str, Any]) -> str:
    """SVG text; "" where no peer was raced. A row's bar is its ratio, the tick on it the ratio asked for."""
    bars = [
        (part, row)
        for part, record in results["parts"].items()
        for row in record["rows"]
        if row.get("peer") and row.get("ratio")
    ]
    if not bars:
        return ""
    low = min(1.0, *(0.9 * row["ratio"] for _, row in bars))
    high = max(2.0, *(1.4 * row["ratio"] for _, row in bars))
    with panels(1, 0.3 + 0.2 * len(bars), columns=1) as ((one,), svg):
        for place, (_, row) in enumerate(bars):
            one.barh(place, row["ratio"], 0.72, color=PALE if row.get("autocast") else COLOURS["rays"])
            one.annotate(f" {row['ratio']:.1f}x", (row["ratio"], place), va="center", fontsize=8)
            if row.get("limit"):
                asked = float(row["limit"].split()[1])
                one.plot([asked, asked], [place - 0.36, place + 0.36], color="#000000", linewidth=1.4)
        one.set_yticks(range(len(bars)), [label(f"{part}: {row['contender']}", 60) for part, row in bars])
        one.set_ylim(len(bars) - 0.4, -0.6)
        one.set_xlim(low, high)
        one.grid(axis="y", visible=False)
        log_axis(one, "x", "times the time of rayscope (log); the tick is what was asked for")
        return svg()


def draw(results: dict[str, Any], path: Path) -> None:
    """Writes the figure, where there is one."""
    if text := figure(results):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
