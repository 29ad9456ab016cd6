"""Checkpoints: every byte is checked, the one before is kept, and what is not this run's own is one line."""

import errno
import hashlib
import io
import math
import os
import pickle
import shutil
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayscope.dictionaries import TopK
from rayscope.files import PARTIAL, whole_file
from rayscope.stopping import Stopped
from rayscope.training import checkpoint as module
from rayscope.training.checkpoint import MARK, Checkpoint, digest, identity

RUN = {"stage": "dictionaries", "dictionaries": {"topk": {"k": 2}}}


def state(step: int) -> dict:
    return {"global_step": step, "weights": torch.arange(6.0) + step, "name": "x"}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def sealed(content: bytes) -> bytes:
    """With the digest that makes it look like one of ours."""
    return content + MARK + hashlib.sha256(content).hexdigest().encode()


def saved(value: object) -> bytes:
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.fixture
def two(tmp_path) -> Checkpoint:
    """After two saves."""
    kept = Checkpoint(tmp_path, RUN)
    kept.save(state(1))
    kept.save(state(2))
    return kept


def test_the_newest_is_read_and_the_one_before_is_kept(two):
    assert same(two.load(), state(2))
    assert {path.name for path in two.path.parent.iterdir()} == {"checkpoint.ckpt", "checkpoint-before.ckpt"}
    two.path.unlink()  # a kill between the two renames
    assert two.exists()
    assert same(two.load(), state(1))
    two.save(state(3))
    assert same(two.load(), state(3))
    module.remove_checkpoints(two.path.parent)
    assert list(two.path.parent.iterdir()) == []
    assert not two.exists()


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_damage_is_refused_or_recovered_from(data, tmp_path_factory):
    """Cut anywhere, or with bits flipped, alone or with the one before it: never read as if it were whole."""
    kept = Checkpoint(tmp_path_factory.mktemp("damage"), RUN)
    kept.save(state(1))
    if both := data.draw(st.booleans()):
        kept.save(state(2))
    content = bytearray(kept.path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for bit in data.draw(st.sets(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=3)):
            content[bit // 8] ^= 1 << bit % 8
    kept.path.write_bytes(content)
    if both:
        assert same(kept.load(), state(1))
        assert same(Checkpoint(kept.path.parent, RUN).load(), state(1))  # and again
    else:
        with pytest.raises(ValueError, match=r"checkpoint\.ckpt is damaged \(.+\); remove it to begin again$"):
            kept.load()


def test_every_truncation_is_seen(tmp_path):
    kept = Checkpoint(tmp_path, RUN)
    kept.save(state(1))
    with kept.path.open("r+b") as file:
        assert module.damage(file) is None
        for size in reversed(range(kept.path.stat().st_size)):
            file.truncate(size)
            assert module.damage(file) is not None


def test_going_on_from_the_one_before_is_said(two, capsys):
    two.path.write_bytes(two.path.read_bytes()[:-1])
    two.load()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{two.path} is damaged (")
    assert line.endswith("going on from the checkpoint before it")
    two.save(state(4))
    two.path.write_bytes(b"")
    assert same(two.load(), state(1))  # the damaged one did not take the whole one's place


def test_both_damaged(two):
    two.path.write_bytes(b"")
    two.before.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt is damaged \(it is empty\), and .*before\.ckpt is damaged"):
        two.load()


class Code:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    "content",
    [
        sealed(pickle.dumps(Code())),
        sealed(saved(Code())),
        sealed(saved({"run": RUN, "state": Code()})),
        sealed(saved({"state_dict": {}, "pytorch-lightning_version": "2.6"})),
        sealed(saved([1, 2])),
        sealed(b"text"),
        sealed(b""),
        saved({"run": RUN, "state": state(1)}),
        b"text",
        os.urandom(2000),
    ],
    ids=[
        "pickle",
        "code",
        "code within",
        "other keys",
        "a list",
        "sealed text",
        "nothing",
        "no digest",
        "text",
        "noise",
    ],
)
def test_what_is_no_checkpoint_is_one_line_and_nothing_of_it_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt is damaged \([^\n]+\); remove it to begin again$"):
        Checkpoint(tmp_path, RUN).load()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({**RUN, "stage": "kl"}, "stage: kl -> dictionaries"),
        ({**RUN, "dictionaries": {"topk": {"k": 3}}}, "dictionaries.topk.k: 3 -> 2"),
        ({**RUN, "dictionaries": {"abstopk": {"k": 2}}}, "dictionaries.abstopk.k: 2 -> None"),
    ],
)
def test_of_another_run(tmp_path, other, said):
    Checkpoint(tmp_path, other).save(state(1))
    with pytest.raises(
        ValueError, match=r"checkpoint\.ckpt is of another run \(.*\); remove it to begin again"
    ) as error:
        Checkpoint(tmp_path, RUN).load()
    assert said in str(error.value)
    assert (tmp_path / "checkpoint.ckpt").is_file()


def test_identity_sees_kinds_arguments_and_shapes(tmp_path):
    one, wide, other = TopK(8, 16, 2), TopK(8, 32, 2), TopK(8, 16, 2, seed=1)
    assert identity({"a": one}) == identity({"a": TopK(8, 16, 2)})
    assert identity({"a": one}) != identity({"a": wide})
    assert identity({"a": one}) != identity({"a": other})
    assert digest([one.W_dec_LD]) == digest([TopK(8, 16, 2).W_dec_LD]) != digest([other.W_dec_LD])
    run = identity({"a": one}, lr=math.inf)
    Checkpoint(tmp_path, run).save({})
    assert Checkpoint(tmp_path, identity({"a": one}, lr=math.inf)).load() == {}


class Full:
    """A file on a disk with room for some bytes."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room
        self.flush, self.fileno = file.flush, file.fileno

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 100, 1000])
def test_a_full_disk_is_an_oserror_with_the_path_and_the_newest_stays(two, monkeypatch, room):
    """torch makes a RuntimeError of what its file raises."""

    @contextmanager
    def full(path):
        with whole_file(path) as file:
            yield Full(file, room)

    with monkeypatch.context() as patch:
        patch.setattr(module, "whole_file", full)
        with pytest.raises(OSError, match="No space left") as error:
            two.save(state(3))
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(two.path)
    assert same(two.load(), state(2))
    assert not any(path.name.endswith(PARTIAL) for path in two.path.parent.iterdir())


def test_a_second_stop_while_one_is_written_leaves_the_newest(two, monkeypatch):
    class Stops(Full):
        def write(self, data):
            raise Stopped(15)

    @contextmanager
    def stops(path):
        with whole_file(path) as file:
            yield Stops(file, 0)

    with monkeypatch.context() as patch:
        patch.setattr(module, "whole_file", stops)
        with pytest.raises(Stopped):
            two.save(state(3))
    assert same(two.load(), state(2))


def test_tensors_are_written_one_by_one_with_no_copy_in_memory(tmp_path):
    """A state of 64 MB, of which none is ever in Python's own memory."""
    tensors = {f"w{n}": torch.zeros(2**22) for n in range(4)}
    tracemalloc.start()
    try:
        Checkpoint(tmp_path, RUN).save(tensors)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_kill_at_any_file_operation_of_a_save_leaves_one_to_go_on_from(two, tmp_path_factory, monkeypatch):
    """The folder as it is before and after each operation, as a kill would leave it there."""
    folder, left = two.path.parent, tmp_path_factory.mktemp("left")

    def watched(owner, name):
        inner = getattr(owner, name)

        def call(*args, **kwargs):
            shutil.copytree(folder, left / f"{len(list(left.iterdir()))}")
            result = inner(*args, **kwargs)
            shutil.copytree(folder, left / f"{len(list(left.iterdir()))}")
            return result

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((Path, "unlink"), (Path, "replace"), (os, "fsync"), (module.HashedFile, "write")):
        watched(owner, name)
    two.save(state(3))
    monkeypatch.undo()
    assert len(list(left.iterdir())) > 40
    found = []
    for place in sorted(left.iterdir(), key=lambda path: int(path.name)):
        kept = Checkpoint(place, RUN)
        found.append(kept.load()["global_step"])
        assert same(kept.load(), state(found[-1]))
        kept.save(state(4))
        assert same(kept.load(), state(4))
    assert found == sorted(found)
    assert set(found) == {2, 3}
