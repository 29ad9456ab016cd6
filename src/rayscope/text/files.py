"""Text from files: txt, jsonl, csv and parquet."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rayscope.text.documents import Document
from rayscope.text.readers import READERS


class Files:
    """Documents of local files, each named by a hash of its text, so that equal documents share a split.

    A row of a jsonl, csv or parquet file is a document, its text in `column`; one without text is left out. A txt file
    holds documents separated by `<|endoftext|>`; a stretch without one is cut at blank lines into documents of about
    10,000 characters, and a paragraph of more than 20,000 at line ends, or if it has none at the ends of sentences or
    words.

    files: paths or patterns (`data/*.parquet`).
    Raises ValueError naming the file, and the row, for one that is missing, empty, damaged, not UTF-8, of another type
    or without the column.
    """

    more = (
        "a row of a .jsonl, .csv or .parquet file is a document, and of a .txt file what <|endoftext|> separates, or "
        "else about 10,000 characters"
    )

    def __init__(self, files: list[str] | str, column: str = "text", max_tokens: int | None = None):
        patterns = [files] if isinstance(files, str) else list(files) if isinstance(files, Iterable) else [files]
        if not patterns:
            raise ValueError("text.files is empty; give paths, such as text.files=[notes.txt,books.parquet]")
        if column is None or isinstance(column, bool) or str(column) == "":
            raise ValueError(f"text.column={column}: give the name of the column that holds the text")
        self.column, self.max_tokens = str(column), max_tokens
        self.paths: list[Path] = []
        for pattern in patterns:
            if not isinstance(pattern, str | Path) or not str(pattern):
                raise ValueError(f"text.files: {pattern!r} is not a path")
            path = os.path.expanduser(pattern)  # noqa: PTH111 (leaves a ~ of nobody)
            found = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (absolute)
            if not found:
                raise ValueError(f"text.files: no file matches {str(pattern)!r}")
            self.paths += [Path(path) for path in found]
        for path in self.paths:
            if path.is_dir():
                raise ValueError(f"text.files: {path} is a folder; give its files, such as {path}/*.jsonl")
            if path.suffix not in READERS:
                raise ValueError(f"text.files: {path} is of type {path.suffix!r}; readable are {', '.join(READERS)}")
            if not path.is_file():
                raise ValueError(f"text.files: {path} is not a plain file")
            if not path.stat().st_size:
                raise ValueError(f"text.files: {path} is empty")

    @property
    def name(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0].name}{more}"

    def documents(self) -> Iterator[Document]:
        for path in self.paths:
            found = False
            try:
                for text in READERS[path.suffix](path, self.column):
                    if text and not text.isspace():
                        found = True
                        yield Document(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), text)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"text.files: {not_utf8(path)} is not UTF-8 ({error.reason}); convert it first"
                ) from None
            if not found:
                raise ValueError(f"text.files: {path} holds no text; give another, or take it out")

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.column.encode())
        for path in self.paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def not_utf8(path: Path) -> str:
    """The file and its first line that does not decode."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{path} line {number}"
    return str(path)
