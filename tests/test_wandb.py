"""logger=wandb offline: what a run has logged is read back from the file that W&B keeps. Nothing reaches the network."""

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from rayscope.cli import main

HOOKS = ("blocks.1.hook_resid_post", "blocks.1.mlp.hook_post")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {
        "MODE": "offline",
        "DIR": tmp_path,
        "SILENT": "true",
        "CONFIG_DIR": tmp_path / "config",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    inner = socket.socket.connect

    def connect(self, address):
        """The service beside it, on this machine, may be spoken to."""
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a connection to {address}")
        return inner(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def records(data: bytes, block: int = 2**15) -> Iterator[bytes]:
    """The records of a LevelDB log: in blocks of 32 kB, pieces of (crc, length, type), a type above 2 going on with one.

    The first seven bytes are W&B's own; less than seven at a block's end are padding.
    """
    assert data[:4] == b":W&B"
    place, record = 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        piece = data[place + 7 : place + 7 + length]
        place += 7 + length
        record = record + piece if kind > 2 else piece
        if kind in (1, 4):
            yield record


def logged(path: Path) -> tuple[list[dict], dict[str, str]]:
    """(rows, {metric: its step metric}) of an offline run's file."""
    from wandb.proto import wandb_internal_pb2

    rows, steps = [], {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row: dict = {}
            for item in record.history.item:
                name, *inside = item.nested_key or [item.key]
                if inside:
                    row.setdefault(name, {})[inside[0]] = json.loads(item.value_json)
                else:
                    row[name] = json.loads(item.value_json)
            rows.append(row)
        elif record.WhichOneof("record_type") == "metric":
            steps[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    return rows, steps


def test_names_and_steps(offline, tiny_gpt2, text_file, tmp_path):
    import wandb

    out = tmp_path / "run"
    common = [
        "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files", f"text.files={text_file}",
        "stream.batch_size=64", "stream.round_tokens=512", "latents=64", "logger=wandb", "logger.offline=true",
        f"out={out}",
    ]  # fmt: skip
    training = ["tokens=1280", "k=4", "dictionaries=[topk,abstopk]", "training.log_every=10"]
    main(["train", *common, *training, "training.calibration_tokens=256"])
    assert wandb.run is None  # finished
    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    rows, steps = logged(file)
    rows = [row for row in rows if "tokens" in row]
    names = {
        f"train/{metric}/{hook}/{name}"
        for metric in ("fvu", "l0", "dead", "density")
        for hook in HOOKS
        for name in ("topk", "abstopk")
    }
    assert [row["tokens"] for row in rows] == [640, 1280]
    for row in rows:
        assert {name for name in row if name.startswith("train/")} == names
    assert steps["*"] == "tokens"
    table = pd.read_csv(out / "training.csv")
    for name in names:
        if "density" in name:
            assert rows[-1][name]["_type"] == "histogram"
            assert sum(rows[-1][name]["values"]) == 64
        else:
            assert [row[name] for row in rows] == pytest.approx(table[name].tolist(), rel=1e-5)

    evaluation = ["evaluation.tokens=512", "evaluation.splice_tokens=256", "evaluation.draws=20"]
    main(["evaluate", *common, "baselines=pca", "baselines.fit_tokens=1024", *evaluation])
    assert wandb.run is None
    (second,) = set((out / "wandb").glob("offline-run-*/*.wandb")) - {file}
    rows, steps = logged(second)
    (row,) = [row for row in rows if "tokens" in row]
    assert row["tokens"] == 1280
    assert steps["*"] == "tokens"
    table = pd.read_csv(out / "evaluation.csv").query("position0 == 'excluded' and value == value")
    wanted = {f"eval/{r.metric}/{r.site}/{r.dictionary}": r.value for r in table.itertuples()}
    assert {f"eval/{metric}/{HOOKS[0]}/topk" for metric in ("fvu", "l0", "dce", "kl", "bits", "dead")} <= set(wanted)
    assert {name: value for name, value in row.items() if name.startswith("eval/")} == pytest.approx(wanted, rel=1e-5)
