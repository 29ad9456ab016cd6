"""Hydra's grammar of values: read, written, and cut at commas."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

PAIRS = {"(": ")", "[": "]", "{": "}"}


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
