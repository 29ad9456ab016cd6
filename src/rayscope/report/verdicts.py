"""Whether rays win at equal bits: every learned dictionary against its rivals, and what is said of it."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rayscope.evaluation.metrics import FEWEST_DOCUMENTS
from rayscope.report.metrics import METRICS
from rayscope.report.tables import LEARNED, rows

BASELINES = ("pca_topk", "pca_prefix")
METHODS = {  # how a baseline's value at as many bits was found: see at_bits
    "interpolated": "interpolated to as many bits",
    "nearest": "nearest point, bits within 5%",
    "fewer": "which has only fewer bits",
    "more": "which has only more bits",
    "absent": "not in this evaluation",
}
NEAR = 0.05  # bits count as equal within this share, where a curve cannot be interpolated


def at_bits(curve: pd.DataFrame, metric: str, bits: float) -> dict:
    """A baseline at this many bits: value, low, high and how they were found.

    Linear in log bits between the two neighbouring points; past an end of the curve that end, "nearest" if its bits
    are within 5%, else "fewer" or "more" (the bits it has). Empty where the baseline has no point.
    """
    curve = curve[curve["bits"] > 0].dropna(subset=[metric]).sort_values("bits")
    if curve.empty:
        return {}
    log_bits, log_b = np.log(curve["bits"].to_numpy(float)), math.log(bits)
    names = {"value": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
    found = {key: float(np.interp(log_b, log_bits, curve[name].to_numpy(float))) for key, name in names.items()}
    if log_bits[0] <= log_b <= log_bits[-1]:
        return found | {"method": "interpolated"}
    end = math.exp(log_bits[0] if log_b < log_bits[0] else log_bits[-1])
    near = abs(end / bits - 1) <= NEAR
    return found | {"method": "nearest" if near else "fewer" if end < bits else "more"}


def judge(ours: dict, theirs: dict) -> tuple[str, bool | None]:
    """(outcome, do the intervals overlap): better, worse, unclear, not comparable or too few documents.

    Lower is better.

    Without an interval on both sides nothing is claimed. A rival with fewer bits may still win, one with more lose.
    """
    if theirs and ours.get("documents", math.nan) < FEWEST_DOCUMENTS:
        return "too few documents", None
    limits = [ours["low"], ours["high"], theirs.get("low", math.nan), theirs.get("high", math.nan)]
    if any(math.isnan(limit) for limit in limits):
        return ("unclear" if theirs else "not comparable"), None
    better, worse = ours["high"] < theirs["low"], ours["low"] > theirs["high"]
    if (theirs["method"] == "fewer" and not worse) or (theirs["method"] == "more" and not better):
        return "not comparable", not (better or worse)
    return "better" if better else "worse" if worse else "unclear", not (better or worse)


def verdicts(
    evaluation: pd.DataFrame,
    against: Sequence[str] = BASELINES,
    position0: str = "excluded",
    roles: Sequence[str] = LEARNED,
    rivals: str = "baseline",
) -> list[dict]:
    """Every dictionary of these roles under its own coder, compared with methods of the rivals' role at as many bits.

    In fvu and dce.

    Each is {site, position0, ours, role, k, metric, baseline, bits, value, low, high, documents, baseline_value,
    baseline_low, baseline_high, overlap, outcome, method}. See `at_bits` for the method and `judge` for the outcome.
    """
    table = rows(evaluation)
    table = table[(table["position0"] == position0) & (table["coder"] == "own")]
    found = []
    for ours in table[table["role"].isin(roles) & (table["bits"] > 0)].to_dict("records"):
        curves = table[(table["site"] == ours["site"]) & (table["role"] == rivals)]
        for metric in ("fvu", "dce"):
            mine = {"value": ours[metric]} | {key: ours[f"{metric}_{key}"] for key in ("low", "high", "documents")}
            for name in against:
                theirs = at_bits(curves[curves["method"] == name], metric, ours["bits"])
                outcome, overlap = judge(mine, theirs)
                found.append(
                    {key: ours[key] for key in ("site", "position0", "role", "k", "bits")}
                    | {"ours": ours["dictionary"], "metric": metric, "baseline": name, **mine}
                    | {f"baseline_{key}": theirs.get(key, math.nan) for key in ("value", "low", "high")}
                    | {"overlap": overlap, "outcome": outcome, "method": theirs.get("method", "absent")}
                )
    return found


def answer(found: Sequence[dict]) -> str:
    """One sentence on whether these dictionaries beat these rivals."""
    counts = {outcome: sum(row["outcome"] == outcome for row in found) for outcome in ("better", "worse", "unclear")}
    judged, rest = sum(counts.values()), len(found) - sum(counts.values())
    few = [row["documents"] for row in found if row["outcome"] == "too few documents"]
    if not judged and few:
        return f"Not answered: too few documents ({min(few):.0f}; an interval needs {FEWEST_DOCUMENTS})."
    if not judged:
        return "Not answered: nothing to compare at equal bits."
    for start, word in (("Yes", "better"), ("No", "worse")):
        if counts[word] == len(found):
            return f"{start}: {word} in all {len(found)} comparisons at equal bits."
    parts = [f"{n} {word}" for word, n in counts.items() if n] + ([f"{len(few)} of too few documents"] if few else [])
    parts += [f"{rest - len(few)} not comparable"] if rest > len(few) else []
    start = "In part" if counts["better"] else "No"
    return f"{start}: of {len(found)} comparisons at equal bits, {', '.join(parts)}."


def outcome_said(row: dict) -> str:
    """The outcome, and what there is to say of its intervals."""
    if row["outcome"] == "too few documents":
        return f"too few documents ({row['documents']:.0f})"
    return row["outcome"] + {True: " (intervals overlap)", False: "", None: " (no interval)"}[row["overlap"]]


def sentence(row: dict) -> str:
    """One comparison in words."""
    metric = METRICS[row["metric"]]
    start = f"{row['ours']} (k = {row['k']:.0f}, {row['bits']:.0f} bits) against {row['baseline']}: "
    if row["method"] == "absent":
        return f"{start}not comparable, no {row['baseline']} in this evaluation"
    numbers = f"{metric.heading} {metric.show(row['value'])} against {metric.show(row['baseline_value'])}"
    return f"{start}{outcome_said(row)}, {numbers}, {METHODS[row['method']]}"
