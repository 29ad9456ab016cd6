"""Text from a dataset of the Hugging Face hub, streamed."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayscope.huggingface import first_words, quiet, unreachable
from rayscope.text.documents import Document
from rayscope.text.readers import no_column, text_of


class Hub:
    """Rows of a hub dataset as documents, each named by a hash of its text. Nothing is fetched before `documents()`.

    dataset, config, split, revision: as `datasets.load_dataset` takes them; no remote code is run. A dataset that moves
    on under one revision keeps the rows packed first; give a commit as revision to say which. A local folder's files
    are part of its fingerprint. Raises ValueError for what cannot be had, and for a row that cannot be read or lacks
    the column.
    """

    more = "a row of the dataset is a document"

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
        for name, given in (("dataset", dataset), ("split", split), ("column", column), ("revision", revision)):
            if given is None or isinstance(given, bool) or not str(given).strip():
                raise ValueError(f"text.{name}={given}: give a name")
        self.dataset, self.split, self.column, self.revision = map(str, (dataset, split, column, revision))
        self.config = None if config is None else str(config)
        folder = Path(self.dataset)
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            raise ValueError(
                f"text.dataset={self.dataset}: a folder that datasets' save_to_disk wrote; write parquet instead "
                "(to_parquet) and give that: text=files text.files=[...]"
            )

    @property
    def name(self) -> str:
        return Path(self.dataset).name if Path(self.dataset).is_dir() else self.dataset

    def documents(self) -> Iterator[Document]:
        with quiet():
            rows = self.opened()
            for number in itertools.count(1):
                try:
                    row = next(rows, None)
                except Exception as error:  # a connection lost, a damaged file: any type of any library
                    raise ValueError(
                        f"text.dataset={self.dataset}: row {number} cannot be read ({first_words(error)})"
                    ) from None
                if row is None:
                    return
                if number == 1 and self.column not in row:
                    raise ValueError(no_column(self.column, list(row), self.dataset))
                text = text_of(row, self.column, f"{self.dataset} row {number}")
                if text and not text.isspace():
                    yield Document(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), text)

    def opened(self) -> Iterator[dict[str, Any]]:
        import datasets

        try:
            rows = datasets.load_dataset(
                self.dataset, self.config, split=self.split, revision=self.revision, streaming=True
            )
        except Exception as error:  # the hub client raises a dozen unrelated types for "cannot be had"
            said = unreachable(error, "dataset") or f"cannot be loaded ({first_words(error)})"
            raise ValueError(f"text.dataset={self.dataset}: {said}") from None
        return iter(rows)

    def fingerprint(self) -> str:
        parts = (self.dataset, self.config or "", self.split, self.column, self.revision)
        digest = hashlib.sha256("\0".join(parts).encode())
        if Path(self.dataset).is_dir():
            for path in sorted(path for path in Path(self.dataset).rglob("*") if path.is_file()):
                with path.open("rb") as file:
                    digest.update(str(path).encode("utf-8", "surrogateescape"))
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
