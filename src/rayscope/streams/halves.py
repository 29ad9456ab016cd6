"""Halves: a training text cut in two such that no document is in both.

R rows, C context.
"""

from dataclasses import replace

import numpy as np

from rayscope.streams.source import Source
from rayscope.text import Rows

STRETCHES = 64


def halves(source: Source, tokens: int, stretches: int = STRETCHES) -> tuple[Source, Source]:
    """Two sources with the same model and held-out text, each with the training rows of half of the documents.

    The text is cut into `stretches` of consecutive rows, given to the halves by turns, so that both read of everything
    and that almost no row is lost; a document belongs whole to the stretch in which it begins, and a row that holds
    documents of both halves is left out. Of more than twice the rows that `tokens` need, that many are taken, evenly.
    Raises ValueError for a text that leaves a half without a row.
    """
    rows, needed = source.text.train, -(-2 * tokens // source.text.context)
    half_R = half_of_rows(rows, stretches)
    cut = []
    for half in (0, 1):
        kept = np.flatnonzero(half_R == half)
        if not len(kept):
            raise ValueError(
                f"text: {len(rows)} training rows cannot be halved by document; give more or shorter documents"
            )
        if len(kept) > needed:
            kept = kept[np.arange(needed) * len(kept) // needed]
        tokens_RC = rows.tokens[kept]
        counts = np.bincount(tokens_RC.ravel(), minlength=len(rows.counts))
        train = Rows(tokens_RC, rows.documents[kept], counts)
        cut.append(replace(source, text=replace(source.text, train=train)))
    return cut[0], cut[1]


def half_of_rows(rows: Rows, stretches: int) -> np.ndarray:
    """half_R: 0, 1, or -1 for a row with documents of both. Documents are numbered in the order of the text, so those
    between a row's first and last begin in that row, as the last does."""
    first_R, last_R = np.asarray(rows.documents[:, 0]), np.asarray(rows.documents[:, -1])
    stretches = min(stretches, len(rows))

    def half(documents_R: np.ndarray) -> np.ndarray:
        begins_R = np.searchsorted(last_R, documents_R)  # the first row that reaches the document
        return begins_R * stretches // len(rows) % 2

    return np.where(half(first_R) == half(last_R), half(last_R), -1)
