"""-m: every job runs, the failed ones are named at the end, nothing appears in the current folder."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from rayscope.cli.command_line import main
from rayscope.cli.multirun import names_of
from rayscope.dictionaries import find
from toys import latest


@pytest.fixture
def sweep(tiny_gpt2, text_file, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    threads = torch.get_num_threads()
    yield [
        "train", "-m", "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files",
        f"text.files={text_file}",
        "stream.batch_size=64", "stream.round_tokens=512", "tokens=128", "latents=64",
        "training.calibration_tokens=128",
        "dictionaries=[topk]", "sites.patterns=[blocks.1.hook_resid_post]", "threads=1",
    ]  # fmt: skip
    torch.set_num_threads(threads)
    assert list(here.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_the_other_jobs_run_and_the_failed_ones_are_named(sweep, tmp_path, launcher, capfd):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    with pytest.raises(SystemExit) as stopped:
        main([*sweep, "k=2,999,abc,3", f"out={tmp_path}/k_${{k}}", f"hydra/launcher={launcher}"])
    said = capfd.readouterr().err
    assert stopped.value.code == 1
    assert {path.name for path in tmp_path.glob("k_*") if find(path / "dictionaries")} == {"k_2", "k_3"}
    assert "rayscope: k=999 failed: k=999 exceeds the 64 latents; lower k or raise latents\n" in said
    assert "rayscope: k=abc failed: k=abc: a whole number of at least 1\n" in said
    assert said.rstrip().endswith("rayscope: 2 of 4 jobs failed: k=abc, k=999")
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["seed=0,1"],
         "-m: 2 jobs (seed=0, seed=1) have one out, runs/train; give each its own, such as 'out=runs/train_${seed}'"),
        (["sed=0,1"], "no option 'sed'; nearest: seed"),
        (["k=abc,def"], "k=abc: a whole number of at least 1"),
        (["model=gtp2,gtp3"], "no model=gtp2; nearest: gpt2"),
    ],
)  # fmt: skip
def test_what_no_job_can_do_is_said_before_any_work(sweep, given, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(latest(*sweep, *given))
    assert (stopped.value.code, capsys.readouterr().err.splitlines()) == (1, [f"rayscope: {said}"])


def test_jobs_that_differ_beyond_what_is_shown_are_jobs_of_their_own():
    long = "x" * 200
    names = names_of([[f"out={long}{n}", "k=2"] for n in range(3)])
    assert len(set(names)) == 3
    assert names_of([["k=2", "seed=0"], ["k=3", "seed=0"]]) == ["k=2", "k=3"]


@pytest.mark.slow
def test_a_stop_names_what_is_left(sweep, tmp_path):
    command = latest(*sweep, "tokens=200_000", "k=2,3,4", f"out={tmp_path}/k_${{k}}")
    process = subprocess.Popen(
        [sys.executable, "-m", "rayscope", *command], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    until = time.monotonic() + 60
    while not (tmp_path / "k_2" / "config.yaml").is_file() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "3 of 3 jobs left: k=2, k=3, k=4; the same command does them" in said
    assert "Traceback" not in said
    assert not (tmp_path / "k_3").exists()
