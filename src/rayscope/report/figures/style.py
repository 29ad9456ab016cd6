"""One look for each method, in every figure of a report."""

import pandas as pd
from matplotlib.colors import to_rgb

from rayscope.drawing import COLOURS, LINES, MARKERS
from rayscope.report.tables import ROLES

FIRST = {"rays": "o", "directions": "s", "baseline": "^", "told": "D", "control": "x"}
Styles = dict[tuple[str, str], dict]


def styles(table: pd.DataFrame) -> Styles:
    """One look for each (role, method), the same in every figure: the hue is the role, the tint the method."""
    found: Styles = {}
    for name in (role for role in ROLES if role in FIRST):
        methods = list(dict.fromkeys(table.loc[table["role"] == name, "method"]))
        methods.sort(key=lambda method: (method not in ("pca_topk", "pca_prefix", "topk"), method == "pca_prefix"))
        for i, one in enumerate(methods):
            tint = 0.55 * i / max(len(methods) - 1, 3)
            rgb = tuple((1 - tint) * c + tint for c in to_rgb(COLOURS[name]))
            marker = FIRST[name] if i == 0 else MARKERS[i % len(MARKERS)]
            found[name, one] = {"color": rgb, "marker": marker, "linestyle": LINES[i % len(LINES)]}
    return found
