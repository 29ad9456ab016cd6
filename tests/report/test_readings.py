"""Readings at one rate, by hand."""

import math

import pandas as pd

from rayscope.report.readings import readings, with_seconds


def points(*given: tuple) -> pd.DataFrame:
    """(role, method, coder, bits, fvu, dce), intervals a tenth of the value to either side."""
    found = []
    for role, method, coder, bits, fvu, dce in given:
        row = {"role": role, "method": method, "coder": coder, "bits": bits, "l0": bits / 10}
        row |= {"site": "s", "dictionary": f"{method} {coder} {bits}"}
        for metric, value in (("fvu", fvu), ("dce", dce)):
            row |= {metric: value, f"{metric}_low": 0.9 * value, f"{metric}_high": 1.1 * value}
        found.append(row)
    seconds = pd.DataFrame(
        {"site": "s", "dictionary": ["topk own 100.0", "topk own 200.0"], "seconds_per_1000": [1, 2]}
    )
    return with_seconds(pd.DataFrame(found), seconds)


def test_between_two_points_and_at_the_nearest_end():
    table = points(
        ("rays", "topk", "own", 100.0, 0.4, 1.0),
        ("rays", "topk", "own", 200.0, 0.2, 0.5),
        ("rays", "topk", "omp", 300.0, 0.1, 0.2),
        ("baseline", "pca", "own", 60.0, 0.9, 2.0),
        ("baseline", "pca", "own", 80.0, 0.8, math.nan),  # not spliced
        ("reference", "mean", "own", math.nan, 1.0, 3.0),
    )
    shown = readings(table, 150).set_index(["method", "coder"])
    assert list(shown.index) == [("mean", "own"), ("pca", "own"), ("topk", "own"), ("topk", "omp")]
    own = shown.loc[("topk", "own")]
    assert (own["bits"], round(own["fvu"], 9), round(own["dce"], 9)) == (150, 0.3, 0.75)
    assert (round(own["fvu_low"], 9), round(own["l0"], 9)) == (0.27, 15)
    assert own["seconds_per_1000"] == 1.5
    assert shown.loc[("topk", "omp"), ["bits", "fvu"]].tolist() == [300, 0.1]
    pca = shown.loc[("pca", "own")]
    assert (pca["bits"], pca["fvu"]) == (80, 0.8)
    assert math.isnan(pca["dce"])  # it was measured at other bits alone
    assert math.isnan(shown.loc[("mean", "own"), "bits"])
    assert shown.loc[("mean", "own"), "fvu"] == 1


def test_without_a_rate_each_is_read_at_its_fewest_bits():
    table = points(("rays", "topk", "own", 100.0, 0.4, 1.0), ("rays", "topk", "own", 200.0, 0.2, 0.5))
    assert readings(table, math.nan)["bits"].tolist() == [100]
