"""The groups of conf/, such as `dictionaries`, their choices, and what a choice's file sets."""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def groups() -> dict[str, list[str]]:
    """{group of conf/: its choices}."""
    root = files("rayscope.conf")
    return {
        folder.name: sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        for folder in root.iterdir()
        if folder.is_dir() and folder.name != "__pycache__"
    }


@cache
def of_choice(group: str, choice: str) -> frozenset[str]:
    """Every "group.a" and "group.a.b" of a choice's own file, and of the file of another group that it stands for."""
    config = OmegaConf.create((files("rayscope.conf") / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    if not isinstance(config, DictConfig):
        return frozenset()
    names = set(names_of(config, f"{group}."))
    for entry in config.get("defaults", []):
        for key, stands_for in entry.items() if isinstance(entry, DictConfig) else ():
            other = str(key).removesuffix("@_here_").removeprefix("/")
            if key == f"/{other}@_here_":
                names |= {group + name.removeprefix(other) for name in of_choice(other, stands_for)}
    return frozenset(names)


def names_of(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every "a" and "a.b" of the configuration."""
    for name in list(config):
        yield f"{prefix}{name}"
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            yield from names_of(node, f"{prefix}{name}.")
