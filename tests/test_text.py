import csv
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayscope.model import LanguageModel
from rayscope.text import SPLITS, Docs, Document, Files, Hub, pack, split_of
from rayscope.text.docs import paragraphs
from rayscope.text.files import PIECE

TEXTS = ["The first text,\nof two lines.", 'A "quoted", é, 漢字 text.\n\nWith a second paragraph.', "The last one."]


# splits


def test_splits_are_shared_80_10_10_and_never_move():
    counts = {split: 0 for split in SPLITS}
    for number in range(20_000):
        counts[split_of(f"name{number}")] += 1
    assert counts["train"] / 20_000 == pytest.approx(0.8, abs=0.01)
    assert counts["validation"] / 20_000 == pytest.approx(0.1, abs=0.01)
    by_name = {
        "train": ["json", "ast", "torch.nn"],
        "validation": ["array", "html", "http"],
        "test": ["enum", "cgi", "hmac"],
    }
    assert {split: [split_of(name) for name in names] for split, names in by_name.items()} == {
        split: [split] * 3 for split in SPLITS
    }  # json's sha256 begins with 02, of 256; the border of train is at cc
    assert split_of("half a pair \ud83d") in SPLITS


# files


def written(folder: Path, kind: str, texts: list, column: str = "text") -> Path:
    path = folder / f"documents.{kind}"
    if kind == "txt":
        path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"id": 1, column: text}) for text in texts) + "\n\n", encoding="utf-8")
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", column], *(["1", text] for text in texts)])
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(texts), column: texts}), path)
    return path


KINDS = ("txt", "jsonl", "csv", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_all_types_give_the_same_documents(tmp_path: Path, kind: str):
    found = list(Files(str(written(tmp_path, kind, [*TEXTS, "   "]))).documents())
    assert [document.text for document in found] == TEXTS  # the blank one is none
    assert found == list(Files([str(written(tmp_path, "jsonl", TEXTS))]).documents())  # names too


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_column_is_chosen_and_a_row_without_text_left_out(tmp_path: Path, kind: str):
    path = written(tmp_path, kind, [TEXTS[0], None, TEXTS[2]], "prose")
    assert [d.text for d in Files(str(path), column="prose").documents()] == [TEXTS[0], TEXTS[2]]
    with pytest.raises(ValueError, match=r"text.column=proze: .*documents.* has no such column; it has prose$"):
        list(Files(str(path), column="proze").documents())
    if kind != "csv":  # where all is text
        with pytest.raises(ValueError, match=r"text.column=id: .* holds int, not text"):
            list(Files(str(path), column="id").documents())


@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_are_named(tmp_path: Path, kind: str):
    path = tmp_path / f"bad.{kind}"
    with pytest.raises(ValueError, match=rf"no file matches '.*bad.{kind}'"):
        Files(str(path))
    path.touch()
    with pytest.raises(ValueError, match=rf"bad.{kind} is empty"):
        Files(str(path))
    if kind == "parquet":
        path.write_bytes(b"PAR1 it is not")
        words = "bad.parquet is not a parquet file"
    else:
        start = {"jsonl": b'{"text": "', "csv": b"text\n"}.get(kind, b"")
        path.write_bytes(start + "café".encode("latin-1") + (b'"}' if kind == "jsonl" else b""))
        words = rf"bad.{kind} is not UTF-8"
    with pytest.raises(ValueError, match=words):
        list(Files(str(path)).documents())


def test_other_types_no_files_and_broken_lines(tmp_path: Path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ValueError, match=r"a.pdf is of type '.pdf'; readable are .txt, .jsonl, .csv, .parquet"):
        Files(str(tmp_path / "*.pdf"))
    with pytest.raises(ValueError, match=r"text.files is empty"):
        Files([])
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"\n')
    with pytest.raises(ValueError, match=r"a.jsonl line 2 is not JSON"):
        list(Files(str(tmp_path / "a.jsonl")).documents())
    (tmp_path / "a.jsonl").write_text('["text"]\n')
    with pytest.raises(ValueError, match="line 1 is not an object with a column 'text'"):
        list(Files(str(tmp_path / "a.jsonl")).documents())


def test_patterns_are_sorted_names_may_hold_brackets_and_a_byte_order_mark_is_no_text(tmp_path: Path):
    for name in ("b.txt", "a.txt", "c[1].txt"):
        (tmp_path / name).write_text(f"in {name}")
    (tmp_path / "d.csv").write_text("text\nin d.csv\n", encoding="utf-8-sig")
    found = Files([str(tmp_path / p) for p in ("[ab].txt", "c[1].txt", "*.csv")])
    assert [d.text for d in found.documents()] == ["in a.txt", "in b.txt", "in c[1].txt", "in d.csv"]


def test_a_long_txt_is_cut_at_blank_lines_and_loses_nothing(tmp_path: Path):
    parts = [f"Paragraph {n}. " + "word " * 200 + "end." for n in range(40)]
    (tmp_path / "long.txt").write_text("\n\n".join(parts))
    texts = [d.text for d in Files(str(tmp_path / "long.txt")).documents()]
    assert "\n\n".join(texts) == "\n\n".join(parts)
    assert all(PIECE <= len(text) < PIECE + 1100 for text in texts[:-1])
    assert len(texts) > 3


# documentation


def sentence(seed: str) -> str:
    return f"The {seed} reads what a person wrote for another person, and it says so in plain words."


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that cannot be imported."""
    folder = tmp_path / "fakelib"
    (folder / "inner" / "tests").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    (folder / "__init__.py").write_text(f'"""{sentence("package")}"""\nraise RuntimeError("imported")\n')
    (folder / "inner" / "tests" / "test_it.py").write_text(f'"""{sentence("test")}"""\n')
    (folder / "broken.py").write_text(f'"""{sentence("broken")}"""\ndef (:\n')
    (folder / "inner" / "mixed.py").write_text(
        f'''raise RuntimeError("imported")
"""Not a docstring, since a statement comes first in this module, though it reads as one."""


class Thing:
    """{sentence("class")}

    >>> thing = Thing()
    >>> thing.read("All of this is an example. It reads as one too, to be sure.")
    The result of it is here, and it is a sentence that ends well.

    Use ``Thing`` with :class:`~fakelib.Other` and *nothing* else, which is the rule that everyone keeps to.

    A block of code follows, and none of it is meant to be read as if it were prose::

        This stands inside the block of code, and so it is not prose at all, whatever it says.

        Nor is this second part of the same block of code, which is after a blank line.

    ======  ====================================================
    name    What the name means to the people who read the table.
    ======  ====================================================

    * An item of a list, if it is long enough to be a sentence of its own, is prose as well.

    lower case does not begin a sentence, and this is no sentence for that very reason alone.
    """

    def read(self, x):
        """Too short.

        Parameters
        ----------
        x : array_like
            The values that are to be read, in the order in which they were written by someone.
        Other : int
            The number of times that the values are to be read, which is not less than one.

        Returns
        -------
        y : array
            The values that have been read, in the very same order as they were written before.
        """
        if x:
            def inside():
                """{sentence("inner function")}"""
'''
    )
    return folder


def prose_of(documents) -> dict[str, list[str]]:
    return {name: text.split("\n\n") for name, text in documents}


def test_only_prose_comes_out_and_nothing_is_imported(package: Path):
    before = set(sys.modules)
    found = prose_of(Docs(("fakelib",), standard_library=False).documents())
    assert not {name for name in set(sys.modules) - before if name.startswith("fakelib")}
    assert found == {
        "fakelib": [sentence("package")],
        "fakelib.inner.mixed": [
            sentence("class"),
            "Use Thing with fakelib.Other and nothing else, which is the rule that everyone keeps to.",
            "An item of a list, if it is long enough to be a sentence of its own, is prose as well.",
            sentence("inner function"),
        ],
    }


def modules_by_split(each: int) -> dict[str, list[str]]:
    """Names m0, m1, ... of modules of fakelib, some for each split."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number in range(200):
        found[split_of(f"fakelib.m{number}")].append(f"m{number}")
    return {split: names[:each] for split, names in found.items()}


def test_a_paragraph_of_train_is_in_no_other_split_and_none_stands_twice(package: Path):
    names = modules_by_split(2)
    shared = {"all": sentence("one in all"), "held": sentence("one held out")}
    for split, pair in names.items():
        for name in pair:
            held = "" if split == "train" else shared["held"]
            (package / f"{name}.py").write_text(
                f'"""{shared["all"]}\n\n{sentence(name)}\n\n{held}\n\n{shared["all"]}\n"""'
            )
    documents = list(Docs(("fakelib",), standard_library=False).documents())
    where = [split_of(d.name) for d in documents for p in d.text.split("\n\n") if p == shared["all"]]
    assert where == ["train"]
    assert [split_of(d.name) for d in documents for p in d.text.split("\n\n") if p == shared["held"]] == ["validation"]
    every = [p for d in documents for p in d.text.split("\n\n")]
    assert len(every) == len(set(every))
    assert {sentence(name) for pair in names.values() for name in pair} < set(every)


def test_a_new_module_moves_no_other(package: Path):
    source = Docs(("fakelib",), standard_library=False)
    before, fingerprint = list(source.documents()), source.fingerprint()
    assert source.fingerprint() == fingerprint
    (package / "aaa.py").write_text(f'"""{sentence("new module")}"""')
    after = list(source.documents())
    assert [d for d in after if d.name != "fakelib.aaa"] == before
    assert len(after) == len(before) + 1
    assert source.fingerprint() != fingerprint


def test_documents_come_by_name_so_that_a_cap_leaves_every_split(package: Path, model: LanguageModel, tmp_path: Path):
    """Were they to come split by split, max_tokens would be reached inside train."""
    for number in range(200):
        text = "\n\n".join(sentence(f"m{number} part {part}") for part in range(4))
        (package / f"m{number}.py").write_text(f'"""{text}"""')
    capped = Docs(("fakelib",), standard_library=False, max_tokens=10_000)
    assert [d.name for d in capped.documents()] == sorted(d.name for d in capped.documents())
    packed = pack(capped, model.tokenizer, 32, tmp_path / "cache")
    assert len(packed.train) > 5 * len(packed.test) > 0
    assert len(packed.validation) > 0


def test_the_standard_library_has_prose(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdlib_module_names", frozenset({"json", "email"}))
    found = prose_of(Docs().documents())
    assert {"json", "email", "email.message", "json.decoder"} < set(found)
    assert any(name.startswith("pydoc_data.topics.") for name in found)
    every = [p for text in found.values() for p in text]
    assert len(every) > 500
    assert not any(">>>" in p or "\n" in p for p in every)
    assert any("JSON" in p for p in found["json"])


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"text.packages: 'no_such_package' is not an installed package"):
        list(Docs(("no_such_package",), standard_library=False).documents())


def test_text_after_a_block_of_code_is_prose_again():
    first, last = "See how it is done in the example below:", "After the block of code the prose goes on. It is read."
    assert (
        list(
            paragraphs(
                f"{first} One. Two::\n\n    x = 1\n\n    Inside the block. It is not prose at all, no.\n\n{last}"
            )
        )[-1]
        == last
    )


# packing


class Texts:
    """A source in memory that counts how often it is read. Each name is the split wished for, and a number."""

    def __init__(self, documents: list[Document], max_tokens: int | None = None, fail_after: int | None = None):
        self.given, self.max_tokens, self.fail_after, self.reads = documents, max_tokens, fail_after, 0

    def documents(self) -> Iterator[Document]:
        self.reads += 1
        for number, document in enumerate(self.given):
            if number == self.fail_after:
                raise OSError("the disk is on fire")
            yield document

    def fingerprint(self) -> str:
        return str(hash(tuple(self.given)))


def documents(count: int, seed: int = 0) -> list[Document]:
    rng = random.Random(seed)
    words = ["house", "river", "and", "the", "stone", "garden", "of", "light"]
    return [Document(f"d{seed}-{n}", " ".join(rng.choices(words, k=rng.randint(5, 60)))) for n in range(count)]


def expected_stream(given: list[Document], split: str, tokenizer) -> tuple[list[int], list[int]]:
    """Tokens and document numbers of a split, made in the plainest way."""
    tokens, numbers = [], []
    for number, document in enumerate(d for d in given if split_of(d.name) == split):
        ids = [*tokenizer.encode(document.text, add_special_tokens=False), tokenizer.eos_token_id]
        tokens += ids
        numbers += [number] * len(ids)
    return tokens, numbers


def test_rows_are_the_stream_of_documents_cut_at_the_context(model: LanguageModel, tmp_path: Path):
    given, tokenizer = documents(120), model.tokenizer
    packed = pack(Texts(given), tokenizer, 16, tmp_path)
    for split in SPLITS:
        rows = packed[split]
        tokens, numbers = expected_stream(given, split, tokenizer)
        whole = len(tokens) // 16 * 16
        assert isinstance(rows.tokens, np.memmap)
        assert len(rows) == len(tokens) // 16 > 1
        assert rows.tokens.shape == rows.documents.shape == (len(rows), 16)
        assert rows.tokens.ravel().tolist() == tokens[:whole]
        assert rows.documents.ravel().tolist() == numbers[:whole]
        assert rows.counts.tolist() == np.bincount(rows.tokens.ravel(), minlength=len(tokenizer)).tolist()
    with pytest.raises(ValueError, match="split=dev: there are train, validation, test"):
        packed["dev"]


def test_the_separator_inside_a_text_is_not_a_separator_and_half_a_surrogate_pair_is_no_crash(
    model: LanguageModel, tmp_path: Path
):
    given = [Document(d.name, f"{d.text}<|endoftext|>house \ud83d river") for d in documents(120)]
    rows = pack(Texts(given), model.tokenizer, 16, tmp_path).train
    end = model.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    places = (rows.tokens == end).ravel()
    ends = np.flatnonzero(np.diff(rows.documents.ravel()))  # the last token of each document
    assert places.nonzero()[0][: len(ends)].tolist() == ends.tolist()
    assert places.sum() <= len(ends) + 1
    assert "house ? river" in model.tokenizer.decode(rows.tokens[:8].ravel())


def test_packed_text_is_reused_and_repacked_when_anything_changes(model: LanguageModel, tmp_path: Path):
    path, cache = tmp_path / "text.jsonl", tmp_path / "cache"
    path.write_text("\n".join(json.dumps({"text": d.text}) for d in documents(150)))
    first = pack(Files(str(path)), model.tokenizer, 16, cache)
    stamp = first.folder.stat().st_mtime_ns

    again = Files(str(path))
    again.documents = lambda: pytest.fail("read again")  # type: ignore[method-assign]
    second = pack(again, model.tokenizer, 16, cache)
    assert (second.folder, second.fingerprint) == (first.folder, first.fingerprint)
    assert second.folder.stat().st_mtime_ns == stamp
    assert np.array_equal(second.test.tokens, first.test.tokens)

    assert pack(Files(str(path)), model.tokenizer, 8, cache).folder != first.folder
    assert pack(Files(str(path), max_tokens=4000), model.tokenizer, 8, cache).fingerprint != first.fingerprint
    path.write_text(path.read_text().replace("house", "light"))  # of the same length
    changed = pack(Files(str(path)), model.tokenizer, 16, cache)
    assert changed.fingerprint != first.fingerprint
    assert not np.array_equal(changed.train.tokens, first.train.tokens)


def test_a_failure_leaves_nothing_behind(model: LanguageModel, tmp_path: Path):
    given = documents(60)
    with pytest.raises(OSError, match="on fire"):
        pack(Texts(given, fail_after=50), model.tokenizer, 16, tmp_path)
    assert list((tmp_path / "text").iterdir()) == []
    source = Texts(documents(120))
    pack(source, model.tokenizer, 16, tmp_path)
    assert [folder.name[0] for folder in (tmp_path / "text").iterdir()] != ["."]
    assert source.reads == 1


def test_max_tokens_ends_with_the_document_that_reaches_it(model: LanguageModel, tmp_path: Path):
    given, tokenizer = documents(400), model.tokenizer
    packed = pack(Texts(given, max_tokens=5000), tokenizer, 16, tmp_path)
    sizes = np.cumsum([len(tokenizer.encode(d.text, add_special_tokens=False)) + 1 for d in given])
    reached = given[: int(np.searchsorted(sizes, 5000)) + 1]
    for split in SPLITS:
        tokens, _ = expected_stream(reached, split, tokenizer)
        assert packed[split].tokens.ravel().tolist() == tokens[: len(tokens) // 16 * 16]


def test_a_split_without_a_row_is_an_error(model: LanguageModel, tmp_path: Path):
    trains = [d for d in documents(60) if split_of(d.name) == "train"]
    with pytest.raises(ValueError, match=r"\d+ documents leave 0 tokens in split validation, less than one row of 16"):
        pack(Texts(trains), model.tokenizer, 16, tmp_path)
    assert list((tmp_path / "text").iterdir()) == []


# the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What a monkeypatched load_dataset was asked for; its rows are `documents(200)` in the column `prose`."""
    import datasets

    asked: dict = {}

    def load_dataset(path, name=None, **options):
        asked.update(path=path, name=name, **options)
        return datasets.IterableDataset.from_generator(
            lambda: ({"id": d.name, "prose": d.text} for d in documents(200))
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_dataset_is_streamed_and_packed(hub: dict, model: LanguageModel, tmp_path: Path):
    source = Hub("some/data", "plain", split="train", column="prose", revision="abc")
    fingerprint = source.fingerprint()
    assert not hub  # nothing is asked for yet
    packed = pack(source, model.tokenizer, 16, tmp_path)
    assert hub == {"path": "some/data", "name": "plain", "split": "train", "revision": "abc", "streaming": True}
    assert sum(len(packed[split]) for split in SPLITS) > 100
    assert [d.text for d in source.documents()] == [d.text for d in documents(200)]
    others = [Hub("some/data"), Hub("some/data", "plain", column="prose"), Hub("some/data", "plain", revision="abc")]
    assert len({fingerprint, *(other.fingerprint() for other in others)}) == 4


def test_a_hub_column_that_is_not_there_is_named(hub: dict):
    with pytest.raises(ValueError, match=r"text.column=pros: some/data has no such column; it has prose"):
        next(Hub("some/data", column="pros").documents())


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"^text.dataset=some/data: cannot be loaded \(ConnectionError: no route\)$"):
        next(Hub("some/data").documents())
