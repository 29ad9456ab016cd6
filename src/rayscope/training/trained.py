"""trained.json: what says that training is done, which dictionaries it saved, and whether they are still there."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rayscope.console import say
from rayscope.dictionaries import Learned
from rayscope.files import write_whole
from rayscope.model.sites import Site
from rayscope.records import Records, read
from rayscope.training.checkpoint import BEFORE, CHECKPOINT, remove_checkpoints
from rayscope.training.divergence import Divergence, without

TRAINED = "trained.json"
DICTIONARIES = "dictionaries"
DIVERGED = {field.name for field in fields(Divergence)}
PARTS = ("config.json", "weights.safetensors")  # of a saved dictionary


def save_trained(
    dictionaries: dict[Site, dict[str, Learned]],
    diverged: Sequence[Divergence],
    folder: Path,
    provenance: Callable[[Site, Learned], dict[str, Any]],
    *,
    tokens: int,
    what: str,
) -> None:
    """Saves those that have not diverged, then says in trained.json what there is. Raises ValueError if some have."""
    sound = without(dictionaries, diverged)
    for site, named in sound.items():
        for name, dictionary in named.items():
            dictionary.save(folder / DICTIONARIES / site.key / name, provenance(site, dictionary))
    saved = [f"{site.key}/{name}" for site, named in sound.items() for name in named]
    record = {"tokens": tokens, "dictionaries": saved, "diverged": [asdict(found) for found in diverged]}
    record["sha256"] = {name: digest(folder / DICTIONARIES / name) for name in saved}
    write_whole(folder / TRAINED, json.dumps(record, indent=1))
    remove_checkpoints(folder)
    say(f"{what}: {len(saved)} dictionaries in {folder / DICTIONARIES}")
    if diverged:
        raise ValueError(diverged_line(diverged, len(saved), folder))


def diverged_line(diverged: Sequence[Divergence], others: int, folder: Path) -> str:
    rest = f"the rest ({others}) is in {folder / DICTIONARIES}" if others else "there is no other"
    return (
        f"diverged, so not saved: {'; '.join(map(str, diverged))}; {rest}. "
        f"Lower the rate (dictionaries.NAME.lr, with stage=kl finetuning.lr) and give another out=, or overwrite=true"
    )


def is_trained(folder: Path) -> bool:
    """Whether training is done in the folder; what a kill left of its checkpoints is removed then.

    If a dictionary is no longer there, training goes on from the checkpoint. Raises ValueError if there is none, and if
    some dictionaries diverged.
    """
    if not (folder / TRAINED).is_file():
        return False
    try:
        check(folder)
    except ValueError as error:
        why = str(error).partition(";")[0]
        if not any((folder / name).is_file() for name in (CHECKPOINT, BEFORE)):
            raise ValueError(f"{why}; put it back, or train again, with overwrite=true or another out=") from None
        say(f"{why}; training goes on from its checkpoint")
        return False
    remove_checkpoints(folder)
    record = json.loads((folder / TRAINED).read_text())
    if record.get("diverged"):
        diverged = [Divergence(**found) for found in record["diverged"]]
        raise ValueError(diverged_line(diverged, len(record["dictionaries"]), folder))
    return True


def check(folder: Path) -> None:
    """Raises ValueError, with the path, if trained.json is damaged or lists a dictionary that is not there whole."""
    path = folder / TRAINED
    found = read(path, json.loads, {"tokens": int})
    names = found.get("dictionaries")
    if names is None:
        raise ValueError(
            f"{folder / 'dictionaries'} holds no dictionary, though {path.name} says that they are trained"
        )
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is not what rayscope wrote (dictionaries is no list of names)")
    diverged = found.get("diverged", [])
    if not isinstance(diverged, list) or not all(isinstance(one, dict) and set(one) == DIVERGED for one in diverged):
        raise ValueError(f"{path} is not what rayscope wrote (diverged is no list of dictionaries that did)")
    hashes = found.get("sha256")
    if not isinstance(hashes, dict) or set(hashes) != set(names):
        raise ValueError(f"{path} is not what rayscope wrote (sha256 is not one for each dictionary)")
    for name in names:
        for part in PARTS:
            file = folder / DICTIONARIES / name / part
            if not file.is_file() or not file.stat().st_size:
                state = "empty" if file.is_file() else "missing"
                raise ValueError(f"{file} is {state}, though {path.name} says that it is trained")
        place = folder / DICTIONARIES / name
        if digest(place) != hashes[name]:
            raise ValueError(f"{place / PARTS[0]} is not what training wrote there")


def digest(dictionary: Path) -> str:
    """sha256 of its config.json, which holds the arguments, and the sha256 of the weights."""
    return hashlib.sha256((dictionary / PARTS[0]).read_bytes()).hexdigest()


def check_run_of(dictionaries: Path) -> None:
    """Raises ValueError if this is the folder of a run's dictionaries,
    and its training is not finished or one is not there.
    """
    place = dictionaries.absolute()
    folder = place.parent if place.name == DICTIONARIES else place
    help = "or copy those to be read to another folder, and give it"
    if (folder / TRAINED).is_file():
        try:
            check(folder)
        except ValueError as error:
            raise ValueError(f"{error}; put it back, {help}") from None
    elif Records(folder).are_ours():
        raise ValueError(f"{folder}: its training is not finished, so dictionaries may be missing; finish it, {help}")
