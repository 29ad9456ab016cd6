"""Documents -> rows of tokens on disk, one memory-mapped pair of arrays a split, with corpus token counts.

A row is `context` consecutive tokens of the stream `document <|endoftext|> document <|endoftext|> ...`; position 0 is
the first index of a row, whatever token stands there.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from rayscope.console import progress, say
from rayscope.files import cache_folder, sweep, whole_folder
from rayscope.text.documents import END_OF_TEXT, SPLITS, Document, Source, name_of, split_of

PROBE = "".join(map(chr, range(1, 0x600)))
LAYOUT = 3  # of the packed folder; a change of what is written raises it and so repacks


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
    name: str = ""  # what tables call the text

    @property
    def provenance(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.fingerprint, "context": self.context}

    def __getitem__(self, split: str) -> Rows:
        if split not in SPLITS:
            raise ValueError(f"split={split}: there are {', '.join(SPLITS)}")
        return getattr(self, split)


def said(provenance: Any) -> str:
    """A text as tables call it, as in "docs 1a2b3c4d", from its provenance; empty for one that says no hash."""
    about = provenance if isinstance(provenance, dict) else {}
    sha256 = about.get("sha256")
    return f"{about.get('name') or 'text'} {sha256[:8]}" if isinstance(sha256, str) else ""


def fingerprint_of(source: Source, tokenizer, context: int) -> str:
    """Of the source's documents, the tokenizer and the context, without packing them."""
    return keyed(source, source.fingerprint(), Encoder.of(tokenizer), context)


def keyed(source: Source, documents: str, encoder: "Encoder", context: int) -> str:
    rules = hashlib.sha256(encoder.rules.encode()).hexdigest()
    return hashlib.sha256(json.dumps([LAYOUT, documents, rules, context, source.max_tokens]).encode()).hexdigest()


def pack(source: Source, tokenizer, context: int, cache: str | Path | None = None) -> PackedText:
    """Packs the source once; what is packed already, from the same content, is checked and mapped again.

    Raises ValueError if a split comes out without a row, or the text changes meanwhile.
    """
    limit = source.max_tokens
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"text.max_tokens={limit}: a whole number, at least 1, or null for all of the text")
    encoder, documents = Encoder.of(tokenizer), source.fingerprint()
    fingerprint = keyed(source, documents, encoder, context)
    folder = Path(cache or cache_folder()).expanduser() / "text" / fingerprint[:16]
    sweep(folder.parent, age=5, inside=())
    if (folder / "text.json").exists():
        try:
            return replace(read(folder, fingerprint, context), name=name_of(source))
        except Damaged as damaged:
            say(f"text: {folder} is damaged ({damaged}); packing it again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_folder(folder) as temporary:
            write(source, encoder, context, temporary)
            if source.fingerprint() != documents:
                raise ValueError("text: it changed while it was packed; give the same command again")
            with suppress(Damaged):
                read(folder, fingerprint, context)
                raise FileExistsError(errno.EEXIST, "packed by another process meanwhile, which may be reading it")
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    say(f"text: packed into {folder}")
    return replace(read(folder, fingerprint, context), name=name_of(source))


class Damaged(ValueError):
    """What is in the cache is not what was written there."""


def read(folder: Path, fingerprint: str, context: int) -> PackedText:
    """Every byte is compared with what was written (about 1 GB/s, once a process).

    Raises Damaged saying what is not as it was.
    """
    try:
        about = json.loads((folder / "text.json").read_bytes())
        dtype, vocabulary = np.dtype(about["dtype"]), about["vocabulary"]
        shapes = {split: (about["rows"][split], context) for split in SPLITS}
        sizes = {f"{split}.counts": 8 * vocabulary for split in SPLITS}
        for split, (rows, _) in shapes.items():
            sizes |= {f"{split}.tokens": rows * context * dtype.itemsize, f"{split}.documents": rows * context * 4}
        for name, size in sizes.items():
            with (folder / name).open("rb") as file:
                there = os.fstat(file.fileno()).st_size
                if there != size:
                    raise Damaged(f"{name} has {there} bytes, not {size}")
                if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"][name]:
                    raise Damaged(f"{name} is not what was written")
        train, validation, test = (
            Rows(
                np.memmap(folder / f"{split}.tokens", dtype, "r", shape=shape),
                np.memmap(folder / f"{split}.documents", np.int32, "r", shape=shape),
                np.fromfile(folder / f"{split}.counts", np.int64),
            )
            for split, shape in shapes.items()
        )
        return PackedText(folder, fingerprint, context, train, validation, test)
    except Damaged:
        raise
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is gone") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged("text.json is not what was written") from None


@dataclass(frozen=True)
class Encoder:
    """A tokenizer's vocabulary and rules, without what it was last called with: truncation and padding, which stay in a
    saved tokenizer.json; without the tokens that it would put around a document; and without dropout, which draws at
    random.

    rules: all that tokens depend on. Raises ValueError for a tokenizer that has no separator, or would lose characters.
    """

    tokenizer: Tokenizer
    rules: str
    end: int
    vocabulary: int

    @classmethod
    def of(cls, tokenizer) -> "Encoder":
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        if state["model"].get("dropout"):
            say(f"tokenizer: its dropout={state['model']['dropout']} draws tokens at random, and is switched off")
            state["model"]["dropout"] = None
        state |= dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
        rules = {part: state[part] for part in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        plain = Tokenizer.from_str(json.dumps(state))
        ids = plain.get_vocab()
        end = ids.get(END_OF_TEXT)
        if end is None:
            raise ValueError(f"tokenizer has no {END_OF_TEXT}: it is not one of the GPT-2 family")
        lost = [byte for byte in ByteLevel.alphabet() if byte not in ids]
        if lost:
            raise ValueError(
                f"tokenizer: {len(lost)} of 256 bytes have no token, such as {min(lost)!r}; text would be lost"
            )
        if not lossless(plain):
            raise ValueError(
                "tokenizer: its tokens do not hold every character, as those of GPT-2 do: "
                "tokenizer.json has no ByteLevel "
                "step, or one that removes something; text would be lost"
            )
        return cls(plain, json.dumps(rules, sort_keys=True), end, 1 + max(ids.values()))

    def __call__(self, documents: Iterable[Document]) -> Iterator[tuple[str, np.ndarray]]:
        """(split, tokens with `<|endoftext|>` at the end) of each document.
        The separator inside a text is only a space; half of a surrogate pair, which no UTF-8 holds, a question mark.
        """
        for group in batches(documents, characters=2_000_000):
            texts = [text.replace(END_OF_TEXT, " ").encode("utf-8", "replace").decode() for _, text in group]
            encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for (name, _), encoding in zip(group, encoded, strict=True):
                yield split_of(name), np.array([*encoding.ids, self.end])


def lossless(tokenizer: Tokenizer) -> bool:
    """Whether a text of nearly every byte, as the tokenizer's own normalizer leaves it, is in its tokens."""
    text = f"{PROBE} two  lines\r\n\tand 漢字 🙂 "
    normal = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
    cut = tokenizer.pre_tokenizer
    pieces = [normal] if cut is None else [piece for piece, _ in cut.pre_tokenize_str(normal)]
    found = "".join(token.value for piece in pieces for token in tokenizer.model.tokenize(piece))
    wanted = (normal, in_bytes(normal))  # a normalizer may be the one that turns text into bytes
    return found.removeprefix("Ġ") in (each.removeprefix("Ġ") for each in wanted)  # a space may be put before


def in_bytes(text: str) -> str:
    """The text's UTF-8, a character of ByteLevel's alphabet per byte."""
    return "".join(part for part, _ in ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text))


def write(source: Source, encoder: Encoder, context: int, folder: Path) -> None:
    dtype = np.dtype(np.uint16 if encoder.vocabulary <= 2**16 else np.uint32)
    names: dict[str, int] = dict.fromkeys(SPLITS, 0)
    written: dict[str, int] = dict.fromkeys(SPLITS, 0)
    with progress("packing text", source.max_tokens) as advance, ExitStack() as stack:
        kinds = ("tokens", "documents")
        files = {(s, kind): stack.enter_context((folder / f"{s}.{kind}").open("wb")) for s in SPLITS for kind in kinds}
        full = False
        for split, ids in encoder(source.documents()):
            files[split, "tokens"].write(ids.astype(dtype).tobytes())
            files[split, "documents"].write(np.full(len(ids), names[split], np.int32).tobytes())
            names[split] += 1
            written[split] += len(ids)
            advance(len(ids))
            full = source.max_tokens is not None and sum(written.values()) >= source.max_tokens
            if full:
                break
    rows = {split: written[split] // context for split in SPLITS}
    if not all(rows.values()):
        raise ValueError(too_little(source, names, written, context, full))
    for split in SPLITS:
        for kind, size in (("tokens", dtype.itemsize), ("documents", 4)):
            os.truncate(folder / f"{split}.{kind}", rows[split] * context * size)
        tokens = np.memmap(folder / f"{split}.tokens", dtype, "r")
        counts = np.zeros(encoder.vocabulary, np.int64)
        for start in range(0, len(tokens), 2**24):  # bincount makes 8 bytes of each token
            counts += np.bincount(tokens[start : start + 2**24], minlength=len(counts))
        counts.tofile(folder / f"{split}.counts")
    about = {"dtype": dtype.name, "vocabulary": encoder.vocabulary, "rows": rows, "documents": names, "sha256": {}}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            about["sha256"][path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / "text.json").write_text(json.dumps(about, indent=2))


def too_little(source: Source, names: dict[str, int], written: dict[str, int], context: int, full: bool) -> str:
    """What is missing, and what helps: documents go whole to one split, so longer ones make no split that has none."""
    split = next(s for s in SPLITS if written[s] < context)
    if full:
        remedy = f"raise text.max_tokens={source.max_tokens}"
    elif not names[split]:
        remedy = f"give more documents, not longer ones: of ten, about one is for {split} ({source.more})"
    else:
        remedy = f"give more or longer documents ({source.more}), or a smaller model.context"
    shares = ", ".join(f"{s} {names[s]}" for s in SPLITS)
    return (
        f"text: {sum(names.values())} documents ({shares}) leave {written[split]} tokens in split {split}, "
        "less than one row "
        f"of {context}; {remedy}"
    )


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
