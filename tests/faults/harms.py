"""What is done to a run, a model or a text before a command meets it."""

import json
import os
import shutil
from collections.abc import Callable

from harness import Place

Harm = Callable[[Place], object]


def nothing(place: Place) -> None:
    pass


def cut(name: str, share: float = 0.5) -> Harm:
    def harm(place: Place) -> None:
        path = place.here / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return harm


def flipped(name: str) -> Harm:
    """One bit in the middle."""

    def harm(place: Place) -> None:
        path = place.here / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)

    return harm


def holds(name: str, content: bytes | str) -> Harm:
    def harm(place: Place) -> None:
        path = place.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return harm


def gone(*names: str) -> Harm:
    def harm(place: Place) -> None:
        for name in names:
            path = place.here / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return harm


def all_of(*harms: Harm) -> Harm:
    return lambda place: [harm(place) for harm in harms]


def edited(name: str, change: Callable[[dict], object]) -> Harm:
    """A JSON file with something else in it."""

    def harm(place: Place) -> None:
        path = place.here / name
        found = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(change(found) or found), encoding="utf-8")

    return harm


class Code:
    """Pickled code that leaves a trace where it is run."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))


def other_weights(place: Place) -> None:
    changed_tensors(
        lambda tensors: {name: tensor + (name == "transformer.wte.weight") for name, tensor in tensors.items()}
    )(place)


def planted_link(place: Place) -> None:
    holds("victim", "mine")(place)
    place.out.mkdir()
    (place.out / ".config.yaml").symlink_to(place.here / "victim")


def foreign_checkpoint(place: Place) -> None:
    """Where lightning looks for one under Slurm."""
    shutil.copy(place.states / "stopped" / "out" / "checkpoint.ckpt", place.here / "hpc_ckpt_1.ckpt")


def more_text(place: Place) -> None:
    with (place.here / "prose.txt").open("a", encoding="utf-8") as file:
        file.write("\n<|endoftext|>\nOne more.")


def changed_tensors(change: Callable[[dict], dict]) -> Harm:
    def harm(place: Place) -> None:
        from safetensors.torch import load_file, save_file

        path = place.here / "model" / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return harm


def renamed_tensors(prefix: str) -> Harm:
    return changed_tensors(lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})


def without_tensor(name: str) -> Harm:
    return changed_tensors(lambda tensors: {n: t for n, t in tensors.items() if n != name})


def tokenizer_state(state: dict) -> Harm:
    return edited("model/tokenizer.json", lambda config: config.update(state))


def hostile_name(folder: str) -> Harm:
    def harm(place: Place) -> None:
        path = place.here / folder
        path.rename(path.with_name("\x1b[31m\u202ex"))

    return harm
