"""The prose that ships is what its card says, and sources have names."""

import hashlib
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pyarrow.parquet
import pytest

from rayscope.model import LanguageModel, load
from rayscope.text import Docs, Files, Hub, Prose, pack, split_of
from rayscope.text.documents import name_of

FOLDER = Path(str(files("rayscope") / "assets/prose"))
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_card_names_source_licence_and_hash():
    (said,) = re.findall(r"sha256 `([0-9a-f]{64})`", CARD)
    assert said == hashlib.sha256((FOLDER / "prose.parquet").read_bytes()).hexdigest()
    assert (FOLDER / "prose.parquet").stat().st_size < 300_000
    for words in ("**Source**: Project Gutenberg", "**Licence**: public domain in the United States"):
        assert words in CARD


def test_the_passages_are_what_the_card_says():
    rows = pyarrow.parquet.read_table(FOLDER / "prose.parquet").to_pylist()
    documents = list(Prose().documents())
    assert [text for _, text in documents] == [row["text"] for row in rows]
    assert f"{len(rows)} passages" in CARD
    assert f"from {len({row['title'] for row in rows})} English books" in CARD
    counts = Counter(split_of(name) for name, _ in documents)
    assert "{train} train, {validation} validation, {test} test.".format(**counts) in CARD
    assert counts["test"] >= 20  # enough of them for intervals
    assert all(row["author"] and 4_000 <= len(row["text"]) < 9_500 for row in rows)
    assert len({row["text"] for row in rows}) == len(rows)
    assert not re.search(r"gutenberg|copyright|transcriber|http|\[|_", " ".join(row["text"] for row in rows), re.I)


def test_the_tiny_model_takes_it(tmp_path: Path):
    tiny = load("tiny")
    text = pack(Prose(), tiny.tokenizer, tiny.context, tmp_path)
    assert text.name == "prose"
    assert sum(text[split].tokens.size for split in ("train", "validation", "test")) > 180_000
    assert "190,000 tokens" in CARD
    shorter = pack(Prose(max_tokens=60_000), tiny.tokenizer, tiny.context, tmp_path)
    assert shorter.fingerprint != text.fingerprint
    assert shorter.name == "prose"


def test_a_text_has_a_name(tmp_path: Path, text_file: Path, model: LanguageModel):
    class Lines:
        pass

    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    assert name_of(Docs()) == "docs"
    assert name_of(Files(str(text_file))) == "prose.txt"
    assert name_of(Files(str(tmp_path / "*.txt"))) == "a.txt and 1 more"
    assert name_of(Hub("owner/name")) == "owner/name"
    assert name_of(Hub(str(tmp_path))) == tmp_path.name  # a folder's place is nobody's business
    assert name_of(Lines()) == "lines"
    source = Files(str(text_file))
    packs = [pack(source, model.tokenizer, model.context, tmp_path / "cache").name for _ in range(2)]
    assert packs == ["prose.txt"] * 2  # packed and found again


@pytest.mark.parametrize("kind", [Docs, Files, Hub, Prose])
def test_a_run_on_it_can_be_measured_later(kind: type):
    from rayscope.runs.settings import CALLED

    assert f"rayscope.text.{kind.__name__}" in CALLED["text"]
