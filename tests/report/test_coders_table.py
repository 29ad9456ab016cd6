"""Directions by coder, from hand-made tables."""

import io
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from rayscope.report.coders import Cell, by_coder, coder_tables, coders_of, print_coders
from rayscope.report.tables import COLUMNS, headline_bits, points

POINTS = [  # dictionary, method, role, k, coder, bits, fvu, dce
    ("topk_k8", "topk", "rays", 8, "own", 100, 0.4, 0.8),
    ("topk_k8_omp", "topk", "rays", 8, "omp", 100, 0.3, 0.5),
    ("pca_topk_k9", "pca_topk", "baseline", 9, "own", 90, 0.7, 1.6),
    ("pca_topk_k11", "pca_topk", "baseline", 11, "own", 110, 0.5, 1.2),
    ("token_means_k8", "token_means", "baseline", 8, "own", 120, 0.5, 0.9),
    ("random_k8", "random", "control", 8, "own", 100, 0.9, 3.0),
]
SECONDS = [  # dictionary, also, seconds
    ("topk_k8", "", 0.02),
    ("topk_k8_omp", "", 0.1),
    ("pca_topk_k9", "topk omp pursuit fista", 0.01),
    ("pca_topk_k11", "topk omp pursuit fista", 0.03),
    ("token_means_k8", "omp", 0.2),
]


@pytest.fixture
def evaluation() -> pd.DataFrame:
    rows = []
    for name, method, role, k, coder, *values in POINTS:
        about = {"site": "s", "dictionary": name, "method": method, "family": method, "role": role, "k": k}
        about |= {"coder": coder, "kind": "x", "latents": 64, "position0": "excluded", "split": "test", "seed": 0}
        about |= {"tokens": 10, "trained_tokens": 20, "documents": 9, "value_bits": 8}
        for metric, value in zip(("bits", "fvu", "dce"), values, strict=True):
            rows.append(about | {"metric": metric, "value": value, "low": value, "high": value})
    return pd.DataFrame(rows).reindex(columns=list(dict.fromkeys([*COLUMNS, *rows[0]])))


@pytest.fixture
def seconds() -> pd.DataFrame:
    rows = [{"site": "s", "dictionary": name, "also": also, "seconds_per_1000": took} for name, also, took in SECONDS]
    return pd.DataFrame(rows)


def test_each_method_is_read_at_the_rate_under_each_coder(evaluation, seconds):
    table = points(evaluation)
    assert headline_bits(table) == 100
    found = by_coder(table, seconds, "s", 100)
    assert coders_of(found) == ["own", "omp"]
    assert list(found) == [("baseline", "pca_topk"), ("baseline", "token_means"), ("rays", "topk")]
    assert found["rays", "topk"]["own"] == Cell(100, 0.4, 0.8, 0.02)
    assert found["rays", "topk"]["omp"] == Cell(100, 0.3, 0.5, 0.1)
    pca = found["baseline", "pca_topk"]["own"]  # half-way between its two points
    assert (pca.bits, pca.fvu, pca.dce) == (100, pytest.approx(0.6), pytest.approx(1.4))
    assert pca.seconds == pytest.approx(0.02)
    assert found["baseline", "pca_topk"]["omp"] == replace(pca, same=True)
    assert found["baseline", "token_means"]["omp"] == Cell(120, 0.5, 0.9, 0.2, same=True)  # the nearest that it has
    assert by_coder(table, seconds, "s", float("nan")) == {}


def test_the_terminal_and_the_page_show_it(evaluation, seconds):
    out = io.StringIO()
    print_coders(evaluation, seconds, Console(file=out, width=100))
    lines = [line.split() for line in out.getvalue().splitlines() if line.startswith("  topk")]
    assert lines == [["topk", "100", "0.400", "0.800", "0.02", "s", "0.300", "0.500", "0.1", "s"]]
    (table,) = coder_tables({"evaluation.csv": evaluation, "encode_seconds.csv": seconds})
    row = next(row for row in table["rows"] if row["method"] == "topk")
    assert row["cells"] == [["100", "0.400", "0.800", "0.02 s"], ["100", "0.300", "0.500", "0.1 s"]]
    own = evaluation[evaluation["coder"] == "own"]
    assert coder_tables({"evaluation.csv": own, "encode_seconds.csv": seconds.assign(also="")}) == []
    assert coder_tables({"evaluation.csv": own}) == []
