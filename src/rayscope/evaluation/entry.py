"""Entry: a dictionary in a comparison, with the facts that tables and figures sort it by."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rayscope.dictionaries import Dictionary, Learned
from rayscope.model.sites import Site

Role = Literal["reference", "control", "baseline", "told", "directions", "rays"]


@dataclass(frozen=True)
class Entry:
    """method: what dictionaries that differ only in site, k and seed have in common, such as one curve of a figure.

    role: reference, a codec without latents, such as the identity; control, directions that know nothing of the data;
    baseline; told, learned with side information; or learned directions or rays. k, seed: None if there is none.
    name: a label for people, unique at its site, from which nothing is read. coder: what finds the dictionary's codes:
    own, the encoder that it was learned or fitted with, or a search over its directions (see `Recoded`). family: what a
    question is asked of, such as PCA in any code; the method if it stands for itself.
    """

    site: Site
    method: str
    role: Role
    k: int | None
    seed: int | None
    dictionary: Dictionary
    name: str
    coder: str = "own"
    family: str = ""

    def __post_init__(self):
        if not self.family:
            object.__setattr__(self, "family", self.method)


def label(method: str, k: int, seed: int | None = None) -> str:
    """The name of a dictionary that the user did not name. seed: if there are several."""
    return f"{method}_k{k}" if seed is None else f"{method}_k{k}_s{seed}"


def role_of(dictionary: Dictionary) -> Role:
    """Of a learned one by its class and arguments; any other is a baseline, unless its provenance says control.

    Raises ValueError if its provenance says something else.
    """
    if not isinstance(dictionary, Learned):
        role = dictionary.provenance.get("role", "baseline")
        if role not in ("baseline", "control"):
            raise ValueError(f"provenance.role={role!r:.60} is neither baseline nor control")
        return role
    if dictionary.decoder != "learned":
        return "control"
    if dictionary.side:
        return "told"
    return "directions" if dictionary.signed else "rays"


def named_entries(dictionaries: Mapping[Site, Mapping[str, Dictionary]]) -> list[Entry]:
    """The entries of dictionaries that the user named: {site: {name: dictionary}}.

    The method of a learned one is its kind, with those of its settings that are not the default and differ among the
    dictionaries of that kind at some site, as in "topk" and "topk decoder=frozen". That of any other is its name.
    """
    varied = varied_settings(dictionaries.values())
    return [
        Entry(
            site,
            learned_method(dictionary, varied) if isinstance(dictionary, Learned) else name,
            role_of(dictionary),
            dictionary.k,
            dictionary.provenance.get("seed"),
            dictionary,
            name,
        )
        for site, named in dictionaries.items()
        for name, dictionary in named.items()
    ]


def settings(dictionary: Dictionary) -> dict[str, Any]:
    """What a dictionary was learned with, other than its k, its seed and what the model sets."""
    training = {key: dictionary.provenance.get(key) for key in ("stage", "tokens")}
    left_out = {*Learned.from_model, *getattr(dictionary, "from_model", ()), "k", "seed"}
    return {key: value for key, value in {**dictionary.arguments(), **training}.items() if key not in left_out}


def varied_settings(sites: Iterable[Mapping[str, Dictionary]]) -> set[tuple[str, str]]:
    """(kind, setting) of which some site's dictionaries have several values."""
    varied = set()
    for named in sites:
        values: dict[tuple[str, str], Any] = {}
        for dictionary in named.values():
            for key, value in settings(dictionary).items():
                if values.setdefault((dictionary.kind, key), value) != value:
                    varied.add((dictionary.kind, key))
    return varied


def learned_method(dictionary: Learned, varied: set[tuple[str, str]]) -> str:
    defaults = {
        name: parameter
        for base in reversed(type(dictionary).__mro__)  # a kind hands on what it does not name
        for name, parameter in inspect.signature(base.__init__).parameters.items()
    }
    words = [dictionary.kind]
    for key, value in settings(dictionary).items():
        default = defaults[key].default if key in defaults else None
        if (dictionary.kind, key) in varied and value != default:
            words.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
    return " ".join(words)


def by_site(entries: Iterable[Entry]) -> dict[Site, dict[str, Dictionary]]:
    """{site: {name: dictionary}}, in order."""
    dictionaries: dict[Site, dict[str, Dictionary]] = {}
    for entry in entries:
        dictionaries.setdefault(entry.site, {})[entry.name] = entry.dictionary
    return dictionaries
