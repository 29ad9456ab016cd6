"""Prose that ships: passages of English books in the public domain, none of which the tiny GPT-2 was trained on."""

from importlib.resources import files

from rayscope.text.files import Files


class Prose(Files):
    """A passage is a document. `assets/prose/README.md` says what they are, where they come from, and their hash."""

    more = "the prose that ships is 159 passages; read files of your own"

    def __init__(self, max_tokens: int | None = None):
        super().__init__(str(files("rayscope") / "assets/prose/prose.parquet"), max_tokens=max_tokens)

    @property
    def name(self) -> str:
        return "prose"
