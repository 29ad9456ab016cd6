"""Checks: a composed configuration held against the options, and what it makes against the arguments of its class."""

import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException

from rayscope.cli.options import MADE_LATER, declared, names_under, nearest, read, shown
from rayscope.errors import one_line


def check(command: str, config: DictConfig) -> None:
    """Every value of the configuration becomes what is meant by it. Raises ValueError for the first that is none.

    Values that are written come before those that follow from them (`${latents}`),
    so that the message names the option given.
    """
    if "study" in config and "sizes" in config.study:  # on which size other values depend
        config["size"] = read("size", config.size)
        check_size(config.study.sizes, config.size)
    nodes = sorted(leaves(config), key=lambda node: node[2].count("."))
    for _, _, key in nodes:
        if declared(key) is None and not names_under(key):
            known = [name for _, _, name in nodes if declared(name) is not None]
            raise ValueError(f"no option {key!r}; nearest: {', '.join(nearest(key, known))}")
    for follows in (False, True):
        for parent, name, key in nodes:
            if OmegaConf.is_interpolation(parent, name) is not follows or OmegaConf.is_missing(parent, name):
                continue
            try:
                value = parent[name]
            except InterpolationToMissingValueError:
                continue  # what it refers to is asked for by its own name
            except InterpolationKeyError as error:
                missing = str(error).split("'")[1]
                raise ValueError(f"{key}={shown(raw(parent, name))}: there is no option {missing}") from None
            except OmegaConfBaseException as error:
                why = one_line(str(error).split("\n")[0]).rpartition("resolving interpolation: ")[2].strip('"')
                raise ValueError(f"{key}={shown(raw(parent, name))}: {why}") from None
            given = OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value
            if (command, key, given) == ("sites", "out", None):
                continue  # it writes nothing
            meant = read(key, given)
            if type(meant) is not type(given) or meant != given:
                parent[name] = meant
    for key, name, entry in made_entries(config):
        check_entry(key, name, entry)
    if "study" in config and "run" in config.study:
        given = {**config.study.run, **config.study.sizes[config.size]}
        given.pop("seeds", None)  # of the setting
        check_arguments(f"study.sizes.{config.size}", config.study.run._target_, given, told={"setting"})


def raw(parent: DictConfig, name: str) -> Any:
    """The value as it is written, references and all."""
    node: Any = parent._get_node(name)
    return node._value()


def leaves(config: DictConfig, prefix: str = "") -> Iterator[tuple[DictConfig, str, str]]:
    """(the node it is in, its name there, its key) of every value; a mapping where a value belongs is one too."""
    for name in list(config):
        node, key = config._get_node(name), f"{prefix}{name}"
        if isinstance(node, DictConfig) and declared(key) is None and not (node._is_none() or node._is_missing()):
            yield from leaves(node, f"{key}.")
        else:
            yield config, name, key


def check_size(sizes: DictConfig, size: str) -> None:
    if size not in sizes:
        near = get_close_matches(size, list(sizes), n=1) or list(sizes)
        raise ValueError(f"size={size}: no such size; nearest: {', '.join(near)} (there are {', '.join(sizes)})")


def made_entries(config: DictConfig) -> Iterator[tuple[str, str, Any]]:
    """(key, "dictionary" or "fit", entry) of everything that a class or function named in the configuration makes."""
    for name, entry in (config.get("dictionaries") or {}).items():
        if name != "folder":
            yield f"dictionaries.{name}", "dictionary", entry
    for name, entry in ((config.get("baselines") or {}).get("list") or {}).items():
        if unknown := set(entry) - {"fit", "budgets", "max_k", "family"}:
            raise ValueError(
                f"baselines.list.{name}.{min(unknown)}: no such entry; it has fit, budgets, max_k and family"
            )
        if "fit" not in entry:
            raise ValueError(
                f"baselines.list.{name}: fit is not given, such as fit:{{_target_:my_module.mine,_partial_:true}}"
            )
        yield f"baselines.list.{name}.fit", "fit", entry.fit


def check_entry(key: str, kind: str, entry: Any) -> None:
    if not isinstance(entry, DictConfig) or not entry.get("_target_"):
        raise ValueError(f"{key}: _target_ is not given, such as rayscope.dictionaries.TopK")
    target = locate(key, entry._target_)
    if kind == "dictionary":
        from rayscope.dictionaries import Learned

        if inspect.isclass(target) and not issubclass(target, Learned):
            raise ValueError(
                f"{key}._target_={entry._target_}: not a learned dictionary, such as rayscope.dictionaries.TopK"
            )
    if not entry.get("_partial_"):
        rest = "the site's width is known only later" if kind == "dictionary" else "the site is known only later"
        raise ValueError(f"{key}: _partial_ is not given; add _partial_:true ({rest})")
    told = {"width", "vocabulary"} if kind == "dictionary" else {"fit"}
    check_arguments(key, entry._target_, entry, told)


def locate(key: str, path: str) -> Any:
    """The class or function of that name."""
    try:
        found = resolve_name(path)
    except Exception as error:  # whatever a module of the user's own raises when it is imported
        module = path.rpartition(".")[0]
        try:
            there = [f"{module}.{other}" for other in dir(resolve_name(module)) if other[:1] != "_"]
        except Exception:
            there = []
        near = get_close_matches(path, there, n=2, cutoff=0.7)
        why = f"nearest: {', '.join(near)}" if near else one_line(str(error).strip().split("\n")[-1])
        raise ValueError(f"{key}._target_={path}: Python finds no such name; {why}") from None
    if not callable(found):
        raise ValueError(f"{key}._target_={path}: not a class or a function")
    return found


def check_arguments(key: str, path: str, given: Any, told: set[str]) -> None:
    """That the class or function takes the arguments given, and that with those told later none is missing."""
    taken, needed, open_ended = parameters(locate(key, path))
    for name in (str(name) for name in given if str(name) not in MADE_LATER):
        if name in told or (name not in taken and not open_ended):
            near = get_close_matches(name, sorted(taken - told), n=3) or sorted(taken - told)
            raise ValueError(f"{key}.{name}: no argument of {path}; nearest: {', '.join(near) or 'it takes none'}")
    if missing := needed - told - set(map(str, given)):
        raise ValueError(f"{key}: {', '.join(sorted(missing))} of {path} not given")


def parameters(function: Any) -> tuple[set[str], set[str], bool]:
    """(names, those without a default, whether any other is taken);
    of a class, those its bases take from **kwargs too.
    """
    calls = [c.__init__ for c in function.__mro__ if "__init__" in vars(c)] if inspect.isclass(function) else [function]
    names: set[str] = set()
    needed: set[str] = set()
    for call in calls:
        found = list(inspect.signature(call).parameters.values())
        if inspect.isclass(function):
            found = found[1:]
        named = {p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - names
        names |= named
        needed |= {p.name for p in found if p.name in named and p.default is p.empty}
        if not any(p.kind is p.VAR_KEYWORD for p in found):
            return names, needed, False
    return names, needed, True
