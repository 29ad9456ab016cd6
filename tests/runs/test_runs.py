"""A run resumes only as itself, and no damaged record is believed."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import Killed, begin_and_die, config, die_at_once, make, set_aside, start, work
from rayscope import records
from rayscope.records import NOT_COMPARED, Records, differences, flat, same_inputs
from rayscope.runs.run import OUTPUTS, Finished, out_folder, run
from rayscope.training.trained import is_trained


@pytest.mark.parametrize(
    "change",
    [{"threads": 7}, {"device": "cuda"}, {"cache": "elsewhere"}, {"logger": {"project": "p"}},
     {"checkpoint_seconds": 1},
     {"checkpoint_steps": 1}, {"log_every": 1}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_options_that_change_no_result_are_not_compared(old, change):
    ((key, value),) = change.items()
    before = config(old)
    inner = before["training"] if key.startswith(("checkpoint", "log_")) else before
    inner[key] = value
    assert differences(config(old), before) == ""
    with pytest.raises(Finished), run("train", before, ["train"]):
        pass


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"k": 2}, {"training": {"snapshots": 1}}, {"new": None}, {"logged": 1}], ids=str
)
def test_others_are(old, refused, change):
    refused(
        old,
        f"another configuration .*{next(iter(change))}",
        **{"k": 1, **change} if "training" not in change else change,
    )


def test_every_option_that_is_not_compared_exists():
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("rayscope.conf", version_base="1.3"):
        asked = compose("train", ["logger=wandb"]), compose("study")
        keys = [f"{key}." for config in asked for key in flat(OmegaConf.to_container(config))]
    assert [name for name in NOT_COMPARED if not any(key.startswith(f"{name}.") for key in keys)] == []


def test_a_folder_that_was_moved_is_the_same_run(tmp_path):
    (tmp_path / "a").mkdir()
    make(tmp_path / "a" / "run", command="study")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(Finished), start(tmp_path / "b" / "run", command="study"):
        pass
    inside = [config(Path(out), dictionaries={"folder": f"{out}/dictionaries"}) for out in ("x", "/y/x")]
    assert differences(*inside) == ""
    inside[1]["dictionaries"]["folder"] = "/y/x2/dictionaries"
    assert differences(*inside) == "dictionaries.folder: ${out}/dictionaries -> /y/x2/dictionaries"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["text", "model", "dictionaries"])
def test_a_resume_with_other_inputs_is_refused(old, tmp_path, name, overwrite):
    inputs, folder = {"text": "1", "model": "2", "dictionaries": "3"}, tmp_path / "run"
    records = Records(folder)
    for read, die in (({"text": "of a start that wrote nothing"}, die_at_once), (inputs, begin_and_die)):
        with suppress(Killed), start(folder, overwrite=overwrite):
            same_inputs(records, read)
            die(folder)
    for _ in range(2):
        with (
            pytest.raises(ValueError, match="changed after this run began; put them back") as stopped,
            start(folder, overwrite=overwrite),
        ):
            same_inputs(records, {**inputs, name: "other"})
        assert {"text": "the text", "model": "the model", "dictionaries": "the dictionaries"}[name] in str(
            stopped.value
        )
        assert ("or overwrite=true" in str(stopped.value)) != overwrite
    with start(folder, overwrite=overwrite):
        same_inputs(records, inputs)
        work(folder, 1)
    assert json.loads(records.environment.read_text())["inputs"] == inputs


def test_what_moves_the_last_bits_is_said(tmp_path, monkeypatch, capsys):
    with pytest.raises(Killed), start(tmp_path):
        begin_and_die(tmp_path)
    path = tmp_path / "environment.json"
    about = json.loads(path.read_text())
    about["cpu"], about["native"], about["versions"]["torch"] = "AVX", None, "1.0"
    path.write_text(json.dumps(about))
    with pytest.raises(Killed), start(tmp_path):
        die_at_once(tmp_path)
    said = capsys.readouterr().err
    for line in (
        "begun with cpu AVX, going on with ",
        "begun with native None, going on",
        "begun with torch 1.0, going on",
    ):
        assert line in said


def test_a_package_that_is_not_installed_is_none(monkeypatch):
    monkeypatch.setattr("rayscope.records.PACKAGES", ("torch", "no-such-package"))
    versions = records.describe([])["versions"]
    assert versions["no-such-package"] is None
    assert versions["torch"]


NOT_OURS = st.one_of(
    st.binary(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    ).map(lambda found: json.dumps(found).encode()),
)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unfinished"
    with pytest.raises(Killed), start(folder, 16):
        begin_and_die(folder)
    return folder


def resumed(folder: Path) -> str:
    """The one line of a refusal, or none if the same run goes on from where it was."""
    said = ""
    try:
        with start(folder, 16):
            raise Killed
    except Killed:
        pass
    except ValueError as error:
        said = str(error)
    assert (folder / "checkpoint.ckpt").read_text() == "progress"
    return said


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_a_record_cut_at_any_byte_is_one_line_or_the_same_run(unfinished, name):
    path = unfinished / name
    whole, refusals = path.read_bytes(), 0
    for end in range(0, len(whole), 1 if name == "config.yaml" else 7):
        path.write_bytes(whole[:end])
        said = resumed(unfinished)
        assert not said or (str(path.parent) in said and "give another out=" in said and "\n" not in said)
        refusals += bool(said)
        path.write_bytes(whole)
    assert refusals > 50


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
@given(content=NOT_OURS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_record_that_is_not_ours_is_one_line(unfinished, name, content):
    path = unfinished / name
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        for overwrite in (False, True):
            with pytest.raises(
                ValueError, match=f"{name} is not what rayscope wrote .*; put that back, or give another out="
            ):
                start(unfinished, 2, overwrite=overwrite).__enter__()
        assert set_aside(unfinished) == []
    finally:
        path.write_bytes(whole)


@given(content=NOT_OURS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_finished_json_that_is_not_ours_is_not_believed(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(Killed), start(folder):
        begin_and_die(folder)
    (folder / "finished.json").write_bytes(content)
    with start(folder):
        assert (folder / "checkpoint.ckpt").is_file()
        work(folder, 1)
    with pytest.raises(Finished), start(folder):
        pass
    assert not (folder / "checkpoint.ckpt").exists()


@given(content=NOT_OURS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_trained_json_that_is_not_ours_is_not_believed(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    make(folder)
    ours = (folder / "trained.json").read_bytes()
    (folder / "trained.json").write_bytes(content)
    with start(folder):  # not finished after all
        with pytest.raises(
            ValueError, match=r"trained.json is not what rayscope wrote .*; put it back, or train again"
        ):
            is_trained(folder)
        (folder / "checkpoint.ckpt").touch()
        assert not is_trained(folder)  # it goes on from there
        (folder / "trained.json").write_bytes(ours)
        assert is_trained(folder)
        assert not (folder / "checkpoint.ckpt").exists()


@pytest.mark.parametrize("damage", ["gone", "incomplete", "empty", "all gone"])
def test_dictionaries_that_are_not_there_are_not_believed(old, damage):
    place = old / "dictionaries" / "site" / "topk"
    if damage == "empty":
        (place / "weights.safetensors").write_bytes(b"")
    else:
        gone = {"gone": place, "incomplete": place / "weights.safetensors", "all gone": old / "dictionaries"}[damage]
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with (
        pytest.raises(
            ValueError, match=r"(is missing|is empty), though trained.json says that it is trained; put it back, or"
        ),
        start(old),
    ):
        assert not is_trained(old)
    with start(old, overwrite=True):
        assert not (old / "trained.json").exists()
        work(old, 1)


def test_a_finished_run_without_any_output_that_fails_is_forgotten(tmp_path):
    folder = tmp_path / "run"
    make(folder, command="study")
    for name in OUTPUTS["study"]:
        (folder / name).unlink()
    with pytest.raises(Killed), start(folder, command="study"):
        die_at_once(folder)
    assert list(folder.iterdir()) == []


def test_a_table_that_is_gone_is_made_again(old, capsys):
    make(old, 1, command="evaluate")
    (old / "latent_density.csv").unlink()
    with start(old, 1, command="evaluate"):
        (old / "latent_density.csv").write_text("again")
    assert "latent_density.csv of a finished evaluate is not there; it is made again" in capsys.readouterr().err
    with pytest.raises(Finished), start(old, 1, command="evaluate"):
        pass


@pytest.mark.parametrize("out", ["", "  ", None, True, 1.5, ["a"]])
def test_no_folder_is_an_error(out):
    with pytest.raises(ValueError, match=r"^out=.*give one, such as out=runs/mine"):
        out_folder(out)


def test_a_folder_may_be_a_number_or_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [out_folder(out) for out in (7, ".", "~/x")] == [Path("7"), Path(), Path("/home/me/x")]
