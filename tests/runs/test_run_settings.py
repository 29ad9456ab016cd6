"""A command on a run measures with the run's own model, text and stream, and says so if it is told otherwise."""

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from rayscope.cli.command_line import main
from rayscope.dictionaries import load
from rayscope.runs.settings import run_settings

HOOK = "blocks.1.hook_resid_post"
SMALL = [
    "threads=1", "baselines=none", "baselines.fit_tokens=256", "evaluation.tokens=256", "evaluation.splice_tokens=64",
    "evaluation.validation_tokens=64", "evaluation.draws=20",
]  # fmt: skip


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tiny_gpt2, text_file, tmp_path_factory) -> Path:
    """Trained at another context, text, seed, precision and batch than any command's defaults."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    before = torch.get_num_threads()
    main([
        "train", "model=gpt2", f"model.name={tiny_gpt2}", "model.context=16", "text=files", f"text.files={text_file}",
        "seed=3", "precision=bf16", "stream.batch_size=64", "stream.round_tokens=512", f"sites.patterns=[{HOOK}]",
        "dictionaries=[topk]", "latents=64", "k=4", "tokens=640", "training.calibration_tokens=128", "threads=1",
        f"out={out}",
    ])  # fmt: skip
    torch.set_num_threads(before)
    return out


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def settings(path: Path) -> dict:
    found = yaml.safe_load(path.read_text())
    return {key: found[key] for key in ("model", "text", "sites", "seed", "precision", "stream", "latents")}


def said(capsys) -> list[str]:
    return [
        line
        for line in capsys.readouterr().err.splitlines()
        if not line.startswith(("text: packed", "baselines: fitted on the text that is measured"))
    ]


def fvu(folder: Path) -> float:
    table = pd.read_csv(folder / "evaluation.csv").query("dictionary == 'topk' and position0 == 'excluded'")
    assert (table.query("metric == 'fvu'")["tokens"] == 256).all()
    return table.query("metric == 'fvu' and value_bits == 8 and coder == 'own'")["value"].item()


@pytest.mark.slow
def test_the_readmes_line_measures_what_was_trained(copy, tmp_path, capsys):
    main(["evaluate", *SMALL, f"out={copy}"])
    assert said(capsys) == []
    assert settings(copy / "evaluate.config.yaml") == settings(copy / "config.yaml")
    again = ["evaluate", *SMALL, "model=gpt2", f"out={tmp_path / 'again'}", f"dictionaries.folder={copy}/dictionaries"]
    own = settings(copy / "config.yaml")
    again += [f"model.name={own['model']['name']}", "text=files", f"text.files={own['text']['files']}"]
    main(again)  # the context, which no option names, is the run's
    assert said(capsys) == []
    assert fvu(tmp_path / "again") == fvu(copy)


@pytest.mark.slow
def test_what_is_given_wins_and_is_said(copy, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text(
        "\n<|endoftext|>\n".join(f"the {word} house and that night was long " * 40 for word in "abcdefghijklmnop")
    )
    main(["evaluate", *SMALL, f"out={copy}", "model.context=32", "text=files", f"text.files={other}", "seed=5"])
    (line,) = said(capsys)
    for fact in ("trained with model.context=16", "measured with model.context=32", "seed=3", "seed=5", str(other)):
        assert fact in line
    assert settings(copy / "evaluate.config.yaml")["model"]["context"] == 32
    assert settings(copy / "evaluate.config.yaml")["text"]["files"] == str(other)
    assert settings(copy / "evaluate.config.yaml")["stream"] == {"batch_size": 64, "round_tokens": 512}


def test_an_option_of_another_kind_of_text_is_named_with_that_kind(copy, capsys):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *SMALL, "text.packages=[]", f"out={copy}"])
    assert stopped.value.code == 1
    (line,) = said(capsys)
    assert "text.packages is an option of text=docs" in line
    assert "read text=files; choose text=docs as well" in line
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_folder_of_dictionaries_belongs_to_the_run_above_it(copy, tmp_path, capsys):
    site = copy / "dictionaries" / HOOK.replace(".", "_")
    main(["evaluate", *SMALL, f"dictionaries.folder={site}", f"out={tmp_path / 'measured'}"])
    assert said(capsys) == []
    assert settings(tmp_path / "measured/evaluate.config.yaml") == settings(copy / "config.yaml")
    linked = tmp_path / "linked"
    linked.symlink_to(site)
    assert run_settings(linked) == settings(copy / "config.yaml")


@pytest.mark.slow
def test_features_and_the_kl_stage_take_them_too(copy, tmp_path, capsys):
    few = [
        "features.tokens=256",
        "features.most_frequent=2",
        "features.spaced=0",
        "features.min_count=1",
        "features.contexts=1",
    ]
    main(["features", *few, "threads=1", "baselines=none", "baselines.fit_tokens=256", f"out={copy}"])
    assert settings(copy / "features.config.yaml") == settings(copy / "config.yaml")
    tune = ["stage=kl", f"finetuning.folder={copy}/dictionaries", "finetuning.tokens=128", "finetuning.rows=2"]
    main(["train", *tune, "training.calibration_tokens=64", "threads=1", f"out={tmp_path / 'kl'}"])
    assert settings(tmp_path / "kl/config.yaml") == settings(copy / "config.yaml")
    assert all("trained" not in line or "token features" in line or "fine-tuned" in line for line in said(capsys))


@pytest.mark.slow
def test_dictionaries_without_a_run_are_measured_as_asked_and_say_how_they_were_trained(
    run, tiny_gpt2, text_file, tmp_path, capsys
):
    moved = shutil.copytree(run / "dictionaries", tmp_path / "moved")
    command = [
        "evaluate", *SMALL, "model=gpt2", f"model.name={tiny_gpt2}", "text=files", f"text.files={text_file}",
        "stream.batch_size=64", "stream.round_tokens=512", f"dictionaries.folder={moved}",
    ]  # fmt: skip
    main([*command, "model.context=32", "precision=bf16", f"out={tmp_path / 'longer'}"])
    assert said(capsys) == ["topk: trained at model.context=16, here 32"]
    main([*command, "model.context=16", "text.max_tokens=4000", f"out={tmp_path / 'less'}"])
    (line,) = said(capsys)
    assert line.startswith("topk: trained on other text (sha256 ")
    assert line.endswith(", at precision=bf16, here fp32")
    config = next(moved.rglob("config.json"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"provenance": {"site": HOOK}}))
    main([*command, "model.context=32", f"out={tmp_path / 'unknown'}"])
    assert said(capsys) == []


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("", "it is empty"), ("[1]", "it holds a list"), (b"\xff\xfe\x00", "is not what rayscope wrote"),
        ("a: [", "is not what rayscope wrote"),
        ("{out: a, seed: 0, overwrite: false}", "it was changed after environment.json"),
    ],
)  # fmt: skip
def test_a_run_whose_configuration_is_not_one(copy, content, fact, capsys):
    (copy / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(copy, fact, capsys)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "rayscope.text.files.os.abort",
        "rayscope.text.Docs",
        "rayscope.runs.run.Run",
        "[rayscope.model.load]",
    ],
)
def test_a_configuration_calls_nothing_but_ours(copy, target, capsys):
    planted = (
        f"out: a\noverwrite: false\nmodel: {{_target_: {target}}}\ntext: {{}}\nstream: {{}}\nseed: 0\nprecision: fp32"
    )
    (copy / "config.yaml").write_text(planted)
    about = json.loads((copy / "environment.json").read_text())
    for more in ({"config": hashlib.sha256(planted.encode()).hexdigest()}, {}):  # or of an older version
        (copy / "environment.json").write_text(json.dumps({k: v for k, v in about.items() if k != "config"} | more))
        refused(copy, "not one of rayscope's", capsys)


def test_one_bit_of_a_setting(copy, capsys):
    text = (copy / "config.yaml").read_text()
    assert "\nseed: 3\n" in text
    (copy / "config.yaml").write_text(text.replace("\nseed: 3\n", "\nseed: 1\n"))
    refused(copy, "it was changed after environment.json was written", capsys)


def refused(copy: Path, fact: str, capsys, path: Path | None = None) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *SMALL, f"out={copy}"])
    assert stopped.value.code == 1
    (line,) = said(capsys)
    assert str(path or copy / "config.yaml") in line
    assert fact in line
    assert not (copy / "evaluation.csv").exists()


def test_a_folder_next_to_a_run_is_not_in_it(copy, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run_settings(Path("copy/../other")) == {}
    assert run_settings(Path("other/../copy"))["seed"] == 3


@pytest.mark.slow
def test_a_run_without_all_of_its_dictionaries_is_not_measured(copy, tmp_path, capsys):
    (place,) = (copy / "dictionaries").glob("*/topk")
    shutil.copytree(place, place.with_name("other"))
    shutil.rmtree(place)
    gone = f"{place}/config.json is missing, though trained.json says that it is trained"
    tune = ["train", "stage=kl", "threads=1", f"finetuning.folder={copy}/dictionaries", f"out={tmp_path / 'kl'}"]
    for command in (["evaluate", *SMALL, f"out={copy}"], ["features", "threads=1", f"out={copy}"], tune):
        with pytest.raises(SystemExit):
            main(command)
        assert said(capsys)[-1].startswith(f"rayscope: {gone}; put it back, or copy those to be read")
    (copy / "trained.json").unlink()
    with pytest.raises(SystemExit):
        main(["evaluate", *SMALL, f"out={copy}"])
    assert said(capsys)[-1].startswith(f"rayscope: {copy}: its training is not finished")
    apart = shutil.copytree(copy / "dictionaries", copy / "apart")
    main(["evaluate", *SMALL, f"dictionaries.folder={apart}", f"out={tmp_path / 'measured'}"])
    assert "other" in set(pd.read_csv(tmp_path / "measured/evaluation.csv")["dictionary"])


def test_a_dictionary_whose_k_was_changed_is_not_measured(copy, capsys):
    (path,) = (copy / "dictionaries").glob("*/topk/config.json")
    text = path.read_text()
    assert '"k": 4' in text
    path.write_text(text.replace('"k": 4', '"k": 5'))
    refused(copy, f"{path} is not what training wrote there; put it back", capsys, path)


@pytest.mark.slow
def test_what_was_measured_on_other_dictionaries_is_not_finished(copy, capsys):
    command = ["evaluate", *SMALL, f"out={copy}"]
    main(command)
    main(command)
    assert "this evaluate is finished already" in said(capsys)[-1]
    before = (copy / "evaluation.csv").read_bytes()
    (place,) = (copy / "dictionaries").glob("*/topk")
    load(place).save(place, load(place).provenance | {"seed": 7})
    with pytest.raises(SystemExit):
        main(command)
    assert said(capsys) == [
        f"rayscope: {copy} holds a run of evaluate on other dictionaries than {copy}/dictionaries holds now; "
        "give another out=, or overwrite=true to redo it"
    ]
    assert (copy / "evaluation.csv").read_bytes() == before


@pytest.mark.slow
def test_links_that_lead_in_a_circle(tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    loop = tmp_path / "loop"
    for command in (
        ["evaluate", f"out={loop}"],
        ["features", f"dictionaries.folder={loop}", f"out={tmp_path / 'new'}"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 1
        (line,) = said(capsys)
        assert str(loop) in line


def test_sites_are_the_dictionaries_own(copy, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", *SMALL, "sites=mlp", f"out={copy}"])
    assert said(capsys) == [
        f"rayscope: sites: every dictionary of {copy / 'dictionaries'} says its own; leave sites out"
    ]
    main(["evaluate", *SMALL, f"sites.patterns=[{HOOK}]", f"out={copy}"])
