"""Studies: what a verdict says, intervals over seeds, and each study from the command line on a model made here."""

import json
import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch

from rayscope.cli.command_line import main
from rayscope.cli.groups import groups
from rayscope.evaluation.codecs import references
from rayscope.evaluation.measure import documents_predicted, measure
from rayscope.evaluation.meter import Meter
from rayscope.model.nulls import NULL_MODELS
from rayscope.model.sites import resolve
from rayscope.report import read_verdict, verdict_lines
from rayscope.streams.source import Source
from rayscope.streams.stream import Batch
from rayscope.streams.surrogates import moments_of
from rayscope.studies import Findings, Observed, Prediction, Setting, conduct
from rayscope.studies.intervals import resamples
from rayscope.studies.surrogate.arenas import NULLS, Arenas
from rayscope.studies.surrogate.gains import worst_share


@pytest.fixture(scope="module")
def source(source: list[str]) -> list[str]:
    return [*source, "threads=1"]


SITE = ["sites.patterns=[blocks.1.hook_resid_post]"]


TEXTS = ("study", "question", "size", "model", "prediction", "threshold")


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


def test_of_one_seed_or_few_documents_nothing_is_judged():
    varies, exact = Observed(3.0, 2.5, 4.0), Observed.exactly(3.0)
    assert Prediction("it holds", ">= 2").verdict(varies, seeds=1)["pass"] is None
    assert Prediction("it holds", ">= 2").verdict(varies, seeds=2)["pass"] is True
    assert Prediction("it holds", ">= 2").verdict(exact, seeds=1)["pass"] is True
    with pytest.raises(ValueError, match="the study reads 1 document of the test split, an interval needs 5"):
        resamples(1, 100)
    assert resamples(5, 100).shape == (100, 5)


def test_a_threshold_that_is_no_limit_is_refused_before_the_study_runs():
    with pytest.raises(ValueError, match="'>=2' is not such as"):
        Prediction("it holds", ">=2")


@pytest.fixture
def setting(model, packed, tmp_path) -> Setting:
    return Setting(Source(model, packed), tuple(resolve("blocks.1.hook_resid_post", model)), (0, 1), tmp_path)


def test_a_study_observes_what_is_predicted(setting, tmp_path):
    def study(setting: Setting) -> Findings:
        return Findings(pd.DataFrame({"a": [1]}), {"x": Observed.exactly(3.0)}, "<svg/>")

    about = {"name": "mine", "question": "Is x 3?", "size": "demo"}
    with pytest.raises(ValueError, match="predictions y, but it observes x"):
        conduct(study, setting, predictions={"y": Prediction("y")}, **about)
    assert not (tmp_path / "verdict.json").exists()  # but the table of a long run is not lost
    assert (tmp_path / "table.csv").is_file()
    verdict = conduct(study, setting, predictions={"x": Prediction("x is 3", ">= 3")}, **about)
    assert verdict == json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["pass"]
    assert verdict["predictions"]["x"]["converged"] is verdict["converged"] is None  # nothing is trained
    first, second = verdict_lines(verdict)
    assert first.startswith("mine (size demo, model")
    assert second == "  pass: x is 3 [x]: observed 3, asked >= 3"


@pytest.mark.parametrize(
    ("before", "after", "converged"),
    [
        (2.88, 3.0, True),  # 4%
        (2.82, 3.0, False),  # 6%
        (3.18, 3.0, False),
        (2.49, 2.51, False),  # .8%, but on the other side of what is asked
        (0.0, 0.0, True),
        (0.0, 1.0, False),
        (math.nan, 3.0, False),
        (math.nan, math.nan, None),
    ],
)
def test_a_number_has_converged_if_three_times_the_tokens_move_it_by_less_than_5_percent(
    setting, before, after, converged
):
    asked = {"x": Prediction("x is large", ">= 2.5"), "late": Prediction("reported"), "left_out": Prediction("no null")}
    seen = []

    def study(setting: Setting, tokens: int, planted: dict, k: int) -> Findings:
        seen.append((tokens, planted["tokens"], k, setting.folder.name, setting.option("tokens")))
        value = after if tokens == 300 else before
        more = {"late": Observed.exactly(1.0)} if tokens == 300 else {}
        table = pd.DataFrame({"a": [value, 1.0], "b": [None, "x"]})
        return Findings(table, {"x": Observed.exactly(value), **more}, f"<svg {tokens}/>")

    def again() -> dict:
        return conduct(
            study, replace(setting, size="night"), name="mine", question="Is it?", size="night", predictions=asked,
            options={"tokens": 300, "planted": {"tokens": 90}, "k": 4}, trained_on=["tokens", "planted.tokens"],
        )  # fmt: skip

    verdict = again()
    assert seen == [
        (100, 30, 4, "100", "study.sizes.night.tokens / 3"), (300, 90, 4, "300", "study.sizes.night.tokens")
    ]  # fmt: skip
    assert verdict["budgets"] == [100, 300]
    x, late, left_out = (verdict["predictions"][name] for name in asked)
    assert x["converged"] is verdict["converged"] is converged
    assert x["pass"] is (after >= 2.5)
    known = {"100": before, "300": after}
    nothing = {tokens: None if math.isnan(value) else value for tokens, value in known.items()}
    assert x.get("at") == (None if converged else nothing)
    assert (late["observed"], late["converged"], late["at"]) == (1.0, None, {"300": 1.0})
    assert (left_out["observed"], left_out["pass"], left_out["converged"]) == (None, None, None)
    table = pd.read_csv(setting.folder / "table.csv")
    assert table["budget"].tolist() == [100, 100, 300, 300]
    assert table["a"].tolist() == pytest.approx([before, 1, after, 1], nan_ok=True)
    assert (setting.folder / "figure.svg").read_text() == "<svg 300/>"
    whole = {name: (setting.folder / name).read_bytes() for name in ("table.csv", "figure.svg", "verdict.json")}
    (setting.folder / "budgets/300/observed.json").unlink()  # as a kill leaves it: one budget is not measured again
    assert again() == verdict
    assert len(seen) == 3
    assert {name: (setting.folder / name).read_bytes() for name in whole} == whole


@pytest.mark.slow
def test_a_study_without_sites_or_seeds_is_refused(model, packed, source, tmp_path, capsys):
    known, sites = Source(model, packed), tuple(resolve("blocks.1.hook_resid_post", model))
    with pytest.raises(ValueError, match=r"^seeds=\[\]: give at least one, such as \[0, 1, 2\]$"):
        Setting(known, sites, (), tmp_path)
    with pytest.raises(ValueError, match=r"^sites.patterns: no site given; .* blocks.3.hook_resid_post$"):
        Setting(known, (), (0,), tmp_path)
    with pytest.raises(ValueError, match=r"^seeds=\[0, 2, 0\]: 0 is given more than once$"):
        Setting(known, sites, (0, 2, 0), tmp_path)
    for asked in ("study.sizes.demo.seeds=[]", "study.sizes.demo.seeds=null", "~study.sizes.demo.seeds"):
        with pytest.raises(SystemExit):
            main(["study", "metric_sanity", *source, asked, f"out={tmp_path / 'run'}"])
        said = "rayscope: study.sizes.demo.seeds=[]: give at least one, such as [0, 1, 2]"
        assert capsys.readouterr().err.strip().endswith(said)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_verdict_is_shown_again(source, tmp_path, capsys):
    sizes = ["study.sizes.demo.tokens=320", "study.sizes.demo.splice_rows=1", *SITE]
    table, _ = run("metric_sanity", *source, *sizes, out=tmp_path)
    lines = capsys.readouterr().out
    assert lines.startswith("metric_sanity (size demo")
    run("metric_sanity", *source, *sizes, out=tmp_path)
    again = capsys.readouterr()
    assert again.out == lines
    assert "this study is finished already" in again.err
    (tmp_path / "finished.json").unlink()  # as a kill just before it leaves it
    run("metric_sanity", *source, *sizes, out=tmp_path)
    assert capsys.readouterr().out == lines
    assert (tmp_path / "finished.json").is_file()
    (tmp_path / "table.csv").unlink()
    again, _ = run("metric_sanity", *source, *sizes, out=tmp_path)
    pd.testing.assert_frame_equal(table, again)
    capsys.readouterr()
    whole = (tmp_path / "verdict.json").read_text()
    (tmp_path / "verdict.json").write_text(whole[:-2])
    with pytest.raises(SystemExit) as stopped:
        main(["study", "metric_sanity", *source, *sizes, f"out={tmp_path}"])
    assert stopped.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"rayscope: {tmp_path / 'verdict.json'} is not what `rayscope study` writes (")
    assert (tmp_path / "verdict.json").read_text() == whole[:-2]


def test_metric_sanity_sees_a_fault_in_the_evaluation(source, tmp_path, monkeypatch):
    """As if position 0 were never told apart: the first principal components no longer explain what they should."""
    reconstruct = Meter.reconstruct
    monkeypatch.setattr(
        Meter, "reconstruct", lambda meter, v: reconstruct(meter, replace(v, first_N=v.first_N & False))
    )
    sizes = ["study.sizes.demo.tokens=512", "study.sizes.demo.splice_rows=2", "study.sizes.demo.seeds=[0]"]
    table, verdict = run("metric_sanity", *source, *sizes, out=tmp_path / "a")
    assert verdict["predictions"]["error"]["pass"] is False
    wrong = table[table["error"] > 1e-6]
    assert set(wrong["by"]) == {"evaluation"}
    assert {"pca_prefix", "position0"} <= set(wrong["codec"])


WHOLE = {
    "study": "mine", "question": "Is it?", "size": "demo", "model": "tiny", "seeds": [0, 1], "budgets": [100, 300],
    "pass": True, "converged": False,
    "predictions": {"x": {"prediction": "it is", "threshold": ">= 2", "observed": 3.0, "ci": [2.5, None],
     "pass": True, "converged": False, "at": {"100": 2.75, "300": 3.0}}},
}  # fmt: skip


def test_a_verdict_is_read_whole_or_not_at_all(tmp_path):
    path, whole = tmp_path / "verdict.json", json.dumps(WHOLE, indent=1)
    path.write_text(json.dumps({**WHOLE, "written_by": "a later version"}))
    first, second = verdict_lines(read_verdict(path))
    assert first == "mine (size demo, model tiny, 2 seeds, 100 and 300 tokens): pass. Is it?"
    said = "  pass: it is [x]: observed 3 (2.5 to none), asked >= 2"
    assert second == f"{said}; not converged: 2.75 at 100 tokens, 3 at 300 tokens"
    one = WHOLE["predictions"]["x"]
    ours = [
        {**WHOLE, key: other}
        for key in WHOLE
        for other in ([], {}, 3, "", "x")
        if (key not in TEXTS or other not in ("", "x")) and (key, other) not in (("predictions", {}), ("budgets", []))
    ]
    theirs = [
        {**one, key: other}
        for key in one
        for other in ([], {}, "x", [1])
        if (key not in TEXTS or other != "x") and (key, other) != ("at", {})
    ]
    lacking = [{k: v for k, v in WHOLE.items() if k != key} for key in WHOLE]
    lacking += [
        {**WHOLE, "predictions": {"x": {k: v for k, v in one.items() if k != key}}} for key in one if key != "at"
    ]
    wrong = [
        json.dumps(each) for each in (*ours, *lacking, *({**WHOLE, "predictions": {"x": each}} for each in theirs))
    ]
    wrong += [whole[:end] for end in range(len(whole))] + ["[" * 100_000, "null", whole.replace("3.0", "NaN"), "\udcff"]
    for text in wrong:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(ValueError, match=r"verdict\.json is not what `rayscope study` writes") as error:
            read_verdict(path)
        assert len(str(error.value)) < len(str(path)) + 200
        assert "\n" not in str(error.value)


def test_studies_that_are_not_there_are_named(tmp_path, capsys):
    missing = tmp_path / "studys"
    with pytest.raises(SystemExit):
        main(["report", f"out={tmp_path}", f"studies={missing}"])
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"rayscope: studies={missing}: no such folder; ")


@pytest.mark.slow
def test_the_report_shows_studies(source, tmp_path):
    run("metric_sanity", *source, "study.sizes.demo.tokens=512", "study.sizes.demo.splice_rows=2", out=tmp_path / "s/a")
    main(["report", f"out={tmp_path / 's/a'}", f"studies={tmp_path / 's'}"])
    page = (tmp_path / "s/a/report/index.html").read_text()
    assert "metric_sanity (size demo" in page
    assert "the figure of a" in page


SURROGATE = [
    "study.sizes.demo.tokens=1280", "study.sizes.demo.held_out=640", "study.sizes.demo.latents=48",
    "study.sizes.demo.ks=[3]",
    "study.sizes.demo.fit_tokens=1280", "study.run.sample=640", "sites.patterns=[blocks.1.hook_resid_post]",
]  # fmt: skip


@pytest.mark.slow
def test_surrogate(source, tmp_path):
    table, verdict = run("surrogate", *source, *SURROGATE, out=tmp_path / "a")
    again, _ = run("surrogate", *source, *SURROGATE, out=tmp_path / "b")
    pd.testing.assert_frame_equal(table, again)
    assert set(table["budget"]) == {426, 1280}
    table = table[table["budget"] == 1280]
    assert set(table["trained_tokens"].dropna()) == {1280}
    assert verdict["predictions"]["prefix"]["pass"]
    assert verdict["predictions"]["prefix"]["converged"]
    fvu = table[table["metric"] == "fvu"].set_index(["stream", "method", "seed"]).sort_index()["value"]
    assert set(fvu.index.get_level_values("stream")) == {"real", *NULLS}
    for method in ("rays", "frozen"):
        of = fvu.xs(method, level="method").round(5)
        assert len(set(of)) == 2 * (1 + len(NULLS))  # each stream, and each draw of it, is another
    apart = {name: len(set(fvu[name, "pca_topk"].round(6))) for name in ("real", *NULLS)}
    assert apart["real"] == 1  # one text, and two draws of each null
    assert all(apart[name] == 2 for name in NULLS)
    gains = table[table["metric"] == "gain"].set_index(["stream", "method", "seed"]).sort_index()["value"]
    for name, method, seed in product(("real", "gaussian", "random_blocks"), ("rays", "frozen"), (0, 1)):
        expected = 1 - fvu[name, method, seed] / fvu[name, "pca_topk", seed]
        assert gains[name, method, seed] == pytest.approx(expected, abs=1e-5)
    bits = table[table["stream"] == "real"].set_index("method")["bits"]
    assert (bits["pca_topk"] >= bits["rays"].iloc[0]).all()  # the baseline never has fewer
    beyond = [gains["real", "rays", seed] - gains["token_mixture", "rays", seed] for seed in (0, 1)]
    assert verdict["predictions"]["beyond_tokens"]["observed"] == pytest.approx(sum(beyond) / 2, abs=1e-6)


@pytest.mark.slow
def test_parts_train_what_the_whole_study_then_finds(source, tmp_path, capsys):
    few = [*SURROGATE, "study.run.nulls=[gaussian,permuted_weights]"]
    run("surrogate", *source, *few, out=tmp_path / "whole")
    for part, done in (("2/3", 2), ("1/3", 2), ("3/3", 1)):
        main(["study", "surrogate", *source, *few, f"part={part}", f"out={tmp_path / 'parts'}"])
        assert f"part {part}: {done} of 5 trainings are done" in capsys.readouterr().err
        assert not (tmp_path / "parts/finished.json").exists()
        assert not (tmp_path / "parts/table.csv").exists()
    trained = sorted((tmp_path / "parts").glob("budgets/*/arms/*/trained.json"))
    assert len(trained) == 10
    times = [path.stat().st_mtime_ns for path in trained]
    run("surrogate", *source, *few, out=tmp_path / "parts")
    assert [path.stat().st_mtime_ns for path in trained] == times
    for name in ("table.csv", "verdict.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(SystemExit):
        main(["study", "surrogate", *source, *few, "part=4/3", f"out={tmp_path / 'other'}"])
    assert "part=4/3: part 4 of 3; the first number counts from 1 to the second" in capsys.readouterr().err


def test_each_arena_is_the_stream_of_its_name(model, packed, tmp_path):
    setting = Setting(Source(model, packed, batch_size=64), resolve("blocks.1.hook_resid_post", model), (0,), tmp_path)
    arenas = Arenas(setting, 640, 1280, 256, 640)
    arenas.check()
    (site,), real = setting.sites, arenas.arena("real", 0)
    for name in NULLS:
        one, other = arenas.arena(name, 3), arenas.arena(name, 4)
        for batch, like in zip((one.validation, one.test), (other.validation, other.test), strict=True):
            assert not torch.equal(batch.activations[site.key], like.activations[site.key])  # a draw for each seed
        assert not torch.equal(one.stream[0].activations[site.key], other.stream[0].activations[site.key])
        assert torch.equal(one.test.tokens_N, real.test.tokens_N)
        assert one.stream[0].activations[site.key].shape == real.stream[0].activations[site.key].shape
        if name in NULL_MODELS:
            expected = Source(NULL_MODELS[name](model, 3), packed, batch_size=64).stream("test", [site], 640, "fp32")
            assert torch.equal(one.test.activations[site.key], Batch.join(expected).activations[site.key])
            assert one.stream.model.fingerprint == expected.model.fingerprint != model.fingerprint
        else:
            assert (one.stream.kind, one.stream.seed) == (name, 3)
            found, of = (moments_of(a.test.activations[site.key]) for a in (one, real))
            torch.testing.assert_close(found.covariance_DD, of.covariance_DD, rtol=1e-3, atol=1e-4)


def test_shares_of_a_gain():
    def gains(value: float, draws_B: torch.Tensor) -> dict:
        return {("rays", "a", 8, 0): (value, draws_B)}

    null, real = (gains(value, torch.full((9,), value)) for value in (0.1, 0.5))
    found = worst_share(null, real, [("a", 8)], (0,))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))
    less = gains(-0.5, torch.full((9,), -0.5))
    assert math.isnan(worst_share(null, less, [("a", 8)], (0,)).value)  # no gain, no share of it
    shaky = gains(0.5, torch.tensor([-1.0] * 4 + [0.5] * 5))
    found = worst_share(null, shaky, [("a", 8)], (0,))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 1000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["paretto"], "no study=paretto; nearest: pareto"),
        *[
            ([study, "study.seeds=[7]"], "no option 'study.seeds'; nearest: study.sizes, study.sizes.full.seeds")
            for study in groups()["study"]
        ],
        (["pareto", "size=nite"], "size=nite: no such size; nearest: night (there are demo, night, full)"),
        (
            ["pareto", "study.sizes.demo.tokenz=2"],
            "no option 'study.sizes.demo.tokenz'; nearest: study.sizes.demo.tokens",
        ),
        (
            ["surrogate", "study.sizes.demo.ks=8"],
            "study.sizes.demo.ks=8: a list, each a whole number of at least 1, such as [8, 16]",
        ),
        (["pareto", "study.sizes.demo.ks=[]"], "study.sizes.demo.ks=[]: give at least one, such as [8, 16]"),
        (["surrogate", "study.sizes.demo.ks=[4,8,4]"], "study.sizes.demo.ks=[4, 8, 4]: 4 is given more than once"),
    ],
)
def test_what_is_wrong_is_one_line(source, tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit):
        main(["study", *arguments, *source, f"out={tmp_path / 'c'}"])
    assert said in capsys.readouterr().err.strip()
    assert not (tmp_path / "c").exists()


HELD_OUT = {  # by study, the options that say how much held-out text an interval is drawn from
    "metric_sanity": ["tokens"],
    "pareto": ["held_out", "splice_tokens"],
    "rays_vs_directions": ["test_tokens", "splice_tokens"],
    "reproducible_directions": ["test_tokens"],
    "surrogate": ["held_out"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("study", "name"), [(study, name) for study, names in HELD_OUT.items() for name in names])
def test_too_few_documents_are_refused_before_anything_is_trained(source, tmp_path, capsys, study, name):
    batch = ["study.sizes.demo.batch_size=64"] * (study == "reproducible_directions")  # its own
    with pytest.raises(SystemExit):
        main(["study", study, *source, *SITE, *batch, f"study.sizes.demo.{name}=64", f"out={tmp_path / 'run'}"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    documents = re.fullmatch(
        rf"rayscope: study.sizes.demo.{name}=64 reads (\d) documents? of the test split, an interval needs 5; "
        "raise it, or give more or shorter documents",
        said,
    )
    assert documents, said
    assert 1 <= int(documents[1]) <= 4
    assert not (tmp_path / "run").exists()


def test_documents_are_those_that_the_evaluation_measures(model, packed):
    (site,) = resolve("blocks.1.hook_resid_post", model)
    nothing = {site: references(torch.zeros(32), torch.zeros(32))}
    for seed, tokens in ((0, 32), (0, 100), (3, 320)):
        measured = measure(
            model, packed.test, [], nothing, [], tokens=640, splice_tokens=tokens, value_bits=[], seed=seed
        )
        assert documents_predicted(packed.test, tokens, seed) == measured.spliced_documents
    assert documents_predicted(packed.test, 31, 0) == 0
