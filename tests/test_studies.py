"""Studies: what a verdict says, intervals over seeds, and each study from the command line on a model made here."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from rayscope.cli import main
from rayscope.report import verdict_lines
from rayscope.studies import Findings, Observed, Prediction, Setting, conduct, options_of_size, over_seeds


@pytest.fixture(scope="module")
def source(tiny_gpt2, text_file) -> list[str]:
    return [
        "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files", f"text.files={text_file}",
        "stream.batch_size=64", "stream.round_tokens=512", "threads=1",
    ]  # fmt: skip


def run(*arguments: str, out: Path) -> tuple[pd.DataFrame, dict]:
    main(["study", *arguments, f"out={out}"])
    return pd.read_csv(out / "table.csv"), json.loads((out / "verdict.json").read_text())


@pytest.mark.parametrize(
    ("threshold", "interval", "passed"),
    [
        (">= 2", (3.0, 2.0, 4.0), True),
        (">= 2", (3.0, 1.9, 4.0), False),  # the whole interval must hold
        ("<= 2", (1.0, 0.5, 2.1), False),
        ("<= 2", (1.0, 0.5, 2.0), True),
        (">= 2", (math.nan, 2.0, 4.0), False),
        (None, (3.0, 1.0, 4.0), None),  # reported, not judged
    ],
)
def test_a_prediction_passes_where_its_whole_interval_does(threshold, interval, passed):
    assert Prediction("it holds", threshold).verdict(Observed(*interval))["pass"] is passed


def test_interval_over_seeds_is_that_of_the_mean_of_resampled_seeds():
    same = over_seeds([(1.0, torch.full((500,), 1.0)), (1.0, torch.full((500,), 1.0))])
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    apart = over_seeds([(0.0, torch.zeros(4000)), (1.0, torch.ones(4000))])
    assert (apart.value, apart.low, apart.high) == (0.5, 0.0, 1.0)  # a quarter of the draws takes one seed twice
    draws_B = torch.arange(1001, dtype=torch.float64)  # one seed: its documents' own quantiles
    alone = over_seeds([(500.0, draws_B)])
    assert (alone.value, alone.low, alone.high) == (500.0, 25.0, 975.0)


def test_a_study_observes_what_is_predicted(model, packed, tmp_path):
    from rayscope.source import Source

    def study(setting: Setting) -> Findings:
        return Findings(pd.DataFrame({"a": [1]}), {"x": Observed.exactly(3.0)}, "<svg/>")

    setting = Setting(Source(model, packed), (), (0, 1), tmp_path)
    about = {"name": "mine", "question": "Is x 3?", "size": "demo"}
    with pytest.raises(ValueError, match="predictions y, but it observes x"):
        conduct(study, setting, predictions={"y": Prediction("y")}, **about)
    assert list(tmp_path.iterdir()) == []
    verdict = conduct(study, setting, predictions={"x": Prediction("x is 3", ">= 3")}, **about)
    assert verdict == json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["pass"]
    first, second = verdict_lines(verdict)
    assert first.startswith("mine (size demo, model")
    assert second == "  pass: x is 3 [x]: observed 3, asked >= 3"


def test_a_size_that_is_not_there():
    with pytest.raises(ValueError, match=r"size=nite: no such size; nearest: night \(there are demo, night\)"):
        options_of_size({"demo": {}, "night": {}}, "nite")


def test_metric_sanity(source, tmp_path):
    sizes = ["study.sizes.demo.tokens=512", "study.sizes.demo.splice_rows=2"]
    table, verdict = run("metric_sanity", *source, *sizes, out=tmp_path / "a")
    again, _ = run("metric_sanity", *source, *sizes, out=tmp_path / "b")
    pd.testing.assert_frame_equal(table, again)
    assert verdict["predictions"]["error"]["pass"]
    assert table["error"].max() < 1e-6
    known = table[(table["codec"] == "position0") & (table["metric"] == "ev") & (table["seed"] == 0)]
    included, excluded = (known[known["position0"] == p]["observed"].mean() for p in ("included", "excluded"))
    assert included > 0.01 > 1e-6 > abs(excluded)  # this model's position 0 stands apart
    biased = table[table["codec"] == "half, with a constant error"]
    assert (biased["centred_residual"] - 0.75).abs().max() < 1e-6  # the faulty one does not see it
    assert (biased[biased["metric"] == "ev"]["observed"] - 0.5).abs().max() < 1e-6


def test_the_report_shows_studies(source, tmp_path):
    run("metric_sanity", *source, "study.sizes.demo.tokens=512", "study.sizes.demo.splice_rows=2", out=tmp_path / "s/a")
    main(["report", f"out={tmp_path / 's/a'}", f"studies={tmp_path / 's'}"])
    page = (tmp_path / "s/a/report/index.html").read_text()
    assert "metric_sanity (size demo" in page
    assert "the figure of a" in page
