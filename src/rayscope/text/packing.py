"""Documents -> rows of tokens on disk, one memory-mapped pair of arrays a split, with corpus token counts.

A row is `context` consecutive tokens of the stream `document <|endoftext|> document <|endoftext|> ...`; position 0 is the
first index of a row, whatever token stands there.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs

from rayscope.console import progress, say
from rayscope.text.documents import END_OF_TEXT, SPLITS, Document, Source, split_of

LAYOUT = 2  # of the packed folder; a change of what is written raises it and so repacks


@dataclass(frozen=True)
class Rows:
    """One split: tokens and document numbers, both [rows, context], and the number of times each token occurs."""

    tokens: np.ndarray
    documents: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PackedText:
    folder: Path
    fingerprint: str  # of the documents, the tokenizer and the context: what artefacts record
    context: int
    train: Rows
    validation: Rows
    test: Rows

    def __getitem__(self, split: str) -> Rows:
        if split not in SPLITS:
            raise ValueError(f"split={split}: there are {', '.join(SPLITS)}")
        return getattr(self, split)


def cache_folder() -> Path:
    """RAYSCOPE_CACHE, or the user's cache folder."""
    return Path(os.environ.get("RAYSCOPE_CACHE") or platformdirs.user_cache_dir("rayscope"))


def pack(source: Source, tokenizer, context: int, cache: str | Path | None = None) -> PackedText:
    """Packs the source once; what is packed already, from the same content, is mapped again.

    Raises ValueError where a split comes out without a row.
    """
    rules = tokenizer.backend_tokenizer.to_str()  # vocabulary, merges and what precedes them
    key = json.dumps(
        [LAYOUT, source.fingerprint(), hashlib.sha256(rules.encode()).hexdigest(), context, source.max_tokens]
    )
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = Path(cache or cache_folder()).expanduser() / "text" / fingerprint[:16]
    if not (folder / "text.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".packing-") as temporary:
            write(source.documents(), tokenizer, context, source.max_tokens, Path(temporary))
            for path in Path(temporary).iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            shutil.rmtree(folder, ignore_errors=True)
            Path(temporary).rename(folder)
            Path(temporary).mkdir()  # for TemporaryDirectory to remove
        say(f"text: packed into {folder}")
    return read(folder, fingerprint)


def read(folder: Path, fingerprint: str) -> PackedText:
    shape = json.loads((folder / "text.json").read_text())

    def rows(split: str) -> Rows:
        size = (shape["rows"][split], shape["context"])
        return Rows(
            np.memmap(folder / f"{split}.tokens", np.dtype(shape["dtype"]), "r", shape=size),
            np.memmap(folder / f"{split}.documents", np.int32, "r", shape=size),
            np.fromfile(folder / f"{split}.counts", np.int64),
        )

    return PackedText(folder, fingerprint, shape["context"], *(rows(split) for split in SPLITS))


def write(documents: Iterable[Document], tokenizer, context: int, max_tokens: int | None, folder: Path) -> None:
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    names: dict[str, int] = dict.fromkeys(SPLITS, 0)
    written: dict[str, int] = dict.fromkeys(SPLITS, 0)
    with progress("packing text", max_tokens) as advance:
        files = {(s, kind): (folder / f"{s}.{kind}").open("wb") for s in SPLITS for kind in ("tokens", "documents")}
        try:
            for split, ids in tokenized(documents, tokenizer):
                files[split, "tokens"].write(ids.astype(dtype).tobytes())
                files[split, "documents"].write(np.full(len(ids), names[split], np.int32).tobytes())
                names[split] += 1
                written[split] += len(ids)
                advance(len(ids))
                if max_tokens and sum(written.values()) >= max_tokens:
                    break
        finally:
            for file in files.values():
                file.close()
    total = sum(names.values())
    for split in SPLITS:
        if written[split] < context:
            raise ValueError(
                f"text: {total} documents leave {written[split]} tokens in split {split}, less than one row of {context}; "
                f"give more or longer documents"
            )
        tokens = np.memmap(folder / f"{split}.tokens", dtype, "r", shape=written[split] // context * context)
        counts = np.zeros(len(tokenizer), np.int64)
        for start in range(0, len(tokens), 2**24):  # bincount makes 8 bytes of each token
            counts += np.bincount(tokens[start : start + 2**24], minlength=len(tokenizer))
        counts.tofile(folder / f"{split}.counts")
    rows = {split: written[split] // context for split in SPLITS}
    shape = {"context": context, "dtype": dtype.name, "rows": rows, "documents": names}
    (folder / "text.json").write_text(json.dumps(shape, indent=2))


def tokenized(documents: Iterable[Document], tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """(split, tokens with `<|endoftext|>` at the end) of each document. The separator inside a text is only a space, and half
    of a surrogate pair, which no UTF-8 holds, a question mark."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    if end is None or tokenizer.convert_ids_to_tokens(end) != END_OF_TEXT:
        raise ValueError(f"tokenizer has no {END_OF_TEXT}: it is not one of the GPT-2 family")
    for group in batches(documents, characters=2_000_000):
        texts = [text.replace(END_OF_TEXT, " ").encode("utf-8", "replace").decode() for _, text in group]
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for (name, _), encoding in zip(group, encoded, strict=True):
            yield split_of(name), np.array([*encoding.ids, end])


def batches(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group
