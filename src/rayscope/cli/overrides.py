"""key=value arguments made ready for hydra: read by the option's type and quoted for its grammar, or refused in one line."""

import re
import shlex
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar_parser import parse as parse_interpolation

from rayscope.cli.options import declared, nearest, read, shown
from rayscope.cli.values import Listed, Optional, Type

PAIRS = {"(": ")", "[": "]", "{": "}"}
SWEEP = re.compile(r"\s*(range|choice|interval|glob|shuffle|sort|tag)\s*\(")  # what a sweeper takes apart


def ready(given: list[str], sweep: bool = False) -> list[str]:
    """The arguments in a form that hydra reads as they are meant. sweep: with -m, where commas separate values.

    Raises ValueError for an argument that is not key=value, a key given twice, an unknown choice of a group, a value that is
    not of the option's type, and several values without -m.
    """
    pairs = [split(text) for text in given]
    check_once(pairs)
    return [one(sign, key, value, sweep) for sign, key, value in pairs]


def split(text: str) -> tuple[str, str, str | None]:
    """`++a.b=c` -> ("++", "a.b", "c"); `~a` -> ("~", "a", None)."""
    sign, key, equals, value = re.fullmatch(r"(\+\+|\+|~)?([^=]*)(=?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if not key.strip() or not (equals or sign == "~"):
        raise ValueError(f"{shown(text)!r} is not key=value")
    return sign or "", key.strip(), value if equals else None


def check_once(pairs: list[tuple[str, str, str | None]]) -> None:
    """Raises ValueError for a key that is given twice, such as by a shell that expands {2,4}, or given and taken out."""
    by_key: dict[str, list[str]] = {}
    removed = [key for sign, key, _ in pairs if sign == "~"]
    for sign, key, value in pairs:
        for taken in removed if sign != "~" else ():
            if f"{key}.".startswith(f"{taken}."):
                raise ValueError(f"~{taken} takes out what {key}={shown(value)} sets; give one of them")
        if sign != "~":
            by_key.setdefault(key, []).append(value or "")
    for key, values in by_key.items():
        if len(values) > 1:
            advice = "give it once"
            start = common_start(values)
            end = common_start([value[len(start) :][::-1] for value in values])[::-1]
            between = [value[len(start) : len(value) - len(end)] for value in values]
            if (start + end).strip("[]") and all(between):
                whole = shlex.quote(f"{key}={start}{{{','.join(between)}}}{end}")
                advice += f"; if the shell made these of one argument with braces, quote it: {shown(whole, 200)}"
            raise ValueError(f"{key} is given {len(values)} times ({', '.join(map(shown, values))}); {advice}")


def common_start(texts: list[str]) -> str:
    same = [len(set(characters)) == 1 for characters in zip(*texts, strict=False)]
    return texts[0][: same.index(False) if False in same else len(same)]


def one(sign: str, key: str, value: str | None, sweep: bool) -> str:
    start = f"{sign}{key}"
    if value is None:
        return start
    parts = at_commas(value)
    of = declared(key)
    if SWEEP.match(value) and (sweep or of is None or not of.written):
        if not sweep:
            raise ValueError(f"{key}={shown(value)}: give -m to run several")
        return f"{start}={value}"
    if key in groups():
        value = unquoted(value)
        if not sweep:
            check_choice(key, value)
        return f"{start}={value}"
    if of is None:  # of hydra itself, a group's package, a mapping of several options, or unknown: hydra's to compose
        return f"{start}={value}"
    if sweep and len(parts) > 1:
        return f"{start}={','.join(of_sweep(key, part, of) for part in parts)}"
    if len(parts) > 1:
        raise ValueError(several(key, value, of))
    return f"{start}={literal(key, value, of)}"


def several(key: str, value: str, of: Type | None = None) -> str:
    """What is said of commas without -m."""
    inner = of.of if isinstance(of, Optional) else of
    message = f"{key}={shown(value)}: give -m to run several"
    if isinstance(inner, Listed) or key == "dictionaries":
        entries = ",".join(part.strip().removeprefix("[").removesuffix("]") for part in at_commas(value))
        return f"{message}, or [{entries}] for a list: {shlex.quote(f'{key}=[{entries}]')}"
    if of is not None and of.written:
        return f"{message}, or for one value with a comma {shlex.quote(f'{key}={quoted(value)}')}"
    return message


def of_sweep(key: str, text: str, of: Type) -> str:
    """A wrong value is left to its job, which fails while the others run."""
    try:
        return literal(key, text, of)
    except ValueError:
        return text if parse(text) is not None else quoted(text)


def literal(key: str, text: str, of: Type) -> str:
    """The value as hydra's grammar has it, once it is read by its type."""
    if "${" in text:  # it follows from other values, and is checked when it is known
        try:
            parse_interpolation(text)
        except OmegaConfBaseException:
            raise ValueError(
                f"{key}={shown(text)}: ${{ begins a reference to another option, such as ${{seed}}"
            ) from None
        return quoted(text) if of.written and parse(text) is None else text
    value = read(key, value_of(text, of), typed=text)
    return text if repr(parse(text)) == repr(value) else written(value)


def value_of(text: str, of: Type) -> Any:
    """What the text says: of a list its entries; what hydra's quotes enclose; of a type that is text, all as it stands."""
    inner = of.of if isinstance(of, Optional) else of
    bare = text.strip()
    if isinstance(inner, Listed):
        if unquoted(text)[:1] == "[":
            bare = unquoted(text)
        if bare[:1] == "[" and bare[-1:] == "]":
            entries = at_commas(bare[1:-1]) if bare[1:-1].strip() else []
            return [value_of(entry, inner.of) for entry in entries]
        return value_of(text, inner.of)
    parsed = parse(bare)
    if isinstance(parsed, QuotedString):
        return parsed.text
    if inner.written and bare in ("null", "NULL", "None"):
        return None
    if inner.written or parsed is None:
        return bare
    return parsed


def parse(text: str) -> Any:
    """The value by hydra's grammar; None for what it refuses, and for null."""
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
        value = override._value
        return value if isinstance(value, QuotedString) else override.value()
    except Exception:  # its lexer and visitors raise several kinds
        return None


def unquoted(text: str) -> str:
    """The text without the quotes of hydra's grammar around it, which a shell or a program left there."""
    parsed = parse(text.strip())
    return parsed.text if isinstance(parsed, QuotedString) else text.strip()


def quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return quoted(value) if isinstance(value, str) else repr(value)


def at_commas(text: str) -> list[str]:
    """The text cut at its commas, but for those inside brackets and quotes."""
    parts, closing, quote, start = [""], [], "", True
    for before, character in zip(" " + text, text, strict=False):
        if quote:
            quote = "" if character == quote and before != "\\" else quote
        elif character in "'\"" and start:
            quote = character
        elif character in PAIRS:
            closing.append(PAIRS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        start = (start and character == " ") or character in ",[{(:"
        if character == "," and not closing and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def check_choice(group: str, choice: str) -> None:
    """Raises ValueError for what the group does not have."""
    listed = choice.strip().removeprefix("[").removesuffix("]")
    inside = choice.startswith("[") and choice.endswith("]") and "[" not in listed and "]" not in listed
    names = [name.strip() for name in listed.split(",")] if inside and listed else [choice]
    if not inside and "," in choice:
        raise ValueError(several(group, choice))
    known = groups()[group]
    for name in names if listed or not inside else []:
        name = name.strip("'\"")
        if "${" not in name and name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.5) or known
            raise ValueError(f"no {group}={shown(name)}; nearest: {', '.join(near)}")


def groups() -> dict[str, list[str]]:
    """{group of conf/: its choices}."""
    root = files("rayscope.conf")
    return {
        folder.name: sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        for folder in root.iterdir()
        if folder.is_dir() and folder.name != "__pycache__"
    }


def refused(command: str, given: list[str], base: DictConfig, error: Exception) -> str:
    """One line on why hydra does not compose these arguments. base: the command's configuration with the groups chosen."""
    known = list(names_of(base))
    for sign, key, value in map(split, given):
        if key in groups() and "No match in the defaults list" in str(error) and f"'{key}'" in str(error):
            inside = [name for name in known if name.startswith(f"{key}.")]
            there = ", ".join(inside or map(str, base))
            return f"{key}={shown(value)}: {command} has no {key} to choose; it has {there}"
        if key in groups() and value is not None:
            try:
                check_choice(key, value)
            except ValueError as wrong:
                return str(wrong)
        if sign == "+" and key in groups() and key in known:
            return f"+{key}: {key} is there already; give it without the +"
        if key in groups() or key.split(".")[0].split("/")[0] == "hydra" or "@" in key or "/" in key:
            continue
        if sign in ("", "~") and key not in known:
            return unknown(key, known)
        if sign == "+" and key in known:
            return f"+{key}: {key} is there already; give it without the +"
        if sign != "~" and declared(key) is None and parse(value or "") is None and (value or "").lower() != "null":
            return (
                f"{key}={shown(value)}: hydra cannot read it; text in it may need quotes: {shlex.quote(f'{key}=...')}"
            )
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return (
            f"no {group}={shown(name)}; nearest: {', '.join(get_close_matches(name, error.options) or error.options)}"
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException | HydraException) else error
    return str(cause).strip().split("\n")[0]


def unknown(key: str, known: list[str]) -> str:
    """What is said of a key that is no option of what was chosen; it may be one of another choice."""
    group = key.partition(".")[0]
    choices = groups().get(group, ()) if group in known else ()
    entry = ".".join(key.split(".")[:2])
    if group == "dictionaries" and entry not in known and any(entry in of_choice(group, one) for one in choices):
        return f"{key}: no {key.split('.')[1]} is trained; add it to dictionaries=[...]"
    if chosen := [one for one in choices if key in of_choice(group, one)]:
        return f"{key} is an option of {' and '.join(f'{group}={choice}' for choice in chosen)}; choose it as well"
    return f"no option {key!r}; nearest: {', '.join(nearest(key, known))}"


@cache
def of_choice(group: str, choice: str) -> frozenset[str]:
    """Every "group.a" and "group.a.b" of a choice's own file."""
    config = OmegaConf.create((files("rayscope.conf") / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    return frozenset(names_of(config, f"{group}.")) if isinstance(config, DictConfig) else frozenset()


def names_of(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every "a" and "a.b" of the configuration."""
    for name in list(config):
        yield f"{prefix}{name}"
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            yield from names_of(node, f"{prefix}{name}.")
