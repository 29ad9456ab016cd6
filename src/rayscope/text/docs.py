"""Documentation prose that is already on the machine: docstrings of the standard library and of installed packages.

Modules are parsed (`ast`), never imported. Code, tables, doctests, signatures and parameter lists are left out; what
stays is paragraphs that people wrote to be read.
"""

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rayscope.text.documents import SPLITS, Document, split_of

ROLE = re.compile(r":[\w:+-]+:`~?!?([^`<]+?)(?:\s*<[^`>]*>)?`")
LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")
SECTION = re.compile(  # of parameters and the like, and a numpydoc entry: lists, not prose
    r"(Args|Arguments|Keyword [Aa]rg\w*|Parameters|Returns?|Yields|Raises|Attributes|Inputs|Outputs|Shape|Examples?)"
    r"\s?:\s"
    r"|\*{0,2}\w+(, ?\*{0,2}\w+)* : "
)
LARGEST = 20_000_000  # bytes: no module that people write is as large
SKIPPED = {"test", "tests", "testing", "site-packages", "dist-packages", "__pycache__", "lib2to3", "_vendor"}


@dataclass(frozen=True)
class Docs:
    """One document a module (a topic, in `pydoc_data.topics`), named by its dotted path.

    packages: top-level packages to read alongside the standard library; one that is not installed raises ValueError. A
    file that cannot be read or parsed is left out.
    """

    packages: tuple[str, ...] = ()
    standard_library: bool = True
    max_tokens: int | None = None
    more: ClassVar[str] = "a module is a document; name more text.packages"

    def documents(self) -> Iterator[Document]:
        """Documents in which no paragraph stands twice: one that is in train is dropped from validation and test."""
        found = [d for name, path in self.modules() for d in module_documents(name, read(path))]
        fresh: dict[int, list[str]] = {}
        seen: set[str] = set()
        for number in sorted(range(len(found)), key=lambda number: SPLITS.index(split_of(found[number].name))):
            fresh[number] = [p for p in dict.fromkeys(found[number].text.split("\n\n")) if p not in seen]
            seen.update(fresh[number])
        for number, document in enumerate(found):  # by name, so that the first max_tokens hold every split
            if fresh[number]:
                yield Document(document.name, "\n\n".join(fresh[number]))

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, path in self.modules():
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + hashlib.sha256(read(path)).digest())
        return digest.hexdigest()

    def modules(self) -> Iterator[tuple[str, Path]]:
        """(qualified name, source file) of every module, sorted by name."""
        if self.standard_library:
            root = Path(sysconfig.get_paths()["stdlib"])
            names = {path.stem if path.is_file() else path.name for path in root.iterdir()}
            for name in sorted((names & sys.stdlib_module_names) | {"pydoc_data"}):
                yield from python_files(name, root)
        packages = [self.packages] if isinstance(self.packages, str) else list(self.packages or ())
        for name in sorted(packages, key=str):
            spec = importlib.util.find_spec(name) if isinstance(name, str) and name.isidentifier() else None
            if spec is None or not spec.submodule_search_locations:
                raise ValueError(f"text.packages: {name!r} is not an installed package; install it or take it out")
            yield from python_files(name, Path(next(iter(spec.submodule_search_locations))).parent)


def read(path: Path) -> bytes:
    """What the file holds; nothing, if it is no plain file, not ours to read, gone by now,
    or larger than any module.
    """
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size < LARGEST else b""
    except OSError:
        return b""


def python_files(name: str, root: Path) -> Iterator[tuple[str, Path]]:
    if (root / f"{name}.py").is_file():
        yield name, root / f"{name}.py"
    for path in sorted((root / name).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not SKIPPED.intersection(parts):
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def module_documents(name: str, source: bytes) -> Iterator[Document]:
    if b'"""' not in source and b"'''" not in source and name != "pydoc_data.topics":
        return  # no docstring to find, and parsing is most of the work
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in somebody's module are not this run's warnings
        try:
            tree = ast.parse(source)
            found = list(docstrings(tree, source))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return  # templates, files for other Python versions, and those nested too deep to parse
    if name == "pydoc_data.topics":
        for topic, text in sorted(topics(tree)):
            yield Document(f"{name}.{topic}", "\n\n".join(paragraphs(text)))
        return
    text = "\n\n".join(paragraph for docstring in found for paragraph in paragraphs(docstring))
    if text:
        yield Document(name, text)


def docstrings(tree: ast.Module, source: bytes) -> Iterator[str]:
    """Docstrings in source order, then the texts given to `add_docstr` and `add_newdoc` for compiled functions."""
    for node in definitions(tree):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
    if b"add_docstr(" in source or b"add_newdoc(" in source:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if called in ("add_docstr", "add_newdoc"):
                    for inner in ast.walk(node):
                        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and "\n" in inner.value:
                            yield inspect.cleandoc(inner.value)


def definitions(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The module, its classes and functions, by statements only: expressions hold no docstrings and are most nodes."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for field in ("body", "orelse", "finalbody", "handlers"):
        for child in getattr(node, field, ()):
            if isinstance(child, ast.stmt | ast.excepthandler) and hasattr(child, "body"):
                yield from definitions(child)


def topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    yield str(key.value), str(value.value)


def paragraphs(docstring: str) -> Iterator[str]:
    """Prose paragraphs, each on one line, without markup. Blocks after `::` and anything that reads as code are out."""
    block_indent = -1  # inside a literal block or directive: lines indented deeper than this are not prose
    for block in re.split(r"\n\s*\n", docstring.expandtabs()):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        indent = min(len(line) - len(line.lstrip()) for line in lines)
        if block_indent >= 0 and indent > block_indent:
            continue
        last = lines[-1].rstrip()
        block_indent = indent if last.endswith("::") or lines[0].lstrip().startswith((".. ", ">>>", "```")) else -1
        text = " ".join(line.strip() for line in lines)
        text = LINK.sub(r"\1", ROLE.sub(r"\1", text)).replace("``", "").replace("`", "").replace("::", ":")
        text = re.sub(r"\*{1,2}(\w[^*]*)\*{1,2}", r"\1", text)
        text = re.sub(r"^[-*+•]\s+", "", re.sub(r"\s+", " ", text).strip())
        if is_prose(text):
            yield text


def is_prose(text: str) -> bool:
    """A sentence or more of eight words: starts as one, ends as one, and is made of words rather than of symbols."""
    words = text.split()
    if len(words) < 8 or not text[0].isupper() or text[-1] not in ".:?!)" or ">>>" in text:
        return False
    if SECTION.match(text) or not re.search(r"[.?!]\s", text + " "):
        return False
    plain = sum(1 for word in words if word.strip("\"'.,:;!?()").replace("-", "").isalpha())
    symbols = sum(text.count(character) for character in "=<>{}[]|\\_/#@$^~+*")
    return plain >= 0.75 * len(words) and symbols <= 0.02 * len(text) and re.search(r"[-=~^.]{4,}", text) is None
