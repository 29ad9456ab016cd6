"""The table of two texts, from tables made by hand."""

import io
import math

import pandas as pd
from rich.console import Console

from rayscope.report import print_elsewhere
from rayscope.report.elsewhere import compared_rows


def evaluation(text: str, fvu: dict[str, float], l0: dict[str, float]) -> pd.DataFrame:
    rows = []
    for name in fvu:
        role = {"identity": "reference", "pca_topk_k10": "baseline"}.get(name, "rays")
        for metric, values in (("fvu", fvu), ("l0", l0), ("dce", fvu)):
            value = values.get(name, math.nan)
            row = {"site": "here", "dictionary": name, "method": name, "role": role, "kind": "x", "latents": 64}
            row |= {"k": math.nan if role == "reference" else 8, "coder": "own", "position0": "excluded", "seed": 0}
            row |= {"metric": metric, "value": value, "low": value - 0.01, "high": value + 0.01, "split": "test"}
            row |= {"tokens": 512, "trained_tokens": 1024, "text": text, "fitted_on": "docs 1"}
            rows.append(row)
    return pd.DataFrame(rows).assign(family=lambda table: table["method"], value_bits=8)


L0 = {"topk_k8": 8.0, "batchtopk_k8": 8.0, "pca_topk_k10": 10.0}
HERE = evaluation("docs 1", {"identity": 0.0, "pca_topk_k10": 0.467, "topk_k8": 0.22, "batchtopk_k8": 0.21}, L0)
THERE = evaluation(
    "news 2", {"identity": 0.0, "pca_topk_k10": 0.476, "batchtopk_k8": 0.384}, L0 | {"batchtopk_k8": 11.75}
)


def test_each_metric_has_its_number_here_and_there():
    found = compared_rows(HERE, THERE)
    assert [(row["dictionary"], row["k"], row["role"]) for row in found] == [
        ("pca_topk_k10", "8", "baseline"),
        ("batchtopk_k8", "8", "rays"),
    ]  # what was measured there; references say nothing
    l0, fvu, dce = found[1]["cells"]
    assert (l0["here"], l0["there"]) == ("8.0", "11.8")
    assert fvu == {"here": "0.210", "there": "0.384", "interval": "0.374 to 0.394"}
    assert dce["there"] == "0.384"
    assert compared_rows(HERE[HERE["dictionary"] != "batchtopk_k8"], THERE)[1]["cells"][1]["here"] == ""


def test_the_terminal_shows_it_in_eighty_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    print_elsewhere(HERE, THERE, console)
    lines = console.export_text().splitlines()
    assert lines[0].rstrip() == "here: here, and there on text of another kind"
    assert lines[1].split() == ["dictionary", "k", "L0", "there", "FVU", "there", "dCE", "there"]
    assert ["batchtopk_k8", "8", "8.0", "11.8", "0.210", "0.384", "0.210", "0.384"] in [line.split() for line in lines]
    assert "Text: measured on news 2; dictionaries and baselines fitted on docs 1." in lines
