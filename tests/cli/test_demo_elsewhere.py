"""A demo's second measurement, on text of another kind."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from folders import Killed
from rayscope import pipeline
from rayscope.cli.command_line import main
from rayscope.text import said
from toys import latest

TABLES = ("evaluation.csv", "evaluation_elsewhere.csv", "latent_density.csv", "token_features.csv")
HOOK = "blocks.1.hook_resid_post"
MEASURED = [
    "threads=1", "latents=64", "baselines=pca", "baselines.fit_tokens=512", "baselines.headline_k=4",
    "evaluation.tokens=512", "evaluation.splice_tokens=256", "evaluation.validation_tokens=256", "evaluation.draws=20",
    "evaluation.value_bits=[8,4]", "evaluation.coders=[own]",
]  # fmt: skip


@pytest.fixture(scope="module")
def demo(source) -> list[str]:
    return ["demo", *source, *MEASURED, f"sites.patterns=[{HOOK}]", "dictionaries=[topk,batchtopk]", "k=4",
            "tokens=640", "training.calibration_tokens=128", "training.snapshots=0", "training.snapshot_names=null",
            "features.tokens=512", "features.most_frequent=2", "features.spaced=0", "features.min_count=5",
            "features.contexts=1", "elsewhere.max_tokens=40_000", "studies=null"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory) -> Path:
    """A finished demo."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    main([*demo, f"out={out}"])
    return out


def values(folder: Path, name: str = "evaluation_elsewhere.csv") -> pd.DataFrame:
    table = pd.read_csv(folder / name)
    return table.set_index(["dictionary", "metric", "position0"])


@pytest.mark.slow
def test_a_demo_measures_its_headline_on_the_prose_that_ships(demo, source, whole, packed, tmp_path, capsys):
    there, here = values(whole), values(whole, "evaluation.csv")
    here = here[here["value_bits"] != 4]
    assert set(there["value_bits"].dropna()) == {8}  # the most
    assert set(there["text"]) == {name for name in there["text"] if name.startswith("prose ")} != set(here["text"])
    assert set(there["fitted_on"].dropna()) == {said(packed.provenance)}
    learned = {name for name, _, _ in there.index if name in ("topk", "batchtopk")}
    assert learned == {"topk", "batchtopk"}
    assert there["value"]["topk", "fvu", "excluded"] != here["value"]["topk", "fvu", "excluded"]
    main(["report", f"out={whole}", "studies=null"])
    page = (whole / "report/index.html").read_text()
    assert "On text of another kind" in page
    assert f"{there['value']['topk', 'fvu', 'excluded']:.3f}" in page

    main(latest("evaluate", *source[:3], "text=prose", "text.max_tokens=40_000", "stream.batch_size=64",
                "stream.round_tokens=512", *MEASURED, "evaluation.value_bits=[8]",
                "evaluation.splice_tokens=64", "evaluation.tokens=256",
                f"dictionaries.folder={whole / 'dictionaries'}",
                f"out={tmp_path / 'same'}"))  # fmt: skip
    same = values(tmp_path / "same", "evaluation.csv")
    pd.testing.assert_frame_equal(there, same.loc[there.index])  # on the same text, with the same fits


@pytest.mark.slow
def test_a_kill_between_the_two_measurements_resumes_to_the_same_bytes(demo, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "killed"

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate_elsewhere", die)
        with pytest.raises(Killed):
            main([*demo, f"out={out}"])
    assert (out / "evaluation.csv").is_file()
    assert not (out / "evaluation_elsewhere.csv").exists()
    main([*demo, f"out={out}"])
    for name in TABLES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    capsys.readouterr()
    main([*demo, f"out={out}"])
    assert "this demo is finished already" in capsys.readouterr().err
    (out / "evaluation_elsewhere.csv").unlink()
    main([*demo, f"out={out}"])
    assert "evaluation_elsewhere.csv of a finished demo is not there" in capsys.readouterr().err
    assert (out / "evaluation_elsewhere.csv").read_bytes() == (whole / "evaluation_elsewhere.csv").read_bytes()


@pytest.mark.slow
def test_a_resume_on_other_text_of_another_kind_is_refused(demo, tmp_path, text_file, monkeypatch, capsys):
    news, out = tmp_path / "news.txt", tmp_path / "run"
    news.write_text(text_file.read_text().replace("the ", "all "))
    argv = [*(one for one in demo if not one.startswith("elsewhere")), "elsewhere=files", f"elsewhere.files={news}"]
    argv.append(f"out={out}")

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate_elsewhere", die)
        with pytest.raises(Killed):
            main(argv)
    assert set(json.loads((out / "environment.json").read_text())["inputs"]) == {"text", "model", "elsewhere"}
    news.write_text(text_file.read_text().replace("the ", "one "))
    with pytest.raises(SystemExit):
        main(argv)
    assert "the text of another kind changed after this run began" in capsys.readouterr().err


@pytest.mark.slow
def test_none_measures_nothing_else_and_too_little_is_said_before_training(demo, tmp_path, capsys):
    out = tmp_path / "none"
    argv = [one for one in demo if not one.startswith("elsewhere")]
    main([*argv, "elsewhere=none", f"out={out}"])
    assert not (out / "evaluation_elsewhere.csv").exists()
    page = (out / "report/index.html").read_text()
    assert "another kind" not in page
    assert "evaluation_elsewhere" not in page
    capsys.readouterr()
    main([*argv, "elsewhere=none", f"out={out}"])
    assert "this demo is finished already" in capsys.readouterr().err
    for given, words in (
        (["elsewhere.max_tokens=100"], "elsewhere: .* raise elsewhere.max_tokens=100"),
        (["elsewhere=files", "elsewhere.files=[gone.txt]"], "elsewhere.files: no file matches 'gone.txt'"),
    ):
        with pytest.raises(SystemExit):
            main([*argv, *given, f"out={tmp_path / 'few'}"])
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.search(words, line), line
        assert not (tmp_path / "few").exists()
