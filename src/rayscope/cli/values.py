"""Values: the types that options have. Each reads what a person
or a sweep's agent writes as what is meant, or refuses it.
"""

import math
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from rayscope.limits import met

LONGEST = 30  # digits of a number


class Type(ABC):
    """`read` gives the value that is meant and raises ValueError for one that is none;
    `what` says what would be one.
    """

    written: bool = False  # its values are text as written: `1_000` is a name, not a number

    @property
    @abstractmethod
    def what(self) -> str: ...

    @abstractmethod
    def read(self, value: Any) -> Any: ...


@dataclass(frozen=True)
class Whole(Type):
    """8, 8.0, 1e6, 1_000_000, "8"."""

    least: int | None = None
    most: int | None = None

    @property
    def what(self) -> str:
        return f"a whole number{bounds(self.least, self.most)}"

    def read(self, value: Any) -> int:
        number = exact(value)
        if number != number.to_integral_value() or number.adjusted() >= LONGEST:
            raise ValueError
        return int(within(int(number), self.least, self.most))


@dataclass(frozen=True)
class Number(Type):
    """1, 0.001, 1e-3, "1e-3"; a whole one stays one. above: the bound itself is not allowed."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    @property
    def what(self) -> str:
        if self.above is not None:
            return f"a number above {self.above}" + ("" if self.most is None else f" and at most {self.most}")
        return f"a number{bounds(self.least, self.most)}"

    def read(self, value: Any) -> float:
        exact(value)
        number = value if isinstance(value, int) else float(value)
        if not math.isfinite(float(number)) or (self.above is not None and not number > self.above):
            raise ValueError
        return within(number, self.least, self.most)


@dataclass(frozen=True)
class Flag(Type):
    @property
    def what(self) -> str:
        return "true or false"

    def read(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if not isinstance(value, str) or value.lower() not in ("true", "false"):
            raise ValueError
        return value.lower() == "true"


@dataclass(frozen=True)
class Text(Type):
    """Any text without control characters; not empty. A whole number is its digits: a column may be named 0."""

    written = True
    meant: str = "text"

    @property
    def what(self) -> str:
        return f"{self.meant}, not empty"

    def read(self, value: Any) -> str:
        text = str(value) if type(value) is int else value
        if not isinstance(text, str) or not text.strip():
            raise ValueError
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
            raise ValueError
        return text


@dataclass(frozen=True)
class FilePath(Text):
    """A path or a pattern of paths; a leading ~ is the home folder."""

    meant: str = "a path"

    def read(self, value: Any) -> str:
        return os.path.expanduser(super().read(value))  # noqa: PTH111 (leaves a ~ of nobody)


@dataclass(frozen=True)
class Matching(Type):
    """Text that the test lets pass."""

    written = True
    test: Callable[[str], Any]
    meant: str

    @property
    def what(self) -> str:
        return self.meant

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not self.test(value):
            raise ValueError
        return value


def choice(*names: str) -> Matching:
    return Matching(frozenset(names).__contains__, f"{', '.join(names[:-1])} or {names[-1]}")


def pattern(regex: str, meant: str) -> Matching:
    return Matching(re.compile(regex).fullmatch, meant)


def is_limit(text: str) -> bool:
    met(0.0, text)
    return True


LIMIT = Matching(is_limit, "a limit, such as '>= 3.0' or '<= 1.25'")


@dataclass(frozen=True)
class Listed(Type):
    """A list; alone: one value stands for the list of it, and stays as it is."""

    of: Type
    alone: bool = False
    such: str = ""

    @property
    def what(self) -> str:
        return "a list, each " + self.of.what + (f", such as {self.such}" if self.such else "")

    def read(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self.of.read(entry) for entry in value]
        if not self.alone:
            raise ValueError
        return self.of.read(value)


@dataclass(frozen=True)
class Optional(Type):
    """null, or what `of` reads; None, as a sweep's agent writes it, is null."""

    of: Type

    @property
    def written(self) -> bool:  # type: ignore[override]
        return self.of.written

    @property
    def what(self) -> str:
        return f"{self.of.what}, or null"

    def read(self, value: Any) -> Any:
        if value is None or (isinstance(value, str) and value.lower() in ("null", "none")):
            return None
        return self.of.read(value)


@dataclass(frozen=True)
class Anything(Type):
    @property
    def what(self) -> str:
        return "anything"

    def read(self, value: Any) -> Any:
        return value


def exact(value: Any) -> Decimal:
    """The number that is written; ValueError for what is none, and for NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    try:
        number = Decimal(value.strip() if isinstance(value, str) else repr(value))
    except InvalidOperation:
        raise ValueError from None
    if not number.is_finite():
        raise ValueError
    return number


def within(number: Any, least: float | None, most: float | None) -> Any:
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError
    return number


def bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" of at least {least}"
    return "" if most is None else f" of at most {most}"
