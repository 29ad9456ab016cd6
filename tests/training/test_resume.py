"""A run that is killed (kill -9) mid-round and resumed equals, bitwise, the one that was not."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from rayscope.cli.command_line import main
from rayscope.dictionaries import load
from rayscope.features.appearance import snapshots
from rayscope.files import PARTIAL
from rayscope.model.sites import resolve
from toys import latest

NAMES = ["topk", "batchtopk", "matryoshka_batchtopk", "tied_topk", "bottleneck_topk", "token_bias_topk"]
STEPS, BATCH, EVERY = 60, 64, 6  # rounds of 4 batches: a checkpoint at step 6, 18, ... is in the middle of one


class Shape:
    layers, d_model, d_mlp = 3, 32, 128


@pytest.fixture(scope="module")
def command(tiny_gpt2, text_file):
    return [
        "train", "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files", f"text.files={text_file}",
        "sites.patterns=[blocks.1.hook_resid_post,blocks.1.mlp.hook_post]", f"dictionaries=[{','.join(NAMES)}]",
        "latents=96",
        "k=2", f"tokens={STEPS * BATCH}", f"stream.batch_size={BATCH}", "stream.round_tokens=279", "threads=1",
        "training.calibration_tokens=256", f"training.checkpoint_steps={EVERY}", "training.log_every=3",
        "training.snapshots=4", "dictionaries.topk.lr=0.01",
        "dictionaries.tied_topk.decoder=soft_frozen",
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(command, threads, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    main([*command, f"out={out}"])
    return out


def results(folder: Path) -> dict[str, str]:
    """sha256 of every weights file, the snapshots' too, and the log."""
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("weights.safetensors"))
    }
    return {**found, "log": (folder / "training.csv").read_text()}


def killed(command: list[str], out: Path, step: int) -> None:
    """Runs the command in a process that gets SIGKILL in the middle of a step, a checkpoint lying behind it."""
    program = (
        "import sys, time\n"
        "from rayscope.training.trainer import DictionaryTrainer as T\n"
        "inner = T.training_step\n"
        "def step(self, batch, number):\n"
        f"    if self.global_step == {step}:\n"
        "        print('here', flush=True); time.sleep(600)\n"
        "    return inner(self, batch, number)\n"
        "T.training_step = step\n"
        "from rayscope.cli.command_line import main\n"
        "main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command, f"out={out}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        said = [line for line in iter(process.stdout.readline, b"here\n") if line]
        assert process.poll() is None, b"".join(said).decode()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()


@pytest.mark.slow
def test_kill_and_resume_equals_the_uninterrupted_run(command, whole, tmp_path, capsys):
    assert len(results(whole)) == 2 * len(NAMES) * (1 + 5) + 1
    rows = results(whole)["log"].splitlines()
    dead = [n for n, name in enumerate(rows[0].split(",")) if name.startswith("train/dead/blocks.1.mlp.hook_post/topk")]
    assert max(float(row.split(",")[dead[0]]) for row in rows[1:]) > 0  # AuxK had something to do

    out = tmp_path / "killed"
    killed(command, out, step=22)  # after the checkpoint of step 18, two steps into a round of four
    assert (out / "checkpoint.ckpt").is_file()
    assert torch.load(out / "checkpoint.ckpt", weights_only=True)["state"]["global_step"] == 18
    assert not (out / "finished.json").exists()
    (out / f".checkpoint.ckpt-0a1b2c3d{PARTIAL}").write_bytes(b"half of a checkpo")  # of a kill while one is written
    with (out / "training.csv").open("a") as file:
        file.write("1984,0.")
    capsys.readouterr()
    main([*command, f"out={out}"])
    assert "resuming at 1,152 of 3,840 tokens" in capsys.readouterr().err
    assert results(out) == results(whole)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, STEPS - 1], ids=["before any checkpoint", "in the last step"])
def test_stopped_elsewhere(command, whole, tmp_path, monkeypatch, step):
    """In-process: the same at the ends, where there is nothing to resume from, and where nothing is left to train."""
    from rayscope.training import train as training

    inner = training.DictionaryTrainer.record

    class Killed(BaseException):
        pass

    def record(self, now):
        inner(self, now)
        if now == step:
            raise Killed

    def calibrate(*args):
        raise Killed

    with monkeypatch.context() as patch:
        if step == 2:
            patch.setattr(training.DictionaryTrainer, "record", record)
        else:
            patch.setattr(training, "calibrate", calibrate)
        with pytest.raises(Killed):
            main([*command, f"out={tmp_path / 'killed'}"])
    main([*command, f"out={tmp_path / 'killed'}"])
    assert results(tmp_path / "killed") == results(whole)


@pytest.fixture(scope="module")
def short(command) -> list[str]:
    """One site, two kinds, and one that diverges at its second step."""
    ours = ("sites.patterns", "dictionaries", "tokens", "training.checkpoint_steps", "training.log_every")
    kept = [arg for arg in command if not arg.startswith(ours)]
    return [
        *kept, "sites.patterns=[blocks.1.hook_resid_post]", "dictionaries=[topk,batchtopk,abstopk]",
        "dictionaries.abstopk.lr=1e30", f"tokens={20 * BATCH}", "training.log_every=3", "training.checkpoint_steps=4",
    ]  # fmt: skip


def failed(command: list[str], out: Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(latest(*command, f"out={out}"))
    return stopped.value.code


@pytest.fixture(scope="module")
def whole_short(short, threads, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "short"
    assert failed(short, out) == 1  # one diverged
    return out


def signalled(monkeypatch, step: int, number: int) -> None:
    """The process gets the signal in the middle of a step."""
    from rayscope.training.trainer import DictionaryTrainer

    inner = DictionaryTrainer.training_step

    def training_step(self, batch, batch_number):
        if self.global_step == step:
            os.kill(os.getpid(), number)
        return inner(self, batch, batch_number)

    monkeypatch.setattr(DictionaryTrainer, "training_step", training_step)


@pytest.mark.slow
def test_stops_and_resumes_equal_the_uninterrupted_run(short, whole_short, tmp_path, monkeypatch, capsys):
    """A stop ends its step and saves: nothing is trained twice, and a step may be stopped again and again."""
    out, steps = tmp_path / "stopped", sorted(random.Random(os.getpid()).sample(range(20), 3))
    done = 0
    for number, step in zip((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), steps, strict=True):
        with monkeypatch.context() as patch:
            signalled(patch, step, number)
            capsys.readouterr()
            assert failed(short, out) == 128 + number, steps
        said = capsys.readouterr().err
        assert (f"resuming at {done * BATCH:,} of 1,280 tokens" in said) == (done > 0)
        done = step + 1
        where = f"rayscope: training stopped at {done * BATCH:,} of 1,280 tokens; the same command resumes there"
        assert said.splitlines()[-1] == f"{where} ({signal.Signals(number).name})"
        assert not (out / "trained.json").exists()
    assert failed(short, out) == 1
    assert results(out) == results(whole_short), steps
    assert {path.name for path in out.iterdir()} == {path.name for path in whole_short.iterdir()}


def test_a_run_of_which_one_diverged_says_so_each_time(short, whole_short, capsys):
    assert {path.parent.name for path in (whole_short / "dictionaries").rglob("config.json")} == {"topk", "batchtopk"}
    assert not (whole_short / "finished.json").exists()
    assert not (whole_short / "checkpoint.ckpt").exists()
    trained = json.loads((whole_short / "trained.json").read_text())
    assert trained["dictionaries"] == [f"blocks_1_hook_resid_post/{name}" for name in ("topk", "batchtopk")]
    (diverged,) = trained["diverged"]
    assert (diverged["name"], diverged["tokens"], diverged["lr"]) == ("abstopk", BATCH, 1e30)
    before = results(whole_short)
    capsys.readouterr()
    assert failed(short, whole_short) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "abstopk at blocks.1.hook_resid_post after step 1 (64 tokens, lr=1e+30)" in said
    assert f"the rest (2) is in {whole_short / 'dictionaries'}" in said
    assert results(whole_short) == before


@pytest.mark.slow
def test_snapshots_are_dictionaries_like_any_other(short, whole_short, tmp_path, capsys):
    """They say their site, model and text, so they are evaluated and tuned; what a kill left among them is not read."""
    hidden = whole_short / "snapshots" / "64" / "blocks_1_hook_resid_post" / f".topk-0a1b2c3d{PARTIAL}"
    unfinished = hidden.with_name("unfinished")
    for folder in (hidden, unfinished):
        folder.mkdir()
    (hidden / "config.json").write_text("{}")
    (site,) = resolve(["blocks.1.hook_resid_post"], Shape())
    found = dict(snapshots(whole_short / "snapshots", [site]))
    for folder in (hidden, unfinished):
        shutil.rmtree(folder)
    assert list(found) == [0, 64, 192, 448, 1280]
    assert list(found[64][site.key]) == ["abstopk", "batchtopk", "topk"]  # abstopk was still finite
    assert list(found[1280][site.key]) == ["batchtopk", "topk"]
    saved = load(whole_short / "dictionaries" / site.key / "topk")
    assert found[1280][site.key]["topk"].provenance | {"lr": saved.provenance["lr"]} == saved.provenance

    shared = [arg for arg in short if arg.startswith(("model", "text", "stream", "threads"))]
    place = whole_short / "snapshots" / "448"
    sizes = [
        "evaluation.tokens=256",
        "evaluation.splice_tokens=128",
        "evaluation.validation_tokens=256",
        "baselines=none",
    ]
    main(["evaluate", *shared, *sizes, f"dictionaries.folder={place}", f"out={tmp_path / 'measured'}"])
    table = pd.read_csv(tmp_path / "measured" / "evaluation.csv")
    assert set(table["dictionary"]) >= {"topk", "batchtopk"}
    tuning = ["stage=kl", f"finetuning.folder={place}", "finetuning.tokens=256", "finetuning.rows=4"]
    main(["train", *shared, *tuning, "training.calibration_tokens=256", f"out={tmp_path / 'tuned'}"])
    tuned = load(tmp_path / "tuned" / "dictionaries" / site.key / "topk")
    assert tuned.provenance["tokens"] == 448 + 256


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "flipped", "gone", "both"])
def test_a_damaged_checkpoint_is_never_used(short, whole_short, tmp_path, monkeypatch, capsys, harm):
    out = tmp_path / "harmed"
    with monkeypatch.context() as patch:
        signalled(patch, 10, signal.SIGTERM)
        failed(short, out)
    content = bytearray((out / "checkpoint.ckpt").read_bytes())
    if harm == "gone":
        (out / "checkpoint.ckpt").unlink()
    elif harm == "cut":
        (out / "checkpoint.ckpt").write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 3] ^= 4
        (out / "checkpoint.ckpt").write_bytes(content)
    if harm == "both":
        (out / "checkpoint-before.ckpt").write_bytes(b"")
    capsys.readouterr()
    assert failed(short, out) == 1
    said = capsys.readouterr().err
    if harm == "both":
        assert f"{out / 'checkpoint.ckpt'} is damaged (its checksum does not match), and" in said
        assert "remove both to begin again" in said
        for path in out.glob("checkpoint*"):
            path.unlink()
        failed(short, out)
    else:
        assert (f"{out / 'checkpoint.ckpt'} is damaged (" in said) == (harm != "gone")
        assert "resuming at 512 of 1,280 tokens" in said
    assert results(out) == results(whole_short)


@pytest.mark.slow
def test_the_checkpoint_of_another_run_is_refused(short, tmp_path, monkeypatch, capsys):
    signalled(monkeypatch, 5, signal.SIGTERM)
    for name, extra in {"one": [], "other": ["k=3"], "order": ["seed=1", "dictionaries.topk.seed=0"]}.items():
        failed([*short, *extra], tmp_path / name)
    own = (tmp_path / "one" / "checkpoint.ckpt").read_bytes()
    for name, difference in {"other": "topk at blocks.1.hook_resid_post.k: 2 -> 3", "order": "first_batch: "}.items():
        extra = ["k=3"] if name == "other" else ["seed=1", "dictionaries.topk.seed=0"]
        (tmp_path / name / "checkpoint.ckpt").write_bytes(own)
        capsys.readouterr()
        assert failed([*short, *extra], tmp_path / name) == 1
        said = capsys.readouterr().err
        assert f"{tmp_path / name / 'checkpoint.ckpt'} is of another run (" in said
        assert difference in said
        assert (tmp_path / name / "checkpoint.ckpt").read_bytes() == own


@pytest.mark.slow
def test_another_number_of_threads_is_said(command, tmp_path, monkeypatch, capsys):
    from rayscope.training import train as training

    def fails(*args):
        raise RuntimeError("stop")

    monkeypatch.setattr(training, "calibrate", fails)
    with pytest.raises(SystemExit):
        main([*command, f"out={tmp_path}"])
    monkeypatch.undo()
    path = tmp_path / "environment.json"
    assert '"threads": 1' in path.read_text()
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 7'))
    capsys.readouterr()
    main([*command, f"out={tmp_path}"])
    assert "begun with threads 7, going on with 1: not bitwise the same" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resume_on_another_text_or_model_is_refused(tiny_gpt2, text_file, tmp_path, monkeypatch, capsys):
    """The paths are the same; what lies there has changed since the run began, and later is as it was."""
    from rayscope.training import train as training

    text, model, out = tmp_path / "text.txt", tmp_path / "model", tmp_path / "run"
    shutil.copy(text_file, text)
    shutil.copytree(tiny_gpt2, model)
    short = [
        "train", "model=gpt2", f"model.name={model}", "model.context=null", "text=files", f"text.files={text}",
        "sites.patterns=[blocks.0.hook_resid_pre]", "dictionaries=[topk]", "latents=32", "k=2", "tokens=512",
        "stream.batch_size=64", "threads=1", "training.calibration_tokens=64", "training.checkpoint_steps=4",
    ]  # fmt: skip

    def killed(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(training, "calibrate", killed)
        with pytest.raises(SystemExit):
            main([*short, f"out={out}"])
    config = json.loads((model / "config.json").read_text())
    changes = {
        text: (text.read_text().replace("house", "horse"), "the text, tokenizer or context changed"),
        model / "config.json": (json.dumps({**config, "n_head": 4}), "the model's weights or configuration changed"),
    }
    for path, (content, said) in changes.items():
        before = path.read_text()
        path.write_text(content)
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([*short, f"out={out}"])
        assert said in capsys.readouterr().err
        path.write_text(before)
    main([*short, f"out={out}"])
    assert (out / "finished.json").is_file()
