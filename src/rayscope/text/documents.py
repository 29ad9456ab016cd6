"""A document, and the split that its name decides."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

SPLITS = ("train", "validation", "test")
END_OF_TEXT = "<|endoftext|>"


class Document(NamedTuple):
    name: str  # decides the split; where a source has no names, a hash of the text
    text: str


class Source(Protocol):
    """Where text comes from. `fingerprint` changes if and only if the documents may have changed.

    max_tokens: packing stops after that many, in all splits together; None: at the end.
    more: what a document is, for a user who has too few. A source may have a name too: see `name_of`.
    """

    max_tokens: int | None
    more: str

    def documents(self) -> Iterator[Document]: ...

    def fingerprint(self) -> str: ...


def name_of(source: Source) -> str:
    """What tables call the text: the source's `name`, or its class's, as in "docs"."""
    return str(getattr(source, "name", type(source).__name__.lower()))


def split_of(name: str) -> str:
    """train, validation or test with probabilities 80/10/10, by a hash of the name: adding documents moves none."""
    share = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"
