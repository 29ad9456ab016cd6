"""Checkpoint: the state of a training that a kill, a full disk or a flipped bit cannot turn into another one."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rayscope.console import say
from rayscope.dictionaries import Learned
from rayscope.files import whole_file
from rayscope.records import differences

CHECKPOINT, BEFORE = "checkpoint.ckpt", "checkpoint-before.ckpt"
MARK = b"\nrayscope checkpoint sha256 "  # the file ends in this and the digest, in hex, of all that is before it
CHUNK = 2**20


class Checkpoint:
    """`checkpoint.ckpt` in a run's folder, and the one before it, from which a run goes on if the newest is damaged.

    run: what a checkpoint must have been saved with to be this run's own, as plain values.
    """

    def __init__(self, folder: Path, run: dict[str, Any]):
        self.path, self.before = folder / CHECKPOINT, folder / BEFORE
        self.run = json.loads(json.dumps(run))

    def exists(self) -> bool:
        return self.path.exists() or self.before.exists()

    def save(self, state: dict[str, Any]) -> None:
        """Tensors go to the file one by one, with no copy in memory. The disk holds two checkpoints at most.

        Raises OSError with the path if the disk is full; the newest checkpoint so far is then still there.
        """
        if self.path.exists():
            self.before.unlink(missing_ok=True)
        with whole_file(self.path) as file:
            hashed = HashedFile(file)
            try:
                torch.save({"run": self.run, "state": state}, hashed)  # type: ignore[arg-type]
            except RuntimeError:
                raise hashed.failure or RuntimeError(f"{self.path} cannot be written") from None
            file.write(MARK + hashed.sha256.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
            if self.path.exists():
                self.path.replace(self.before)

    def load(self) -> dict[str, Any]:
        """The newest state that is whole, on the CPU; nothing in the file is executed.

        Raises ValueError if there is none, and for a state that is of another run.
        """
        try:
            return read(self.path, self.run)
        except Damaged as damaged:
            if not self.before.exists():
                raise ValueError(f"{damaged}; remove it to begin again") from None
            try:
                state = read(self.before, self.run)
            except Damaged as both:
                raise ValueError(f"{damaged}, and {both}; remove both to begin again") from None
            say(f"{damaged}; going on from the checkpoint before it")
        except FileNotFoundError:  # a kill between the two renames of `save`
            try:
                state = read(self.before, self.run)
            except Damaged as damaged:
                raise ValueError(f"{damaged}; remove it to begin again") from None
        self.before.replace(self.path)
        return state


def remove_checkpoints(folder: Path) -> None:
    """Once the run no longer needs them."""
    for name in (CHECKPOINT, BEFORE):
        (folder / name).unlink(missing_ok=True)


def identity(dictionaries: dict[str, Learned], **more: Any) -> dict[str, Any]:
    """What a checkpoint of these dictionaries is compared by: kinds, arguments and shapes of tensors."""
    return {
        **more,
        "dictionaries": {
            name: {
                "kind": dictionary.kind,
                **dictionary.arguments(),
                "shapes": {key: list(tensor.shape) for key, tensor in dictionary.state_dict().items()},
            }
            for name, dictionary in dictionaries.items()
        },
    }


def named_by_content(about: dict[str, Any]) -> dict[str, Any]:
    """The provenance without the names of what has a hash."""
    return {
        key: {k: v for k, v in value.items() if k != "name"} if isinstance(value, dict) and "sha256" in value else value
        for key, value in about.items()
    }


def digest(tensors: Sequence[Tensor]) -> str:
    """sha256 of the tensors' values."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


class Damaged(ValueError):
    """The file is not, byte for byte, what `save` wrote."""


def read(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Raises Damaged, and ValueError for what was saved with another `run`; both name the file."""
    with path.open("rb") as file:
        reason = damage(file)
        if reason is not None:
            raise Damaged(f"{path} is damaged ({reason})")
        file.seek(0)
        try:
            with warnings.catch_warnings(action="ignore"):  # torch's advice about what it did not write
                saved = torch.load(file, weights_only=True, map_location="cpu")
            difference = differences(saved["run"], run)
            state = saved["state"]
        except (RuntimeError, UnpicklingError, EOFError, LookupError, TypeError, AttributeError) as error:
            if "allocate memory" in str(error):
                raise
            raise Damaged(f"{path} is damaged (no checkpoint of rayscope: {type(error).__name__})") from None
    if difference:
        raise ValueError(f"{path} is of another run ({difference}); remove it to begin again")
    return state


def damage(file: BinaryIO) -> str | None:
    """Why the file is not what `save` wrote, or None: the digest at its end covers every byte before."""
    size, tail = os.fstat(file.fileno()).st_size, len(MARK) + 64
    if size == 0:
        return "it is empty"
    if size < tail:
        return f"it is cut short at {size} bytes"
    file.seek(size - tail)
    mark, expected = (end := file.read(tail))[: len(MARK)], end[len(MARK) :]
    if mark != MARK:
        return "it does not end in a checksum: cut short, or not written by this version"
    file.seek(0)
    sha256, left = hashlib.sha256(), size - tail
    while left and (chunk := file.read(min(CHUNK, left))):
        sha256.update(chunk)
        left -= len(chunk)
    return None if sha256.hexdigest().encode() == expected else "its checksum does not match"


class HashedFile:
    """What `torch.save` writes into. Keeps the digest, and the error of a write, of which torch tells nothing."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()
        self.failure: BaseException | None = None

    def write(self, data: memoryview) -> int:
        try:
            self.file.write(data)
        except BaseException as error:
            self.failure = error
            raise
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()
