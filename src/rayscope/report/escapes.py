"""Text of which nothing hides, moves or breaks what is around it."""

import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def visible(text: str) -> str:
    """Every character that would hide, move or break something as its escape: \\n, \\x00, \\u202e.

    So is a mark that would settle on the character before the text.
    """
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) in HIDDEN or (i == 0 and unicodedata.category(c)[0] == "M") else c
        for i, c in enumerate(text)
    )


def ascii_repr(token: str) -> str:
    """A token in quotes, its spaces seen; letters of other scripts stay."""
    return f"'{visible(token)}'"
