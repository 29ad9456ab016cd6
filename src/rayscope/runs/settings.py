"""What measures or tunes dictionaries keeps the settings of the run that trained them,
unless the command line says otherwise.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from rayscope.console import say
from rayscope.files import real
from rayscope.records import Records

if TYPE_CHECKING:
    from rayscope.dictionaries import Dictionary
    from rayscope.streams.source import Source

SETTINGS = ("model", "text", "sites", "precision", "stream", "seed", "latents")
COMPARED = (
    "model",
    "text",
    "precision",
    "stream",
    "seed",
)  # latents are the baselines' here, sites the dictionaries' own
CALLED = {  # all that a config.yaml, which may be anybody's, may call; by whole names, for modules hold other modules
    "model": ("rayscope.model.load",),
    "text": ("rayscope.text.Docs", "rayscope.text.Files", "rayscope.text.Hub", "rayscope.text.Prose"),
}


def with_run_settings(command: str, config: DictConfig, given: Iterable[str]) -> DictConfig:
    """The configuration with the settings of the run whose dictionaries the command works on, except those given.

    given: the overrides of the command line. A group that is chosen there (text=docs) is given whole; a model's context
    only by its own name. What differs from the run is said in one line. Raises ValueError for a run whose config.yaml
    cannot be read, and for sites other than the run's, since every dictionary says its own.
    """
    folder = dictionaries_folder(command, config)
    if folder is None:
        return config
    keys = {override.lstrip("+~").partition("=")[0].partition("@")[0] for override in given}
    plain: Any = OmegaConf.to_container(config, resolve=True)
    own = {key: value for key, value in run_settings(folder).items() if key in plain}
    if any(key.partition(".")[0] == "sites" for key in keys) and plain["sites"] != own.get("sites"):
        raise ValueError(f"sites: every dictionary of {folder} says its own; leave sites out")
    config = config.copy()
    with open_dict(config):
        for key, value in own.items():
            config[key] = merged(key, value, plain[key], keys)
    changed = differences(folder, config)
    if changed:
        was, here = (", ".join(f"{key}={pair[i]}" for key, pair in changed.items()) for i in (0, 1))
        say(f"{folder}: trained with {was}; {'tuned' if command == 'train' else 'measured'} with {here}, as given")
    return config


def dictionaries_folder(command: str, config: Mapping[str, Any] | DictConfig) -> Path | None:
    """Where the saved dictionaries lie that the command works on; None for a command that makes its own."""
    if command in ("evaluate", "features"):
        return measured_folder(config)
    tuned = command == "train" and config.get("stage") == "kl" and config["finetuning"]["folder"]
    return Path(tuned) if tuned else None


def measured_folder(config: Mapping[str, Any] | DictConfig) -> Path:
    """dictionaries.folder, or the run's own."""
    return Path(config.get("dictionaries", {}).get("folder") or Path(config["out"]) / "dictionaries")


def merged(key: str, own: Any, composed: Any, keys: set[str]) -> Any:
    if not isinstance(own, dict) or (key in keys and key != "model"):
        return composed if key in keys else own
    given = {name: value for name, value in composed.items() if f"{key}.{name}" in keys}
    if foreign := [name for name in given if name not in own]:
        chosen, was = kind_of(composed), kind_of(own)
        raise ValueError(
            f"{key}.{foreign[0]} is an option of {key}={chosen}, and the run that trained read {key}={was}; "
            f"choose {key}={chosen} as well"
        )
    if key in keys:  # another model says nothing of the context
        given = {name: value for name, value in composed.items() if name != "context"} | given
    return own | given


def differences(folder: Path, config: DictConfig) -> dict[str, tuple[str, str]]:
    """{option: (in the run that trained the folder's dictionaries, here)}, of those that decide what is measured."""
    own, found = run_settings(folder), dict[str, tuple[str, str]]()
    here: Any = OmegaConf.to_container(config, resolve=True)
    for key in COMPARED if own else ():
        was, now = (value if isinstance(value, dict) else {"": value} for value in (own.get(key), here.get(key)))
        if was.get("_target_") != now.get("_target_"):  # two kinds of text have no options to compare
            found[key] = kind_of(was), kind_of(now)
            continue
        for name in {**was, **now}:
            if was.get(name) != now.get(name):
                found[f"{key}.{name}".removesuffix(".")] = (shown(was.get(name)), shown(now.get(name)))
    return found


def shown(value: Any) -> str:
    return "null" if value is None else str(value)


def kind_of(settings: dict[str, Any]) -> str:
    return str(settings.get("_target_")).rpartition(".")[2].lower()


def run_settings(folder: Path) -> dict[str, Any]:
    """SETTINGS of the run in whose folder, at any depth, these dictionaries lie; empty if they lie in none.

    Raises ValueError if its config.yaml cannot be read, or would call anything but rayscope's own models and texts.
    """
    bases = (Path(os.path.abspath(folder)), real(folder))  # noqa: PTH100 (takes `..` out: `run/../other` is not in run)
    for place in dict.fromkeys(path for base in bases for path in (base, *base.parents)):
        path = place / "config.yaml"
        ours = (place / "environment.json").is_file()
        if not path.is_file():
            continue
        try:
            config = Records(place).read()[0] if ours else yaml.safe_load(path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            if ours:
                raise ValueError(f"{str(error).rpartition(';')[0]}{HELP}") from None
            continue
        settings = {key: config[key] for key in SETTINGS if key in config} if isinstance(config, dict) else {}
        if ours and wrong(settings):
            raise ValueError(f"{path}: {wrong(settings)}{HELP}")
        if not wrong(settings):
            return settings
    return {}


HELP = "; restore it, or move the dictionaries to a folder of their own and give model=, text= and the like"


def wrong(settings: dict[str, Any]) -> str:
    """What keeps these from being the settings of a run; empty if nothing does."""
    for key, kind in (("model", dict), ("text", dict), ("stream", dict), ("seed", int), ("precision", str)):
        if not isinstance(settings.get(key), kind):
            return f"{key} is {settings.get(key)!r}, not what a run writes there"
    for key, names in CALLED.items():
        target = settings[key].get("_target_")
        if target not in names:
            return f"{key}._target_ is {target!r}, not one of rayscope's"
    if not isinstance(settings["model"].get("context"), int | None):
        return f"model.context is {settings['model']['context']!r}, not a whole number"
    if any(not isinstance(settings["stream"].get(key), int) for key in ("batch_size", "round_tokens")):
        return f"stream is {settings['stream']!r}, not whole numbers"
    return ""


def say_otherwise_trained(
    dictionaries: Mapping[Any, Mapping[str, "Dictionary"]], source: "Source", said: Iterable[str] = ()
) -> None:
    """One line on the dictionaries whose provenance names another context, text or precision than the source has.

    said: options whose difference has been said already. What provenance does not name is not mentioned.
    """
    said, found = set(said), {}
    for named in dictionaries.values():
        for name, dictionary in named.items():
            if what := unlike(dictionary.provenance, source, said):
                found.setdefault(what, {})[name] = None
    if found:
        say("; ".join(f"{listed(list(names))}: trained {what}" for what, names in found.items()))


def unlike(provenance: dict[str, Any], source: "Source", said: set[str]) -> str:
    text = provenance["text"] if isinstance(provenance.get("text"), dict) else {}
    context, sha256, precision = text.get("context"), text.get("sha256"), provenance.get("precision")
    found = []
    if any(option.partition(".")[0] == "text" or option == "model.context" for option in said):
        pass  # the context is part of the text's sha256
    elif context is not None and context != source.text.context:
        found.append(f"at model.context={context}, here {source.text.context}")
    elif sha256 is not None and sha256 != source.text.fingerprint:
        found.append(f"on other text (sha256 {str(sha256)[:8]}, here {source.text.fingerprint[:8]})")
    if precision is not None and precision != source.precision and "precision" not in said:
        found.append(f"at precision={precision}, here {source.precision}")
    return ", ".join(found)


def listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
