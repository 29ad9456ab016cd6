"""The gain on every stream."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportAttributeAccessIssue=false

from itertools import product

import pandas as pd

from rayscope.drawing import COLOURS, MARKERS, label, panels
from rayscope.model.nulls import NULL_MODELS
from rayscope.studies.surrogate.arenas import REAL
from rayscope.studies.surrogate.gains import FROZEN, RAYS

ORDER = ("gaussian", "elliptical", "pc_shuffled", *NULL_MODELS, "token_mixture", REAL)


def figure(table: pd.DataFrame) -> str:
    """From what keeps least to the real one, a marker per k, bars over seeds and documents; frozen decoders in grey."""
    gains = table[table["metric"] == "gain"]
    order = [name for name in ORDER if name in set(gains["stream"])]
    sites = list(dict.fromkeys(gains["site"]))
    with panels(len(sites), 2.8) as (axes, svg):
        for one, site in zip(axes, sites, strict=True):
            here = gains[gains["site"] == site]
            ks = sorted(here["k"].unique())
            for (i, k), method in product(enumerate(ks), (FROZEN, RAYS)):
                of_arm = here[(here["k"] == k) & (here["method"] == method)]
                if of_arm.empty:
                    continue
                mine = (
                    of_arm.groupby("stream")[["value", "low", "high"]]
                    .agg({"value": "mean", "low": "min", "high": "max"})
                    .reindex(order)
                )
                places = [place + 0.15 * (i - (len(ks) - 1) / 2) for place in range(len(order))]
                bars = [mine["value"] - mine["low"], mine["high"] - mine["value"]]
                colour = COLOURS["rays" if method == RAYS else "control"]
                text = f"{method}, k = {k:.0f}"
                one.errorbar(places, mine["value"], bars, fmt=MARKERS[i], color=colour, mfc="white", label=text)
            one.axhline(0, color=COLOURS["control"], linewidth=1)
            one.set_xticks(range(len(order)), [name.replace("_", "\n") for name in order])
            one.set_ylabel("gain over pca_topk at equal bits")
            one.set_title(label(site))
        return svg()
