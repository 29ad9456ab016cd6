import copy
import csv
import io
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayscope.files import PARTIAL
from rayscope.model import LanguageModel
from rayscope.text import SPLITS, Docs, Document, Files, Hub, pack, split_of
from rayscope.text.docs import paragraphs
from rayscope.text.packing import Damaged, Encoder, read
from rayscope.text.readers import PIECE

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
        words = "bad.parquet is not a whole parquet file"
    else:
        start = {"jsonl": b'{"text": "', "csv": b"text\n"}.get(kind, b"")
        path.write_bytes(start + "café".encode("latin-1") + (b'"}' if kind == "jsonl" else b""))
        words = rf"bad.{kind} line {2 if kind == 'csv' else 1} is not UTF-8"
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


def words_of(texts) -> list[str]:
    return " ".join(texts).split()


@pytest.mark.parametrize(
    ("line", "join", "ends"),
    [
        ("one document of one line. It has sentences. " * 25, "\n", "sentences."),  # one document a line
        ("a giant line of sentences. " * 40, " ", "sentences."),
        ("words and no sentence " * 50, " ", ""),
        ("漢字漢字漢字漢字。" * 100, "", "。"),
        ("x" * 1000, "", ""),  # nothing to cut at
    ],
)
def test_a_txt_without_blank_lines_is_cut_too(tmp_path: Path, line: str, join: str, ends: str):
    text = "A title.\n\n" + join.join([line.strip()] * 100)
    (tmp_path / "one.txt").write_text(text)
    texts = [d.text for d in Files(str(tmp_path / "one.txt")).documents()]
    assert words_of(texts) == words_of([text]) if join else "".join(texts) == text
    assert all(PIECE <= len(part) <= 2 * PIECE for part in texts[1:-1])
    assert len(texts) > 4
    assert all(part.endswith(ends) for part in texts)


def test_a_paragraph_of_two_pieces_stays_whole(tmp_path: Path):
    """As every document did before long ones were cut, so that none changes its split."""
    whole = ("A sentence that ends. " * 1000)[: 2 * PIECE].strip()
    (tmp_path / "one.txt").write_text(f"{whole}\n\n{whole}x")
    assert [d.text for d in Files(str(tmp_path / "one.txt")).documents()] == [whole, f"{whole}x"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('id,text\n1,fine\n2,"a quote that never ends\n3,lost\n', "row that begins at .*a.csv line 3 is not CSV"),
        ('id,text\n1,"a quote" that ends\n', "row that begins at .*a.csv line 2 is not CSV"),
        (
            'id,text\n1,"two\nlines"\n2,hello, world\n',
            "row that begins at .*a.csv line 4 and the header have 3 and 2 fields",
        ),
        ("id,text\n1,one\n2\n", "row that begins at .*a.csv line 3 and the header have 1 and 2 fields"),
        ("id,text\n1,half \r other half\n", "row that begins at .*a.csv line 3 and the header have 1 and 2 fields"),
        ("text,id\none,1, ,more\n", "row that begins at .*a.csv line 2 and the header have 4 and 2 fields"),
        ("id;text\n1;one\n", "it has id;text; its columns are separated by semicolons"),
        ("id\ttext\n1\tone\n", "it has id\ttext; its columns are separated by tabs"),
        ("id, text\n1, one\n", "no such column; it has ' text'$"),
        ("id,text\n1,nul \0 inside\n", "row that begins at .*a.csv line 2 holds a NUL byte"),
        ("text,text\none,two\n", "the header, .*a.csv line 1, has 2 columns of that name"),
        ("id,text\n", "a.csv holds no text"),
        ("id,text\n1,\n", "a.csv holds no text"),
        ("1,It is a row of the text itself.\n", r"has no such column; it has 1, It is a row of the t\.\.\.$"),
    ],
)
def test_a_csv_is_read_strictly(tmp_path: Path, content: str, said: str):
    (tmp_path / "a.csv").write_bytes(content.encode())
    with pytest.raises(ValueError, match=rf"^text.(files|column=text): [^\n]*{said}"):
        list(Files(str(tmp_path / "a.csv")).documents())


def test_rows_of_a_csv_that_lose_no_text_are_read(tmp_path: Path):
    rows = ["id,text,label", "1,one,x", "2,two", "3,three,,, ", "", " ,", "   ", "4,,x", '5,"five, and\nmore"']
    (tmp_path / "a.csv").write_text("\n".join(rows))
    assert [d.text for d in Files(str(tmp_path / "a.csv")).documents()] == ["one", "two", "three", "five, and\nmore"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_txt_in_another_encoding_whose_bytes_are_utf8_is_refused(tmp_path: Path, encoding: str):
    (tmp_path / "a.txt").write_bytes("Each of these bytes is UTF-8.".encode(encoding))
    with pytest.raises(ValueError, match=r"^text.files: .*a.txt is UTF-16 or UTF-32, or no text; convert it to UTF-8"):
        list(Files(str(tmp_path / "a.txt")).documents())


def test_jsonl_files_with_byte_order_marks_may_be_joined(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "one"}\n\ufeff{"text": "two"}\n', encoding="utf-8")
    assert [d.text for d in Files(str(tmp_path / "a.jsonl")).documents()] == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"text": "a"} rest',
            "line 2 is not JSON .Extra data.; each line is one object, such as {.text.: .\\.\\.\\..}$",
        ),
        ('{"text": "a", "text": "b"}', "line 2 cannot be read .it has 'text' twice"),
        ('{"text": NaN}', "line 2 holds float, not text"),
        ('[{"text": "a"}]', "line 2 is not an object with a column 'text'"),
        ('{"id": ' + "9" * 5000 + ', "text": "a"}', "line 2 cannot be read .Exceeds the limit"),
        ("[" * 100_000, "line 2 cannot be read .maximum recursion|line 2 is not JSON"),
        ('{"body": "a"}', "line 2 has no such column; it has body"),
    ],
)
def test_a_jsonl_is_read_strictly(tmp_path: Path, line: str, said: str):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"^text.(files|column=text): [^\n]*({said})"):
        list(Files(str(tmp_path / "a.jsonl")).documents())


def parquet(path: Path, columns: dict, **options) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_a_parquet_file_damaged_further_on_says_after_which_row(tmp_path: Path):
    import pyarrow.parquet

    texts = [f"{n} {n * n}" for n in range(256)]
    path = parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=64, use_dictionary=False)
    place = pyarrow.parquet.read_metadata(path).row_group(2).column(0).data_page_offset
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
    with pytest.raises(ValueError, match=r"^text.files: [^\n]*a.parquet is damaged after row 128 "):
        list(Files(str(path)).documents())


def test_a_flipped_bit_in_a_parquet_file_with_checksums_is_noticed(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", {"text": TEXTS}, compression="none", write_page_checksum=True)
    whole = path.read_bytes()
    assert whole.count(b"The last one.") > 0
    path.write_bytes(whole.replace(b"The last one.", b"The lost one."))
    with pytest.raises(ValueError, match=r"^text.files: [^\n]*a.parquet is not a whole parquet file \(.*checksum"):
        list(Files(str(path)).documents())


def test_a_parquet_file_that_is_not_utf8_or_has_the_column_twice(tmp_path: Path):
    import pyarrow

    broken = pyarrow.array([b"fine", b"caf\xe9"]).view(pyarrow.string())
    with pytest.raises(ValueError, match=r"^text.files: [^\n]*a.parquet row 2 is not UTF-8"):
        list(Files(str(parquet(tmp_path / "a.parquet", {"text": broken}))).documents())
    pair = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["text", "text"])
    pyarrow.parquet.write_table(pair, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"^text.column=text: .*b.parquet has 2 columns of that name"):
        list(Files(str(tmp_path / "b.parquet")).documents())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"files": 5}, "text.files: 5 is not a path"),
        ({"files": None}, "text.files: None is not a path"),
        ({"files": ["a.txt", None]}, "text.files: None is not a path"),
        ({"files": [""]}, "text.files: '' is not a path"),
        ({"files": "~nobody_at_all/a.txt"}, "no file matches '~nobody_at_all/a.txt'"),
        ({"files": "folder"}, "folder is a folder; give its files, such as folder/"),
        ({"files": "pipe.txt"}, "pipe.txt is not a plain file"),
        ({"files": "a.txt", "column": None}, "text.column=None: give the name"),
        ({"files": "a.txt", "column": ""}, "text.column=: give the name"),
    ],
)
def test_what_is_no_file_or_column_is_one_line(tmp_path: Path, monkeypatch, given: dict, said: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match=f"^(text.files: )?{said}"):
        Files(**given)


def test_a_column_may_have_a_number_for_a_name(tmp_path: Path):
    (tmp_path / "a.csv").write_text("0,1\nzero,one\n")
    assert [d.text for d in Files(str(tmp_path / "a.csv"), column=0).documents()] == ["zero"]  # type: ignore[arg-type]


def strict(kind: str, content: bytes) -> list[str] | None:
    """The texts that a plain strict reader gives; None if it refuses."""
    try:
        text = content.decode("utf-8-sig")
        if kind == "jsonl":
            rows = [json.loads(line) for line in re.split("\r\n|\r|\n", text) if line.strip()]
            texts = [row["text"] for row in rows]
        else:
            header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
            rows = [row for row in rows if "".join(row).strip()]
            if any("".join(row[len(header) :]).strip() for row in rows):
                return None
            texts = [dict(zip(header, row, strict=False))["text"] for row in rows]
    except (ValueError, KeyError, TypeError, csv.Error, RecursionError):
        return None
    return texts


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["jsonl", "csv"]), place=st.integers(0, 150), junk=st.none() | st.binary(max_size=3))
def test_a_file_cut_or_overwritten_anywhere_is_one_line_or_what_a_strict_reader_gives(tmp_path, kind, place, junk):
    whole = written(tmp_path, kind, TEXTS).read_bytes()
    content = whole[:place] + (b"" if junk is None else junk + whole[place + len(junk) :])
    path = tmp_path / f"damaged.{kind}"
    path.write_bytes(content)
    said, texts = "", None
    try:
        texts = [d.text for d in Files(str(path)).documents()]
    except ValueError as error:
        said = str(error)
    assert re.fullmatch(rf"(text.(files|column=text): [^\n]*{path}.*)?", said)
    expected = strict(kind, content)
    if texts is not None:
        assert texts == [text for text in expected or [] if text and not text.isspace()]
    elif any(not isinstance(text, str) or text.strip() for text in expected or []):
        assert any(not isinstance(text, str) for text in expected) or b"\0" in content or "twice" in said


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1200), junk=st.none() | st.binary(min_size=1, max_size=3))
def test_a_parquet_file_cut_or_overwritten_anywhere_is_no_traceback(tmp_path, place, junk):
    whole = written(tmp_path, "parquet", TEXTS).read_bytes()
    path = tmp_path / "damaged.parquet"
    path.write_bytes(whole[:place] + (b"" if junk is None else junk + whole[place + len(junk) :]))
    said = ""
    try:
        list(Files(str(path)).documents())
    except ValueError as error:
        said = str(error)
    assert re.fullmatch(rf"(text.(files|column=text): [^\n]*{path}.*)?", said)


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


def test_modules_that_cannot_be_read_are_left_out(package: Path):
    source = Docs(("fakelib",), standard_library=False)
    before, fingerprint = list(source.documents()), source.fingerprint()
    (package / "not_utf8.py").write_bytes(b'"""' + sentence("café").encode("latin-1") + b'"""')
    (package / "nul.py").write_bytes(b'"""' + sentence("nul").encode() + b'"""\0')
    (package / "gone.py").symlink_to("nowhere.py")
    (package / "folder.py").mkdir()
    os.mkfifo(package / "pipe.py")
    (package / "deep.py").write_text(f'"""{sentence("deep")}"""\nx = ' + "(" * 5000 + ")" * 5000)
    (package / "long.py").write_text("if x:\n    pass\n" + "elif x:\n    pass\n" * 3000 + f'"""{sentence("long")}"""')
    (package / os.fsdecode(b"name_\xff.py")).write_text(f'"""{sentence("name")}"""')
    after = [d for d in source.documents() if d.name != "fakelib." + os.fsdecode(b"name_\xff")]
    assert after == before
    assert source.fingerprint() != fingerprint


@pytest.mark.parametrize("name", ["nowhere_at_all", "", "fakelib.inner", 5, None, "../x"])
def test_a_package_that_is_none_is_one_line(package: Path, name):
    with pytest.raises(ValueError, match=rf"^text.packages: {name!r} is not an installed package"):
        Docs([name], standard_library=False).fingerprint()


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

    more = "a document is a name and a text"

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
    with pytest.raises(
        ValueError,
        match=r"\d+ documents \(train \d+, validation 0, test 0\) leave 0 tokens in split validation, "
        r"less than one row of 16; "
        "give more documents, not longer ones: of ten, about one is for validation .a document is a name and a text.$",
    ):
        pack(Texts(trains), model.tokenizer, 16, tmp_path)
    assert list((tmp_path / "text").iterdir()) == []


def with_state(folder: Path, tokenizer, **changes):
    """The tokenizer, saved with this in its tokenizer.json, as `load` reads it."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"] |= changes.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps(state | changes))
    return AutoTokenizer.from_pretrained(folder)


CALL_STATE = {
    "truncation": {"truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 2}},
    "padding": {
        "padding": {
            "strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        }
    },
    "separators around a text": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        }
    },
    "dropout": {"model": {"dropout": 0.5}},
}  # fmt: skip


@pytest.mark.parametrize("name", CALL_STATE)
def test_what_a_tokenizer_was_last_called_with_changes_nothing(model: LanguageModel, tmp_path: Path, name: str, capfd):
    given = documents(120)
    plain = pack(Texts(given), model.tokenizer, 16, tmp_path / "cache")
    changed = with_state(tmp_path / "tokenizer", model.tokenizer, **CALL_STATE[name])
    found = pack(Texts(given), changed, 16, tmp_path / "cache")
    assert found.fingerprint == plain.fingerprint
    other = pack(Texts(given), changed, 16, tmp_path / "other")
    for split in SPLITS:
        assert np.array_equal(other[split].tokens, plain[split].tokens)
    assert ("dropout=0.5 draws tokens at random" in capfd.readouterr().err) == (name == "dropout")


def test_calling_a_tokenizer_changes_no_packed_text(model: LanguageModel, tmp_path: Path):
    tokenizer = copy.deepcopy(model.tokenizer)
    before = Encoder.of(tokenizer).rules
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["house river"], truncation=True, max_length=2, padding="max_length")
    assert tokenizer.backend_tokenizer.truncation is not None
    assert Encoder.of(tokenizer).rules == before


@pytest.mark.parametrize(
    "changes", [{"normalizer": {"type": "Lowercase"}}, {"model": {"merges": []}}, {"model": {"ignore_merges": True}}]
)
def test_what_tokens_depend_on_is_in_the_fingerprint(model: LanguageModel, tmp_path: Path, changes: dict):
    assert Encoder.of(with_state(tmp_path, model.tokenizer, **changes)).rules != Encoder.of(model.tokenizer).rules


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                ],
            }
        },
    ],
)
def test_a_tokenizer_that_drops_characters_silently_is_refused(model: LanguageModel, tmp_path: Path, changes: dict):
    with pytest.raises(ValueError, match=r"^tokenizer: its tokens do not hold every character, [^\n]*$"):
        Encoder.of(with_state(tmp_path, model.tokenizer, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {
            "normalizer": {"type": "ByteLevel"},
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"String": "Ġ"},
                "behavior": "MergedWithNext",
                "invert": False,
            },
        },
    ],
)
def test_a_tokenizer_of_other_rules_that_keeps_every_character_is_not(
    model: LanguageModel, tmp_path: Path, changes: dict
):
    tokenizer = with_state(tmp_path, model.tokenizer, **changes)
    tokenizer.add_tokens(["  ", "漢"])
    assert Encoder.of(tokenizer).vocabulary == len(model.tokenizer) + 2


def test_a_tokenizer_that_would_lose_characters_is_refused(model: LanguageModel, tmp_path: Path):
    state = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]
    vocab = {("~~" if token == "h" else token): number for token, number in state["vocab"].items()}
    merges = [m for m in state["merges"] if "h" not in "".join(m)]
    vocab = {token: number for token, number in vocab.items() if "h" not in token or token == "<|endoftext|>"}
    changed = with_state(tmp_path, model.tokenizer, model={"vocab": vocab, "merges": merges})
    with pytest.raises(ValueError, match="1 of 256 bytes have no token, such as 'h'; text would be lost"):
        pack(Texts(documents(120)), changed, 16, tmp_path / "cache")


# what is packed


@pytest.fixture(scope="module")
def cached(model: LanguageModel, tmp_path_factory) -> Path:
    return pack(Texts(documents(120)), model.tokenizer, 16, tmp_path_factory.mktemp("cache")).folder


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "longer":
        path.write_bytes(whole + whole[:32])
    elif how == "a bit":
        path.write_bytes(whole[:100] + bytes([whole[100] ^ 4]) + whole[101:])
    else:
        path.write_bytes(how.encode())


@pytest.mark.parametrize(
    ("file", "how"),
    [
        *((f"{split}.{kind}", "a bit") for split in SPLITS for kind in ("tokens", "documents", "counts")),
        *(("train.tokens", how) for how in ("gone", "cut", "longer", "")),
        ("test.counts", "cut"),
        *(("text.json", how) for how in ("cut", "", "{}", "[]", "null",
         "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))),
        ("text.json",
         '{"dtype": "object0", "vocabulary": 9, "rows": {"train": 1, "validation": 1, "test": 1}, "sha256": {}}'),
        ("text.json", '{"dtype": 5, "vocabulary": "x", "rows": 7, "sha256": []}'),
    ],
)  # fmt: skip
def test_damaged_packed_text_is_said_and_packed_again(cached, model, tmp_path, capfd, file, how):
    shutil.copytree(cached, tmp_path / "text" / cached.name)
    damage(tmp_path / "text" / cached.name / file, how)
    packed = pack(Texts(documents(120)), model.tokenizer, 16, tmp_path)
    said = capfd.readouterr().err
    assert said.count("\n") == 2
    assert f"text: {packed.folder} is damaged ({file} " in said
    assert {p.name: p.read_bytes() for p in packed.folder.iterdir()} == {
        p.name: p.read_bytes() for p in cached.iterdir()
    }
    capfd.readouterr()
    pack(Texts(documents(120)), model.tokenizer, 16, tmp_path)
    assert capfd.readouterr().err == ""


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1500), junk=st.none() | st.sampled_from([b"0", b"9", b'"', b"}", b"\xff", b"-", b"e5"]))
def test_a_text_json_cut_or_overwritten_anywhere_is_never_believed(cached, tmp_path, place, junk):
    """Unless what is overwritten says the same, or what nobody reads."""
    folder = tmp_path / "text"
    shutil.copytree(cached, folder, dirs_exist_ok=True)
    whole = (folder / "text.json").read_bytes()
    (folder / "text.json").write_bytes(whole[:place] + (b"" if junk is None else junk + whole[place + len(junk) :]))
    with suppress(Damaged):
        found = read(folder, "", 16)
        for split in SPLITS:
            assert found[split].tokens.tobytes() == (cached / f"{split}.tokens").read_bytes()
            assert found[split].counts.tobytes() == (cached / f"{split}.counts").read_bytes()


def test_damaged_packed_text_whose_source_is_gone_is_one_line(cached, model, tmp_path):
    shutil.copytree(cached, tmp_path / "text" / cached.name)
    damage(tmp_path / "text" / cached.name / "train.tokens", "cut")
    with pytest.raises(OSError, match="on fire"):
        pack(Texts(documents(120), fail_after=0), model.tokenizer, 16, tmp_path)
    assert (tmp_path / "text" / cached.name / "text.json").is_file()


def test_a_text_that_changes_while_it_is_packed_is_refused(model: LanguageModel, tmp_path: Path):
    class Changing(Texts):
        def fingerprint(self) -> str:
            return f"read {self.reads} times"

    with pytest.raises(ValueError, match="text: it changed while it was packed; give the same command again"):
        pack(Changing(documents(120)), model.tokenizer, 16, tmp_path)
    assert list((tmp_path / "text").iterdir()) == []


def test_another_process_that_packs_the_same_meanwhile_is_not_disturbed(model: LanguageModel, tmp_path: Path):
    class Slow(Texts):
        def documents(self) -> Iterator[Document]:
            yield from self.given[:60]
            first.append(pack(Texts(self.given), model.tokenizer, 16, tmp_path))
            stamps.append(first[0].folder.stat().st_ino)
            yield from self.given[60:]

    first, stamps = [], []
    second = pack(Slow(documents(120)), model.tokenizer, 16, tmp_path)
    assert second.folder == first[0].folder
    assert second.folder.stat().st_ino == stamps[0]
    assert [path.name for path in (tmp_path / "text").iterdir()] == [second.folder.name]


def test_what_a_killed_packing_left_is_swept(model: LanguageModel, tmp_path: Path):
    left = tmp_path / "text" / f".abc-12345678{PARTIAL}"
    left.mkdir(parents=True)
    (left / "train.tokens").write_bytes(b"half")
    os.utime(left, (0, 0))
    packed = pack(Texts(documents(120)), model.tokenizer, 16, tmp_path)
    assert list((tmp_path / "text").iterdir()) == [packed.folder]


@pytest.mark.parametrize("limit", [0, -1, "20k", 2.5, True])
def test_max_tokens_is_a_whole_number(model: LanguageModel, tmp_path: Path, limit):
    with pytest.raises(ValueError, match=rf"^text.max_tokens={limit}: a whole number, at least 1"):
        pack(Texts(documents(120), max_tokens=limit), model.tokenizer, 16, tmp_path)


def test_too_little_text_says_what_helps(model: LanguageModel, tmp_path: Path):
    with pytest.raises(ValueError, match=r"\(train \d+, validation \d, test \d\) .*; raise text.max_tokens=300$"):
        pack(Texts(documents(60), max_tokens=300), model.tokenizer, 128, tmp_path)
    with pytest.raises(ValueError, match=r"; give more or longer documents .*, or a smaller model.context$"):
        pack(Texts(documents(60)), model.tokenizer, 10_000, tmp_path)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"text": "house river " * 900 + str(n)}) + "\n" for n in range(3)))
    with pytest.raises(ValueError, match=r"3 documents .*give more documents, not longer ones.*a row of a .jsonl"):
        pack(Files(str(few)), model.tokenizer, 16, tmp_path)


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


def test_a_row_that_cannot_be_read_and_one_without_the_column_are_named(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def rows():
        yield {"text": "fine"}
        raise ConnectionError("the line is cut\nTry again later.")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    with pytest.raises(
        ValueError, match=r"^text.dataset=some/data: row 2 cannot be read \(ConnectionError: the line is cut\)$"
    ):
        list(Hub("some/data").documents())
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": "fine"}, {"body": "x"}])
    with pytest.raises(ValueError, match=r"^text.column=text: some/data row 2 has no such column; it has body$"):
        list(Hub("some/data").documents())


def test_a_folder_of_save_to_disk_says_what_to_do(tmp_path: Path):
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})}).save_to_disk(tmp_path / "dict")
    for name in ("saved", "dict"):
        with pytest.raises(
            ValueError, match=rf"^text.dataset={tmp_path / name}: a folder that .* save_to_disk wrote; write parquet"
        ):
            Hub(str(tmp_path / name))


def test_a_local_folder_is_known_by_its_files(tmp_path: Path):
    written(tmp_path, "jsonl", TEXTS)
    source = Hub(str(tmp_path))
    assert [d.text for d in source.documents()] == TEXTS
    before = source.fingerprint()
    written(tmp_path, "jsonl", TEXTS[::-1])
    assert source.fingerprint() != before


@pytest.mark.parametrize("name", ["", None, True])
def test_a_dataset_has_a_name(name):
    with pytest.raises(ValueError, match=rf"^text.dataset={name}: give a name$"):
        Hub(name)
