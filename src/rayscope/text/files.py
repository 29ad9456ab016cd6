"""Text from files: txt, jsonl, csv and parquet."""

import csv
import glob
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from rayscope.text.documents import END_OF_TEXT, Document

PIECE = 10_000  # characters: about what a txt file is cut into where it marks no documents itself
UTF8 = "utf-8-sig"  # a byte order mark is no text


class Files:
    """Documents of local files, each named by a hash of its text, so that equal documents share a split.

    A row of a jsonl, csv or parquet file is a document, its text in `column`; one without text is left out. A txt file holds documents separated by
    `<|endoftext|>`; a stretch without one is cut at blank lines into documents of about 10,000 characters.

    files: paths or patterns (`data/*.parquet`).
    Raises ValueError naming the file for one that is missing, empty, not UTF-8, of another type or without the column.
    """

    def __init__(self, files: list[str] | str, column: str = "text", max_tokens: int | None = None):
        patterns = [files] if isinstance(files, str) else list(files)
        if not patterns:
            raise ValueError("text.files is empty; give paths, such as text.files=[notes.txt,books.parquet]")
        self.column, self.max_tokens = column, max_tokens
        self.paths: list[Path] = []
        for pattern in patterns:
            path = str(Path(pattern).expanduser())
            found = [path] if Path(path).is_file() else sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (absolute)
            if not found:
                raise ValueError(f"text.files: no file matches {pattern!r}")
            self.paths += [Path(path) for path in found]
        for path in self.paths:
            if path.suffix not in READERS:
                raise ValueError(f"text.files: {path} is of type {path.suffix!r}; readable are {', '.join(READERS)}")
            if not path.stat().st_size:
                raise ValueError(f"text.files: {path} is empty")

    def documents(self) -> Iterator[Document]:
        for path in self.paths:
            try:
                for text in READERS[path.suffix](path, self.column):
                    if text and not text.isspace():
                        yield Document(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), text)
            except UnicodeDecodeError as error:
                raise ValueError(f"text.files: {path} is not UTF-8 ({error.reason}); convert it first") from None

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.column.encode())
        for path in self.paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def read_txt(path: Path, column: str) -> Iterator[str]:
    for stretch in path.read_text(encoding=UTF8).split(END_OF_TEXT):
        piece: list[str] = []
        for paragraph in re.split(r"\n\s*\n", stretch.strip()):
            piece.append(paragraph)
            if sum(map(len, piece)) >= PIECE:
                yield "\n\n".join(piece)
                piece = []
        if piece:
            yield "\n\n".join(piece)


def read_jsonl(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding=UTF8) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"text.files: {path} line {number} is not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise ValueError(f"text.files: {path} line {number} is not an object with a column {column!r}")
            yield text_of(row, column, f"{path} line {number}")


def read_csv(path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding=UTF8, newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            yield text_of(row, column, f"{path} row {number}")


def read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"text.files: {path} is not a parquet file ({error})") from None
    with file:
        if column not in file.schema_arrow.names:
            raise ValueError(no_column(column, file.schema_arrow.names, str(path)))
        for batch in file.iter_batches(batch_size=64, columns=[column]):
            for row in batch.to_pylist():
                yield text_of(row, column, str(path))


READERS = {".txt": read_txt, ".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


def text_of(row: dict, column: str, where: str) -> str:
    """The row's text; empty where the column holds null."""
    if column not in row:
        raise ValueError(no_column(column, list(row), where))
    text = "" if row[column] is None else row[column]
    if not isinstance(text, str):
        raise ValueError(f"text.column={column}: {where} holds {type(text).__name__}, not text")
    return text


def no_column(column: str, columns: list, where: str) -> str:
    columns = [str(name) for name in columns]
    near = get_close_matches(column, columns, n=3, cutoff=0.4) or columns[:8]
    return f"text.column={column}: {where} has no such column; it has {', '.join(near)}"
