"""Text from a dataset of the Hugging Face hub, streamed."""

import hashlib
from collections.abc import Iterator

from rayscope.text.documents import Document
from rayscope.text.files import no_column, text_of


class Hub:
    """Rows of a hub dataset as documents, each named by a hash of its text. Nothing is fetched before `documents()`.

    dataset, config, split, revision: as `datasets.load_dataset` takes them; no remote code is run. A dataset that moves
    on under one revision keeps the rows packed first; give a commit as revision to say which.
    """

    def __init__(
        self,
        dataset: str,
        config: str | None = None,
        split: str = "train",
        column: str = "text",
        revision: str = "main",
        max_tokens: int | None = None,
    ):
        self.max_tokens = max_tokens
        self.dataset, self.config, self.split, self.column, self.revision = dataset, config, split, column, revision

    def documents(self) -> Iterator[Document]:
        import datasets

        try:
            rows = datasets.load_dataset(
                self.dataset, self.config, split=self.split, revision=self.revision, streaming=True
            )
        except Exception as error:  # the hub client raises a dozen unrelated types for "cannot be had"
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"text.dataset={self.dataset}: cannot be loaded ({type(error).__name__}: {reason})"
            ) from error
        for number, row in enumerate(rows):
            if number == 0 and self.column not in row:
                raise ValueError(no_column(self.column, list(row), self.dataset))
            text = text_of(row, self.column, f"{self.dataset} row {number}")
            if text and not text.isspace():
                yield Document(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), text)

    def fingerprint(self) -> str:
        parts = (self.dataset, self.config or "", self.split, self.column, self.revision)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
