"""One look for each family of dictionaries, in every figure of a report."""

import pandas as pd
from matplotlib.colors import to_rgb

from rayscope.drawing import COLOURS, LINES, MARKERS
from rayscope.report.tables import ROLES

FIRST = {"rays": "o", "directions": "s", "baseline": "^", "told": "D", "null": "x"}
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
