"""Reading what `Dictionary.save` wrote, with a ValueError that names the folder for everything else."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from rayscope.dictionaries.base import FORMAT, KINDS, Dictionary

LARGEST = 64 * 2**20  # bytes of a config.json; the longest, with a provenance of 50,000 token ids, have less than one
SIZES = ("width", "latents", "vocabulary")  # arguments that say how much a constructor allocates


def load(folder: str | Path) -> Dictionary:
    """The dictionary that `save` wrote there, in evaluation mode, with its `provenance`.

    Raises ValueError for a folder that is no dictionary or of a newer format, and for weights that do not match their
    hash or the arguments in config.json, or are not finite. Nothing is allocated that the weights do not fill.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        weights = (folder / "weights.safetensors").read_bytes()
    except OSError as error:
        raise ValueError(f"{folder} is not a saved dictionary ({error})") from None
    if hashlib.sha256(weights).hexdigest() != config["sha256"]:
        raise ValueError(f"{folder}: weights.safetensors is not the file that config.json was written for")
    try:
        tensors = load_tensors(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: weights.safetensors cannot be read ({error})") from None
    del weights
    check_sizes(folder, config["arguments"], tensors)
    try:
        dictionary = KINDS[config["kind"]](**config["arguments"])
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"{folder}: config.json has other arguments than {config['kind']} takes ({error})") from None
    check_tensors(folder, dictionary.weights(), tensors)
    dictionary.load_weights(tensors)
    dictionary.provenance = config["provenance"]
    return dictionary.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with a format and kind of this version, arguments, sha256 and provenance of the right types."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes long")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # a JSONDecodeError and a UnicodeDecodeError are ValueErrors
        raise ValueError(f"{folder} is not a saved dictionary (config.json: {error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder} is not a saved dictionary (config.json holds a {type(config).__name__})")
    kind = config.get("kind")
    if config.get("format") != FORMAT or not isinstance(kind, str) or kind not in KINDS:
        kinds = ", ".join(sorted(KINDS))
        raise ValueError(
            f"{folder}: format {config.get('format')!r:.60} of kind {kind!r:.60}; "
            f"this version reads format {FORMAT} of {kinds}, and of your own classes once their module is imported"
        )
    for key, kept in (("arguments", dict), ("sha256", str), ("provenance", dict)):
        if not isinstance(config.get(key), kept):
            what = f"has {key}={config[key]!r:.60}" if key in config else f"has no {key}"
            raise ValueError(f"{folder} is not a saved dictionary (config.json {what})")
    return config


def check_sizes(folder: Path, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raises ValueError for a size in `arguments` that is no dimension of any tensor, before anything is made of it."""
    dimensions = {size for tensor in tensors.values() for size in tensor.shape}
    for name in SIZES:
        if name in arguments and not (isinstance(arguments[name], int) and arguments[name] in dimensions):
            raise ValueError(f"{folder}: config.json says {name}={arguments[name]!r:.60}, the weights have other sizes")
    product = math.prod(arguments.get(name, 1) for name in ("width", "latents"))
    if product > 4 * sum(tensor.numel() for tensor in tensors.values()):  # tied rows are saved once, not twice
        raise ValueError(f"{folder}: weights.safetensors is smaller than the dictionary in config.json")


def check_tensors(folder: Path, wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Raises ValueError for a tensor too many or too few, of another shape or type, or with NaN or infinity in it."""
    for name in wanted.keys() | given.keys():
        if name not in given or name not in wanted:
            what = "lacks" if name in wanted else "has an unknown"
            raise ValueError(f"{folder}: weights.safetensors {what} tensor {name!r:.60}")
        shape, own = tuple(given[name].shape), tuple(wanted[name].shape)
        if shape != own:
            raise ValueError(f"{folder}: {name} has shape {shape}, by config.json it has {own}")
        if given[name].is_floating_point() != wanted[name].is_floating_point() or given[name].is_complex():
            raise ValueError(f"{folder}: {name} holds {given[name].dtype}, not {wanted[name].dtype}")
        if not torch.isfinite(given[name]).all():
            raise ValueError(
                f"{folder}: {name} holds NaN or infinity: its training diverged, so there is nothing to measure"
            )


def find(folder: str | Path) -> dict[str, Path]:
    """{path below the folder: folder} of the saved dictionaries in a tree, hidden folders left out; it may be one."""
    folder = Path(folder)
    complete = [path.parent for path in folder.rglob("config.json") if (path.parent / "weights.safetensors").is_file()]
    found = sorted(p for p in complete if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not found:
        raise ValueError(
            f"dictionaries.folder={folder}: no saved dictionary (config.json alongside weights.safetensors) there"
        )
    return {str(path.relative_to(folder)): path for path in found}


def fingerprint(folder: str | Path) -> str:
    """sha256 over the saved dictionaries of a tree: names and config.json, which holds the sha256 of the weights."""
    digest = hashlib.sha256()
    for name, place in find(folder).items():
        digest.update(f"{name}\0".encode() + hashlib.sha256((place / "config.json").read_bytes()).digest())
    return digest.hexdigest()
