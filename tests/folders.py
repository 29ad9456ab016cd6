"""Made-up runs in a folder, for the tests of what may happen to one."""

import json
from pathlib import Path

from rayscope.runs.run import OUTPUTS, run
from rayscope.training.trained import digest


class Killed(BaseException):
    pass


def config(folder: Path, k: int = 1, overwrite: bool = False, **more) -> dict:
    training = {"log_every": 50, "checkpoint_seconds": 60, "snapshots": 0}
    return {
        "out": str(folder),
        "seed": 0,
        "overwrite": overwrite,
        "k": k,
        "threads": None,
        "training": training,
        **more,
    }


def start(folder: Path, k: int = 1, overwrite: bool = False, command: str = "train", **more):
    return run(command, config(folder, k, overwrite, **more), [command, f"k={k}"])


def work(folder: Path, k: int, command: str = "train") -> None:
    if command != "train":
        for name in OUTPUTS[command]:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"{command} {k}")
        return
    place = folder / "dictionaries" / "site" / "topk"
    place.mkdir(parents=True)
    for name in ("config.json", "weights.safetensors"):
        (place / name).write_text(f"{name} of {k}")
    (folder / "training.csv").write_text(f"{k}\n")
    record = {"tokens": k, "dictionaries": ["site/topk"], "sha256": {"site/topk": digest(place)}}
    (folder / "trained.json").write_text(json.dumps(record))


def make(folder: Path, k: int = 1, overwrite: bool = False, command: str = "train") -> None:
    with start(folder, k, overwrite, command):
        work(folder, k, command)


def die_at_once(folder: Path) -> None:
    raise Killed


def begin_and_die(folder: Path) -> None:
    (folder / "checkpoint.ckpt").write_text("progress")
    raise Killed


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the half-written ones and the lock of the dead, which the next start removes."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def set_aside(folder: Path) -> list[Path]:
    return sorted(folder.parent.glob(f"{folder.name}.old-*"))
