"""One reader per type of text file: the texts in it, strictly.
What does not parse is named by file and row, never skipped.
"""

import csv
import json
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rayscope.text.documents import END_OF_TEXT

PIECE = 10_000  # characters: about what a txt file is cut into where it marks no documents itself
UTF8 = "utf-8-sig"  # a byte order mark is no text
BREAKS = tuple(map(re.compile, (r"\s*\n\s*", r"(?<=[.?!])\s+|(?<=[。！？])", r"\s+")))  # lines, sentences, words


def read_txt(path: Path, column: str) -> Iterator[str]:
    text = path.read_text(encoding=UTF8)
    if "\0" in text[:4]:
        raise ValueError(f"text.files: {path} is UTF-16 or UTF-32, or no text; convert it to UTF-8 first")
    for stretch in text.split(END_OF_TEXT):
        piece: list[str] = []
        for paragraph in re.split(r"\n\s*\n", stretch.strip()):
            for part in cut(paragraph):
                piece.append(part)
                if sum(map(len, piece)) >= PIECE:
                    yield "\n\n".join(piece)
                    piece = []
        if piece:
            yield "\n\n".join(piece)


def cut(paragraph: str) -> list[str]:
    """The paragraph; one longer than two pieces in pieces:
    cut at a line's end, else a sentence's, a word's or anywhere.
    """
    parts, start = [], 0
    while len(paragraph) - start > 2 * PIECE:
        low, high = start + PIECE, start + 2 * PIECE
        places = (found.span() for pattern in BREAKS if (found := pattern.search(paragraph, low, high)))
        end, following = next(places, (high, high))
        parts.append(paragraph[start:end])
        start = following
    return [*parts, paragraph[start:]]


def read_jsonl(path: Path, column: str) -> Iterator[str]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and sum(key == column for key, _ in pairs) > 1:
            raise ValueError(f"it has {column!r} twice")
        return found

    shape = f"each line is one object, such as {json.dumps({column: '...'}, ensure_ascii=False)}"
    with path.open(encoding=UTF8) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:  # files with byte order marks may have been joined
                row = json.loads(line.removeprefix("\ufeff"), object_pairs_hook=unique)
            except json.JSONDecodeError as error:
                raise ValueError(f"text.files: {where} is not JSON ({error.msg}); {shape}") from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
                raise ValueError(f"text.files: {where} cannot be read ({str(error).split(';')[0]})") from None
            if not isinstance(row, dict):
                raise ValueError(f"text.files: {where} is not an object with a column {column!r}; {shape}")
            yield text_of(row, column, where)


def read_csv(path: Path, column: str) -> Iterator[str]:
    """Strict: a quote that is never closed, a comma too many or a line end without quotes would make other documents
    of the text. What loses none is read: blank rows, rows that end after the text, and empty fields at a row's end.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding=UTF8, newline="") as file:
        rows = csv.reader(file, strict=True)
        header: list[str] | None = None
        line = 1
        while True:
            where = f"{path} line {line}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise ValueError(f"text.files: the row that begins at {where} is not CSV ({error})") from None
            if row is None:
                return
            if any("\0" in field for field in row):
                raise ValueError(f"text.files: the row that begins at {where} holds a NUL byte; is it text?")
            if header is None and row:
                header = row
                if header.count(column) != 1:
                    raise ValueError(no_column(column, header, f"the header, {where},") + separator(header))
                place = header.index(column)
            elif header is not None and "".join(row).strip():
                if len(row) <= place or "".join(row[len(header) :]).strip():
                    raise ValueError(
                        f"text.files: the row that begins at {where} and the header have {len(row)} and {len(header)} "
                        "fields; text that holds commas or line ends stands in quotes"
                    )
                yield row[place]
            line = rows.line_num + 1


def separator(header: list[str]) -> str:
    """A hint, if the header of a CSV is one field of several columns."""
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and sign in header[0]:
            return f"; its columns are separated by {name}, and commas are read alone"
    return ""


def read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            if names.count(column) != 1:
                raise ValueError(no_column(column, names, str(path)))
            for batch in file.iter_batches(batch_size=64, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    yield text_of({column: value.as_py()}, column, f"{path} row {number}")
    except UnicodeDecodeError as error:
        raise ValueError(f"text.files: {path} row {number} is not UTF-8 ({error.reason}); convert it first") from None
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).split("\n")[0]
        what = f"is damaged after row {number}" if number else "is not a whole parquet file"
        raise ValueError(f"text.files: {path} {what} ({said[:200]})") from None


READERS = {".txt": read_txt, ".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


def text_of(row: dict, column: str, where: str) -> str:
    """The row's text; empty if the column holds null."""
    if column not in row:
        raise ValueError(no_column(column, list(row), where))
    text = "" if row[column] is None else row[column]
    if not isinstance(text, str):
        raise ValueError(f"text.column={column}: {where} holds {type(text).__name__}, not text")
    return text


def no_column(column: str, columns: list, where: str) -> str:
    """Of columns that are none, such as the first row of a CSV without a header, only the beginnings are repeated."""
    columns = [str(name) for name in columns]
    if column in columns:
        return f"text.column={column}: {where} has {columns.count(column)} columns of that name"
    near = get_close_matches(column, columns, n=3, cutoff=0.4) or columns[:8]
    shorter = [name if len(name) <= 24 else f"{name[:20]}..." for name in near]
    shown = ", ".join(name if name and name == name.strip() else repr(name) for name in shorter) or "none"
    return f"text.column={column}: {where} has no such column; it has {shown}"
