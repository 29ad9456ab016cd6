"""How many directions are found again, by the number of latents and by null."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Sequence

import pandas as pd
from matplotlib.ticker import FuncFormatter

from rayscope.drawing import COLOURS, LINES, label, log_axis, panels, short
from rayscope.model.sites import Site
from rayscope.studies.reproducible_directions.streams import REAL


def figure(table: pd.DataFrame, sites: Sequence[Site], widest: int) -> str:
    """Each site's counts against the number of latents and, in a second panel, those of the nulls at the widest."""
    shown = table[table["seed"].isna() & table["metric"].isin(["all", "beyond_tokens"])]
    looks = {"all": (COLOURS["directions"], "with tokens"), "beyond_tokens": (COLOURS["rays"], "beyond tokens")}
    taus = sorted(shown["tau"].unique())
    lines = [(tau, count, line) for tau, line in zip(taus, LINES, strict=False) for count in looks]
    with panels(2 * len(sites), 2.8) as (axes, svg):
        for i, site in enumerate(sites):
            against, of_nulls = axes[2 * i : 2 * i + 2]
            here = shown[shown["site"] == site.hook]
            names = list(here["stream"].unique())
            for j, (tau, count, line) in enumerate(lines):
                these = here[(here["tau"] == tau) & (here["metric"] == count)]
                colour, words = looks[count]
                real = these[these["stream"] == REAL].sort_values("latents")
                spread = [real["value"] - real["low"], real["high"] - real["value"]]
                text = f"{words}, {tau:g}"
                against.errorbar(
                    real["latents"], real["value"], [s.clip(lower=0) for s in spread],
                    marker="o", color=colour, ls=line, label=text,
                )  # fmt: skip
                at = these[these["latents"] == widest].set_index("stream").loc[names, "value"]
                places = [place + (j - (len(lines) - 1) / 2) * 0.8 / len(lines) for place in range(len(names))]
                of_nulls.bar(places, at, 0.8 / len(lines), color=colour, alpha=1.0 if tau == taus[-1] else 0.45)
            against.axhline(site.width, color=COLOURS["control"], ls=":", label="the site's width")
            log_axis(against, "x", "latents")
            against.set_xticks(real["latents"])
            against.set_title(label(site.hook))
            for one in (against, of_nulls):
                one.set_yscale("symlog", linthresh=1)
                one.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
                one.set_ylabel("directions")
                one.set_ylim(bottom=0)
            of_nulls.set_xticks(range(len(names)), [label(name).replace("_", "\n") for name in names], fontsize=7)
            of_nulls.set_title(f"{label(site.hook)}, {widest:,} latents")
        return svg()
