"""How many times a peer's time is ours, as bars: one panel a part, drawn from the benchmark's JSON."""

from pathlib import Path
from typing import Any

from rayscope.files import write_whole
from rayscope.report.figures import COLOURS, label, log_axis, panels

PALE = "#80b8d8"  # a peer helped by bfloat16 autocast


def figure(results: dict[str, Any]) -> str:
    """SVG text; "" where no peer was raced. A row's bar is its ratio, a tick the ratio asked for."""
    raced = {
        part: [row for row in record["rows"] if row.get("peer") and row.get("ratio")]
        for part, record in results["parts"].items()
    }
    drawn = {part: rows for part, rows in raced.items() if rows}
    if not drawn:
        return ""
    with panels(len(drawn), 0.9 + 0.22 * max(map(len, drawn.values())), columns=1) as (axes, svg):
        for one, (part, rows) in zip(axes, drawn.items(), strict=True):
            for place, row in enumerate(reversed(rows)):
                colour = PALE if row.get("autocast") else COLOURS["rays"]
                one.barh(place, row["ratio"], 0.7, color=colour)
                one.annotate(f" {row['ratio']:.1f}x", (row["ratio"], place), va="center", fontsize=8)
                if row.get("limit"):
                    asked = float(row["limit"].split()[1])
                    one.plot([asked, asked], [place - 0.35, place + 0.35], color="#000000", linewidth=1.4)
            one.set_yticks(range(len(rows)), [label(row["contender"]) for row in reversed(rows)])
            one.set_ylim(-0.6, len(rows) - 0.4)
            one.set_xlim(1, 1.6 * max(2.0, *(row["ratio"] for row in rows)))
            one.grid(axis="y", visible=False)
            log_axis(one, "x", "times the time of rayscope (log); the tick is what was asked for")
            one.set_title(part)
        return svg()


def draw(results: dict[str, Any], path: Path) -> None:
    """Writes the figure, where there is one."""
    if text := figure(results):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
