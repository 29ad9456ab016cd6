"""Quality against bits per token."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false

import numpy as np
import pandas as pd

from rayscope.drawing import COLOURS, label, log_axis, panels
from rayscope.report.figures.style import Styles
from rayscope.report.metrics import METRICS
from rayscope.report.tables import ROLES


def bits_figure(table: pd.DataFrame, metric: str, look: Styles) -> str:
    """A metric against bits per token, one panel per site, one line per method over its k."""
    drawn = table[table["bits"] > 0].dropna(subset=[metric])
    sites = list(dict.fromkeys(drawn["site"]))
    if not sites:
        return ""
    with panels(len(sites), 3.6) as (axes, svg):
        for one, site in zip(axes, sites, strict=True):
            here = drawn[drawn["site"] == site]
            reference = table[(table["site"] == site) & (table["role"] == "reference")]
            mean = reference[reference["method"] == "mean"][metric].dropna()
            if len(mean) and (here[metric] > 0).all() and mean.iloc[0] > 0:
                one.axhline(
                    mean.iloc[0], color=COLOURS["control"], linewidth=1, linestyle=(0, (1, 2)), label="mean codec"
                )
            for key in [key for key in look if key[1] in set(here["method"])]:
                mine = here[(here["role"] == key[0]) & (here["method"] == key[1])].sort_values(["latents", "bits"])
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
