"""Text of which nothing hides, moves or breaks what is around it."""

import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# letters and marks that show nothing: joiners, fillers, vowels and selectors
UNSEEN = {
    *"\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0",
    *map(chr, range(0x180B, 0x1810)),
    *map(chr, range(0xFE00, 0xFE10)),
}
UNSEEN |= set(map(chr, range(0xE0100, 0xE01F0)))


def visible(text: str) -> str:
    """Every character that would hide, move or break something as its escape: \\n, \\x00, \\u202e.

    So is a mark that would settle on the character before the text.
    """
    return "".join(ascii(c)[1:-1] if hides(c, first=i == 0) else c for i, c in enumerate(text))


def hides(c: str, first: bool) -> bool:
    category = unicodedata.category(c)
    return category in HIDDEN or c in UNSEEN or (first and category[0] == "M")


def one_line(text: str) -> str:
    """The text with its line breaks as spaces, and everything else visible."""
    return visible(" ".join(line.strip() for line in text.splitlines() if line.strip()))


def ascii_repr(token: str) -> str:
    """A token in quotes, its spaces seen; letters of other scripts stay."""
    return f"'{visible(token)}'"
