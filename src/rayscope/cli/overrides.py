"""key=value arguments made ready for hydra: read by the option's type and quoted for its grammar,
or refused in one line.
"""

import re
import shlex
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.types import QuotedString
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar_parser import parse as parse_interpolation

from rayscope.cli.grammar import at_commas, parse, quoted, unquoted, written
from rayscope.cli.groups import groups
from rayscope.cli.options import declared, read, shown
from rayscope.cli.values import Listed, Optional, Type

SWEEP = re.compile(r"\s*(range|choice|interval|glob|shuffle|sort|tag)\s*\(")  # what a sweeper takes apart


def ready(given: list[str], sweep: bool = False) -> list[str]:
    """The arguments in a form that hydra reads as they are meant. sweep: with -m, where commas separate values.

    Raises ValueError for an argument that is not key=value, a key given twice, an unknown choice of a group, a value
    that is not of the option's type, and several values without -m.
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
    """Raises ValueError for a key that is given twice, such as by a shell that expands {2,4},
    or given and taken out.
    """
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
            times = f"{key} is given {len(values)} times ({', '.join(map(shown, values))})"
            raise ValueError(f"{times}; give it once{of_braces(key, values)}")


def of_braces(key: str, values: list[str]) -> str:
    """What is added if a shell may have made the values of one argument, such as `out=run_{2,4}`; otherwise nothing."""
    start = common_start(values)
    end = common_start([value[len(start) :][::-1] for value in values])[::-1]
    between = [value[len(start) : len(value) - len(end)] for value in values]
    if not (start + end).strip("[]") or not all(between):
        return ""
    whole = shlex.quote(f"{key}={start}{{{','.join(between)}}}{end}")
    return f"; if the shell made these of one argument with braces, quote it: {shown(whole, 200)}"


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
    """What the text says: of a list its entries; what hydra's quotes enclose;
    of a type that is text, all as it stands.
    """
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
