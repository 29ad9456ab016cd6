"""Text -> packed rows of tokens: sources of documents (docs, prose, files, hub) and how they are packed."""

from rayscope.text.docs import Docs
from rayscope.text.documents import SPLITS, Document, Source, split_of
from rayscope.text.files import Files
from rayscope.text.hub import Hub
from rayscope.text.packing import PackedText, Rows, fingerprint_of, pack, said
from rayscope.text.prose import Prose

__all__ = [
    "SPLITS",
    "Docs",
    "Document",
    "Files",
    "Hub",
    "PackedText",
    "Prose",
    "Rows",
    "Source",
    "fingerprint_of",
    "pack",
    "said",
    "split_of",
]
