"""Every method under every coder at one rate, read on its front."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import math

import numpy as np
import pandas as pd

from rayscope.evaluation.fronts import Front
from rayscope.report.tables import ROLES
from rayscope.report.verdicts import READ, fronts

KEYS = ["role", "method", "coder"]
BETWEEN = ["l0", "seconds_per_1000"]  # read between two points of a front like its losses
NEAR = 0.05  # bits count as equal within this fraction


def with_seconds(points: pd.DataFrame, seconds: pd.DataFrame | None) -> pd.DataFrame:
    """The points with seconds_per_1000 of their dictionary, which is nan if nobody measured it."""
    if seconds is None:
        return points.assign(seconds_per_1000=math.nan)
    measured = seconds[["site", "dictionary", "seconds_per_1000"]].drop_duplicates(["site", "dictionary"])
    return points.merge(measured, how="left", on=["site", "dictionary"])


def readings(points: pd.DataFrame, rate: float) -> pd.DataFrame:
    """KEYS, l0, seconds_per_1000, bits, and fvu and dce with _low and _high, of the points of one site and view.

    bits: the rate, or, if the method has no such rate, the nearest that it has; dce is nan if that is another than
    fvu's. A reference has no bits. See `tables.points` and `with_seconds`.
    """
    found = [reference(row) for row in points[points["role"] == "reference"].to_dict("records")]
    by_metric = {metric: fronts(points, metric) for metric in READ}
    of = {key: mine for key, mine in points.groupby(KEYS, sort=False)}
    for key, front in by_metric["fvu"].items():
        bits, losses = nearest(front, rate)
        line = dict(zip(KEYS, key, strict=True)) | {"bits": bits} | named("fvu", losses)
        for column in BETWEEN:
            line[column] = float(np.interp(bits, front.bits_P, of[key][column].to_numpy(float)[front.points_P]))
        if other := by_metric["dce"].get(key):
            other_bits, losses = nearest(other, rate)
            line |= named("dce", losses) if abs(other_bits / bits - 1) <= NEAR else {}
        found.append(line)
    columns = [*KEYS, *BETWEEN, "bits", *(name for metric in READ for name in named(metric, np.zeros(3)))]
    table = pd.DataFrame(found, columns=columns)
    return table.sort_values("role", key=lambda roles: roles.map(list(ROLES).index), kind="stable")


def nearest(front: Front, rate: float) -> tuple[float, np.ndarray]:
    """(bits, (value, low, high)) where the front is nearest to the rate; at its fewest bits if there is no rate."""
    bits = float(np.clip(rate, front.bits_P[0], front.bits_P[-1])) if math.isfinite(rate) else float(front.bits_P[0])
    return bits, front.at(np.array([bits]))[:, 0]


def named(metric: str, losses: np.ndarray) -> dict[str, float]:
    return dict(zip((metric, f"{metric}_low", f"{metric}_high"), losses.tolist(), strict=True))


def reference(row: dict) -> dict:
    return {key: row[key] for key in KEYS} | {name: row[name] for metric in READ for name in named(metric, np.zeros(3))}


def seconds_said(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds:.2g} s"
