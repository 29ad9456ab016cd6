"""trained.json: what says that a training is done, and whether the dictionaries that it lists are still there."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

from rayscope.records import Records, read
from rayscope.training.divergence import Divergence

TRAINED = "trained.json"
DICTIONARIES = "dictionaries"
DIVERGED = {field.name for field in fields(Divergence)}
PARTS = ("config.json", "weights.safetensors")  # of a saved dictionary


def check(folder: Path) -> None:
    """Raises ValueError, with the path, if trained.json is damaged or lists a dictionary that is not there whole."""
    path = folder / TRAINED
    found = read(path, json.loads, {"tokens": int})
    names = found.get("dictionaries")
    if names is None and any((folder / DICTIONARIES).glob("*/*/config.json")):
        return  # it was written before they were listed
    if names is None:
        raise ValueError(
            f"{folder / 'dictionaries'} holds no dictionary, though {path.name} says that they are trained"
        )
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is not what rayscope wrote (dictionaries is no list of names)")
    diverged = found.get("diverged", [])
    if not isinstance(diverged, list) or not all(isinstance(one, dict) and set(one) == DIVERGED for one in diverged):
        raise ValueError(f"{path} is not what rayscope wrote (diverged is no list of dictionaries that did)")
    hashes = found.get("sha256", {})
    if not isinstance(hashes, dict):
        raise ValueError(f"{path} is not what rayscope wrote (sha256 is no mapping)")
    for name in names:
        for part in PARTS:
            file = folder / DICTIONARIES / name / part
            if not file.is_file() or not file.stat().st_size:
                state = "empty" if file.is_file() else "missing"
                raise ValueError(f"{file} is {state}, though {path.name} says that it is trained")
        place = folder / DICTIONARIES / name
        if name in hashes and digest(place) != hashes[name]:
            raise ValueError(f"{place / PARTS[0]} is not what training wrote there")


def digest(dictionary: Path) -> str:
    """sha256 of its config.json, which holds the arguments, and the sha256 of the weights."""
    return hashlib.sha256((dictionary / PARTS[0]).read_bytes()).hexdigest()


def check_run_of(dictionaries: Path) -> None:
    """Raises ValueError if this is the folder of a run's dictionaries, and its training is not finished or one is not there."""
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
