"""trained.json: what says that a training is done, and whether the dictionaries that it lists are still there."""

import json
from dataclasses import fields
from pathlib import Path

from rayscope.divergence import Divergence
from rayscope.records import read

TRAINED = "trained.json"
DIVERGED = {field.name for field in fields(Divergence)}
PARTS = ("config.json", "weights.safetensors")  # of a saved dictionary


def check(folder: Path) -> None:
    """Raises ValueError, with the path, if trained.json is damaged or lists a dictionary that is not there whole."""
    path = folder / TRAINED
    found = read(path, json.loads, {"tokens": int})
    names = found.get("dictionaries")
    if names is None and any((folder / "dictionaries").glob("*/*/config.json")):
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
    for name in names:
        for part in PARTS:
            file = folder / "dictionaries" / name / part
            if not file.is_file() or not file.stat().st_size:
                state = "empty" if file.is_file() else "missing"
                raise ValueError(f"{file} is {state}, though {path.name} says that it is trained")
