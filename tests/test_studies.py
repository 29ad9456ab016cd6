"""Studies: what a verdict says, intervals over seeds, and each study from the command line on a model made here."""

import json
import math
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from rayscope.cli import main
from rayscope.dictionaries import BatchTopK, BottleneckTopK, Linear, TopK
from rayscope.meter import bits_per_token
from rayscope.report import verdict_lines
from rayscope.sites import Site, resolve
from rayscope.studies import Findings, Observed, Prediction, Setting, arms, conduct, over_seeds
from rayscope.studies.pareto import amortisation, at_bits, figure, for_seeds, method_and_seed, ratio, seed_last
from rayscope.studies.surrogate import STREAMS, worst_share


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


def test_a_threshold_that_is_no_limit_is_refused_before_the_study_runs():
    with pytest.raises(ValueError, match="'>=2' is not such as"):
        Prediction("it holds", ">=2")


def test_interval_over_seeds_is_that_of_the_mean_of_resampled_seeds():
    same = over_seeds([(1.0, torch.full((500,), 1.0)), (1.0, torch.full((500,), 1.0))])
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    apart = over_seeds([(0.0, torch.zeros(4000)), (1.0, torch.ones(4000))])
    # a quarter of the draws takes one seed twice, and sqrt 2 makes the half between seed and mean .707
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.5, 0.5 - 0.5**0.5, 0.5 + 0.5**0.5))
    draws_B = torch.arange(1001, dtype=torch.float64)  # one seed: its documents' own quantiles
    alone = over_seeds([(500.0, draws_B)])
    assert (alone.value, alone.low, alone.high) == (500.0, 25.0, 975.0)


def test_draws_over_seeds_have_the_variance_of_a_mean_of_seeds():
    """The usual s^2 / S, s^2 with S - 1, from the interval of values drawn far more finely than its quantiles ask."""
    values = torch.linspace(-3, 3, 6).double()
    found = over_seeds([(v.item(), v.expand(200_000)) for v in values])
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx((values.var() / 6).sqrt().item(), rel=0.03)
    worst = over_seeds([(1.0, torch.tensor([1.0, torch.inf])), (1.0, torch.tensor([1.0, torch.inf]))])
    assert (worst.low, worst.high) == (1.0, torch.inf)  # a draw without a number to divide by stays the worst


def test_a_study_observes_what_is_predicted(model, packed, tmp_path):
    from rayscope.source import Source

    def study(setting: Setting) -> Findings:
        return Findings(pd.DataFrame({"a": [1]}), {"x": Observed.exactly(3.0)}, "<svg/>")

    setting = Setting(Source(model, packed), (), (0, 1), tmp_path)
    about = {"name": "mine", "question": "Is x 3?", "size": "demo"}
    with pytest.raises(ValueError, match="predictions y, but it observes x"):
        conduct(study, setting, predictions={"y": Prediction("y")}, **about)
    assert not (tmp_path / "verdict.json").exists()  # but the table of a long run is not lost
    assert (tmp_path / "table.csv").is_file()
    verdict = conduct(study, setting, predictions={"x": Prediction("x is 3", ">= 3")}, **about)
    assert verdict == json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["pass"]
    first, second = verdict_lines(verdict)
    assert first.startswith("mine (size demo, model")
    assert second == "  pass: x is 3 [x]: observed 3, asked >= 3"


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


SURROGATE = [
    "study.sizes.demo.tokens=1280", "study.sizes.demo.held_out=640", "study.sizes.demo.latents=48", "study.sizes.demo.ks=[3]",
    "study.run.fit_tokens=1280", "study.run.sample=640", "sites.patterns=[blocks.1.hook_resid_post]",
]  # fmt: skip


def test_surrogate(source, tmp_path):
    table, verdict = run("surrogate", *source, *SURROGATE, out=tmp_path / "a")
    again, _ = run("surrogate", *source, *SURROGATE, out=tmp_path / "b")
    pd.testing.assert_frame_equal(table, again)
    assert verdict["predictions"]["prefix"]["pass"]
    fvu = table[table["metric"] == "fvu"].set_index(["stream", "method", "seed"]).sort_index()["value"]
    assert set(fvu.index.get_level_values("stream")) == set(STREAMS)
    gains = table[table["metric"] == "gain"].set_index(["stream", "seed"]).sort_index()["value"]
    for seed in (0, 1):
        expected = 1 - fvu["gaussian", "rays", seed] / fvu["gaussian", "pca_topk"].iloc[0]
        assert gains["gaussian", seed] == pytest.approx(expected, abs=1e-5)
    bits = table[table["stream"] == "real"].set_index("method")["bits"]
    assert (bits["pca_topk"] >= bits["rays"].iloc[0]).all()  # the baseline never has fewer
    beyond = min(gains["real", s] - gains["token_mixture", s] for s in (0, 1))
    assert verdict["predictions"]["beyond_tokens"]["observed"] >= beyond - 1e-6


def test_shares_of_a_gain():
    def one(real, null):
        return {
            "real": {("a", 8, 0): (real, torch.full((9,), real))},
            "null": {("a", 8, 0): (null, torch.full((9,), null))},
        }

    found = worst_share(one(0.5, 0.1), "null", [("a", 8)], (0,))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))
    assert math.isnan(worst_share(one(-0.5, -0.1), "null", [("a", 8)], (0,)).value)  # no gain, no share of it


PARETO = [
    "study.sizes.demo.seeds=[0,1]",
    "study.sizes.demo.tokens=1280", "study.sizes.demo.held_out=640", "study.sizes.demo.splice_tokens=320",
    "study.sizes.demo.latents=48", "study.sizes.demo.ks=[2,4]", "study.sizes.demo.sample=400", "study.effort.demo.iterations=2",
    "study.sizes.demo.gap_tokens=64", "study.sizes.demo.fit_tokens=1280", "study.sizes.demo.validation_tokens=320",
    "sites.patterns=[blocks.1.hook_resid_post]", "study.run.baselines.ica.fit.components=16",
    "study.run.baselines.ica_split.fit.components=16",
]  # fmt: skip

KINDS = {"batchtopk", "matryoshka", "jumprelu", "gated", "l1", "tied_topk", "bottleneck_topk", "token_bias_topk"}


def test_pareto(source, tmp_path, monkeypatch):
    table, verdict = run("pareto", *source, *PARETO, out=tmp_path / "a")
    monkeypatch.setattr(arms, "LIMIT", 20 * 32 * 48 * 32)  # twenty dictionaries at a time
    again, _ = run("pareto", *source, *PARETO, out=tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "a/arms").iterdir()) == ["0"]
    assert sorted(p.name for p in (tmp_path / "b/arms").iterdir()) == ["0", "1"]
    pd.testing.assert_frame_equal(table, again)
    known = table.set_index(["method", "position0"])["fvu"]
    assert known["position0", "included"] < known["mean", "included"] - 0.01  # this model's position 0 stands apart
    assert known["position0", "excluded"] == known["mean", "excluded"]
    both, table = table, table[table["position0"] == "excluded"]
    assert figure(both) == figure(table)
    assert {"rays", "directions", "frozen", "soft_frozen", "pca_topk", "k_svd", "semi_nmf", "mean"} <= set(
        table["method"]
    )
    assert set(table.loc[table["bits"].notna(), "quantised"]) == {True}
    seeded = {"ica", "ica_split", "semi_nmf", "k_means", "k_svd", "random"}
    for method, rows in table[table["bits"].notna()].groupby("method"):
        fitted = (
            set() if rows["role"].iloc[0] == "baseline" and method not in seeded else {0} if method in KINDS else {0, 1}
        )
        assert set(rows["seed"].dropna()) == fitted, method
    sparse: dict[int, list[float]] = {0: [], 1: []}
    best = []
    for rays in table[table["method"] == "rays"].to_dict("records"):
        there = table[
            table["seed"].isna() | (table["seed"] == rays["seed"])
        ]  # fitted with the rays' seed, or with none
        near = there[(there["bits"] >= rays["bits"]) & (there["bits"] < rays["bits"] + 20)]  # never of fewer bits
        theirs = near[(near["role"] == "baseline") | (near["method"] == "random")].sort_values("bits")
        dce = theirs.groupby("method")["dce"].first()
        of = {m: v / rays["dce"] if rays["dce"] > 0 else 1000 * (v > 0) for m, v in dce.items()}
        sparse[rays["seed"]].append(of["pca_topk"])
        if rays["k"] == 2:
            assert {"ica", "k_svd", "random", "semi_nmf", "neurons"} <= set(of)
            best.append(min(of[m] for m in of if m != "token_means"))
    assert verdict["predictions"]["sparse_pca"]["observed"] == pytest.approx(
        sum(map(min, sparse.values())) / 2, rel=1e-3
    )
    assert verdict["predictions"]["best_fitted"]["observed"] == pytest.approx(sum(best) / 2, rel=1e-3)
    kinds = table[table["method"].isin(KINDS)].set_index("method")
    assert len(kinds) == 2 * len(KINDS)
    plain = set(table.loc[table["method"] == "rays", "bits"])  # the bits that baselines are measured at
    assert {name for name in KINDS if set(kinds.loc[name, "bits"]) == plain} == {"tied_topk", "token_bias_topk"}
    assert (table["method"] == "pca_topk").sum() == len(plain) == 2
    assert set(kinds.loc["token_bias_topk", "role"]) == {"told"}
    gaps = table[table["gap_omp"].notna()].groupby("method").size()
    assert dict(gaps) == {
        "rays": 4,
        "directions": 4,
        "frozen": 4,
        "soft_frozen": 4,
        "tied_topk": 2,
    }  # k codes and no more
    assert table["gap_fista"].notna().sum() == 5  # each at the least k and first seed


def test_what_is_trained_together_fits(monkeypatch):
    narrow, wide = Site("blocks.0.hook_resid_post", 8, 0), Site("blocks.0.mlp.hook_post", 32, 0)
    names, one = ("a", "b", "c", "d", "e"), 32 * 100 * 8  # bytes that 100 latents of width 8 take
    monkeypatch.setattr(arms, "LIMIT", 25 * one)
    assert arms.groups((narrow, wide), names, 100) == [((narrow, wide), names)]
    monkeypatch.setattr(arms, "LIMIT", 25 * one - 1)
    assert arms.groups((narrow, wide), names, 100) == [((narrow,), names), ((wide,), names)]
    monkeypatch.setattr(arms, "LIMIT", 8 * one)
    assert arms.groups((narrow, wide), names, 100) == [
        ((narrow,), names), ((wide,), names[:2]), ((wide,), names[2:4]), ((wide,), names[4:]),
    ]  # fmt: skip
    monkeypatch.setattr(arms, "LIMIT", 1)
    assert len(arms.groups((narrow, wide), names, 100)) == 10  # one at a time is the least


def test_what_is_measured_together_fits(monkeypatch):
    sites = [Site("blocks.0.hook_resid_post", 8, 0), Site("blocks.0.mlp.hook_post", 32, 0)]
    made = {
        site: {name: Linear(site.width, 10, 1, "topk", torch.eye(10, site.width) + 1) for name in "ab"}
        for site in sites
    }
    monkeypatch.setattr(
        arms, "LIMIT", 2 * 4 * 8 * 11 + 4 * 32 * 11
    )  # directions and bias: both narrow ones and a wide one
    assert [{site.width: list(named) for site, named in part.items()} for part in arms.parts(made)] == [
        {8: ["a", "b"], 32: ["a"]}, {32: ["b"]},
    ]  # fmt: skip


def test_ratio_of_what_costs_nothing():
    theirs, mine = torch.tensor([3.0, 3.0, -1.0, -1.0, 0.0]), torch.tensor([2.0, -1.0, 2.0, -2.0, 0.0])
    assert ratio(theirs, mine).tolist() == [1.5, 1000.0, -0.5, 0.0, 0.0]  # two that cost nothing are no victory


def test_amortisation_gap_of_what_a_coder_can_recode(model, packed):
    from rayscope.comparison import Comparison
    from rayscope.source import Source

    source = Source(model, packed, batch_size=64, round_tokens=512)
    (site,) = resolve("blocks.1.hook_resid_post", model)
    kinds = {"rays": TopK, "batch": BatchTopK, "dense": BottleneckTopK}
    learned = {
        site: {
            name: kind(site.width, 40, 3, **({"rank": 4} if name == "dense" else {})) for name, kind in kinds.items()
        }
    }
    found = amortisation(Comparison(source, learned, learned, {}, 3), 128, 3, 0)
    assert set(found) == {(site, "rays")}  # the others spend other codes than a coder at their k would


def test_a_baseline_is_read_at_the_bits_of_the_rays():
    named = {f"pca_k{k}": Linear(16, 16, k, "topk", torch.eye(16)) for k in (2, 3, 9)}
    three = bits_per_token(named["pca_k3"])
    assert at_bits("pca", named, three - 1, 0) == "pca_k3"
    assert at_bits("pca", named, three, 0) == "pca_k3"
    assert at_bits("pca", named, three + 1, 0) is None  # the next has far more
    assert at_bits("ica", named, three, 0) is None
    of_seeds = seed_last(
        {f"ica_s{seed}_k{k}": Linear(16, 16, k, "topk", torch.eye(16)) for k in (2, 3) for seed in (0, 12)}
    )
    assert at_bits("ica", of_seeds, three, 0) == "ica_k3_s0"
    assert at_bits("ica", of_seeds, three, 12) == "ica_k3_s12"
    assert at_bits("ica", of_seeds, three, 1) is None
    assert method_and_seed("k_svd_k9_s1") == ("k_svd", 1)
    assert method_and_seed("pca_split_k9") == ("pca_split", None)
    assert method_and_seed("mean") == ("mean", None)


def test_a_baseline_is_fitted_for_every_seed_that_its_fit_takes():
    def seeded(fit, seed: int = 7) -> Linear:
        dictionary = Linear(16, 16, 1, "topk", torch.eye(16))
        dictionary.provenance["seed"] = seed
        return dictionary

    entries = {
        "a": {"fit": seeded, "max_k": 1}, "b": {"fit": partial(seeded, seed=5)}, "c": {"fit": lambda fit: None, "budgets": "headline"},
    }  # fmt: skip
    found = for_seeds(entries, (0, 3))
    assert list(found) == ["a_s0", "a_s3", "b", "c"]
    assert [found[n].fit(None).provenance["seed"] for n in ("a_s0", "a_s3", "b")] == [0, 3, 5]  # type: ignore[union-attr, arg-type]
    assert [b.max_k for b in found.values()] == [1, 1, None, None]
    assert found["c"].budgets == "headline"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["paretto"], "no study=paretto; nearest: pareto"),
        (["pareto", "size=nite"], "size=nite: no such size; nearest: night (there are demo, night, full)"),
        (
            ["pareto", "study.sizes.demo.tokenz=2"],
            "no option 'study.sizes.demo.tokenz'; nearest: study.sizes.demo.tokens",
        ),
        (["pareto", "study.sizes.demo.ks=[]"], "study.sizes.<size>.ks=[]: give at least one k, such as [8, 16]"),
    ],
)
def test_what_is_wrong_is_one_line(source, tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit):
        main(["study", *arguments, *source, f"out={tmp_path / 'c'}"])
    assert said in capsys.readouterr().err.strip()
    assert not (tmp_path / "c").exists()
