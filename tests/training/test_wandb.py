"""logger=wandb offline: what a run has logged is read back from the file that W&B keeps.
Nothing reaches the network.
"""

import json
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import wandb
import yaml

from rayscope.cli.command_line import main
from rayscope.training.wandb_file import records
from rayscope.training.wandb_run import WandbRun
from toys import latest

HOOKS = ("blocks.1.hook_resid_post", "blocks.1.mlp.hook_post")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No W&B settings or key of the user's, none of its files outside the test's folder, no connection to elsewhere."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "home" / name))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    inner = socket.socket.connect

    def connect(self, address):
        """W&B's service, on this machine, may be spoken to."""
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a connection to {address}")
        return inner(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    wandb.teardown()
    assert list((tmp_path / "here").iterdir()) == []


@dataclass
class Offline:
    """What an offline run's file holds."""

    id: str = ""
    name: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    x_axis: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None

    @classmethod
    def read(cls, path: Path) -> "Offline":
        from wandb.proto import wandb_internal_pb2

        found = cls()
        for data, _ in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found.id, found.name, found.project = record.run.run_id, record.run.display_name, record.run.project
                found.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                row: dict = {}
                for item in record.history.item:
                    name, *inside = item.nested_key or [item.key]
                    value = json.loads(item.value_json)
                    if inside:
                        row.setdefault(name, {})[inside[0]] = value
                    else:
                        row[name] = value
                found.rows.append(row)
            elif kind == "metric":
                found.x_axis[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            elif kind == "exit":
                found.exit_code = record.exit.exit_code
        return found


def files(out: Path) -> list[Offline]:
    """In the order in which they were begun, which is that of `wandb sync`."""
    found = sorted(out.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [Offline.read(path) for path in found]


@pytest.fixture
def common(tiny_gpt2, text_file) -> list[str]:
    return [
        "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files", f"text.files={text_file}",
        "stream.batch_size=64", "stream.round_tokens=512", "latents=64", "logger=wandb",
    ]  # fmt: skip


def train(common: list[str], *more: str) -> None:
    options = ["k=4", "dictionaries=[topk,abstopk]", "tokens=1280", "training.calibration_tokens=256"]
    main(latest("train", *common, *options, "training.log_every=5", "training.checkpoint_steps=8", *more))


@pytest.mark.slow
def test_one_run_for_training_its_resumption_and_evaluation(one_thread, common, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    given = [*common, "logger.offline=true", f"out={out}"]

    def fails(*_):
        raise ValueError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("rayscope.training.train.calibrate", fails)
        with pytest.raises(SystemExit):
            train(given)
    assert f"to upload: wandb sync {out}/wandb" in capsys.readouterr().err
    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    assert [row["tokens"] for row in Offline.read(file).rows] == [320, 640, 960, 1280]
    assert Offline.read(file).exit_code == 1
    data = file.read_bytes()
    ends = [end for record, end in records(data) if b"train/fvu" in record and b"_step" in record]
    file.write_bytes(data[: ends[1] + 20])  # as if W&B had been killed while it wrote the row at 960
    (out / "checkpoint.ckpt").unlink()  # and training before its last checkpoint
    train(given)
    evaluation = ["evaluation.tokens=512", "evaluation.splice_tokens=256", "evaluation.draws=20"]
    main(["evaluate", *given, "baselines=pca", "baselines.fit_tokens=1024", *evaluation])
    assert wandb.run is None

    killed, resumed, evaluated = found = files(out)
    assert {run.id for run in found} == {json.loads((out / "wandb.json").read_text())["id"]}
    assert {run.project for run in found} == {"rayscope"}
    assert killed.name == "run"
    assert [run.exit_code for run in found] == [None, 0, 0]
    assert all(run.x_axis["*"] == "tokens" for run in found)

    config = yaml.safe_load((out / "config.yaml").read_text())
    assert killed.config.items() >= config.items()
    assert resumed.config.items() >= config.items()
    assert config["dictionaries"]["topk"]["k"] == 4
    assert killed.config["versions"] == json.loads((out / "environment.json").read_text())["versions"]
    config = yaml.safe_load((out / "evaluate.config.yaml").read_text())
    assert evaluated.config["evaluate"].items() >= config.items()
    assert "latents" not in evaluated.config  # those of training stay

    names = {
        f"train/{metric}/{hook}/{name}"
        for metric in ("fvu", "l0", "dead", "density")
        for hook in HOOKS
        for name in ("topk", "abstopk")
    }
    rows = [*killed.rows, *resumed.rows]  # each once
    assert [row["_step"] for row in rows] == [row["tokens"] for row in rows] == [320, 640, 960, 1280]
    assert all({name for name in row if name.startswith("train/")} == names for row in rows)
    table = pd.read_csv(out / "training.csv")
    for name in names:
        if "density" in name:
            assert [row[name]["_type"] for row in rows] == ["histogram"] * 4
            assert [row[name]["values"] for row in rows] == [*map(json.loads, table[name])]
        else:
            assert [row[name] for row in rows] == pytest.approx(table[name].tolist(), rel=1e-5)

    (row,) = evaluated.rows
    assert row["tokens"] == 1280
    assert row["_step"] > 1280
    table = pd.read_csv(out / "evaluation.csv").query("position0 == 'excluded' and value == value")
    wanted = {f"eval/{r.metric}/{r.site}/{r.dictionary}": r.value for r in table.itertuples()}
    assert {f"eval/{metric}/{HOOKS[0]}/topk" for metric in ("fvu", "l0", "dce", "kl", "bits", "dead")} <= set(wanted)
    assert {name: value for name, value in row.items() if name.startswith("eval/")} == pytest.approx(wanted, rel=1e-5)


KEY = "0123456789abcdef" * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "given", "said"),
    [
        ({}, [], ["no API key", "wandb login", "WANDB_API_KEY", "logger.offline=true"]),
        ({"API_KEY": "short"}, [], ["WANDB_API_KEY invalid", "wandb login"]),
        (
            {"API_KEY": KEY, "INIT_TIMEOUT": "0.5"},
            [],
            ["http://127.0.0.1:9", "connection refused", "WANDB_BASE_URL", "logger.offline=true"],
        ),
        ({"API_KEY": KEY}, ["logger.project=a/b"], ["logger.project", "'a/b'"]),
        ({"MODE": "of"}, [], ["WANDB_MODE", "'of'", "offline"]),
        ({"BASE_URL": "nowhere"}, [], ["WANDB_BASE_URL", "'nowhere'", "URL"]),
    ],
)
def test_without_w_and_b_nothing_is_begun(environment, given, said, common, tmp_path, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setattr("rayscope.cli.commands.open_source", lambda config: pytest.fail("work was begun"))
    with pytest.raises(SystemExit) as stopped:
        train(common, f"out={tmp_path / 'run'}", *given)
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rayscope: ")
    assert all(words in line for words in said)
    assert KEY not in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_fails_before_its_first_row_leaves_the_folder_as_it_was(common, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(SystemExit):
        train(common, f"out={tmp_path / 'run'}", "text.files=nothing.txt")
    assert not (tmp_path / "run").exists()


def begun(folder: Path, **options) -> WandbRun:
    folder.mkdir(exist_ok=True)
    run = WandbRun(**options)
    run.begin(folder, {"k": 4})
    return run


@pytest.mark.slow
def test_an_agents_id_wins_and_is_kept(tmp_path, monkeypatch):
    begun(tmp_path / "a", offline=True).finish(failed=False)
    with monkeypatch.context() as agent:
        for name, value in {"MODE": "offline", "SWEEP_ID": "s1", "RUN_ID": "r1", "PROJECT": "p", "ENTITY": "e"}.items():
            agent.setenv(f"WANDB_{name}", value)
        begun(tmp_path / "a").finish(failed=False)
    assert json.loads((tmp_path / "a" / "wandb.json").read_text()) == {"id": "r1", "project": "p", "entity": "e"}
    run = begun(tmp_path / "a", offline=True)
    run.write_evaluation(100, {"eval/fvu/h/topk": 0.5})
    run.write_evaluation(100, {"eval/fvu/h/topk": 0.5})
    run.finish(failed=False)
    first, *later = files(tmp_path / "a")
    assert first.id != "r1"
    assert [(run.id, run.project) for run in later] == [("r1", "p"), ("r1", "p")]
    assert [row["_step"] for row in later[-1].rows] == [101, 102]
    with pytest.raises(ValueError, match=r"logger.project=q: .*/a is W&B run r1 of project p; .*wandb.json"):
        begun(tmp_path / "a", offline=True, project="q")
    (tmp_path / "a" / "wandb.json").write_text('{"id": ')
    with pytest.raises(ValueError, match=r"a/wandb.json is damaged; remove it"):
        begun(tmp_path / "a", offline=True)


def services() -> list[int]:
    """W&B's processes among the children of this one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, name, _, parent, *_ = stat.read_text().split()
        except (OSError, ValueError):
            continue
        if "wandb" in name and int(parent) == os.getpid():
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds W&B's process in /proc")
def test_a_service_that_dies_ends_nothing(tmp_path, capsys):
    run = begun(tmp_path / "a", offline=True)
    run.write(64, {"train/fvu/h/topk": 0.5}, {"train/density/h/topk": np.ones(12, dtype=int)})
    (service,) = services()
    os.kill(service, signal.SIGKILL)
    time.sleep(0.2)
    capsys.readouterr()
    for tokens in (128, 192, 256):
        run.write(tokens, {"train/fvu/h/topk": 0.5}, {})
    run.finish(failed=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("W&B: ")
