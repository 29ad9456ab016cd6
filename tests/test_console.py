"""No name from elsewhere acts on a terminal, whatever prints it and whatever the terminal can show."""

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

from rayscope.console import Terminal, progress
from rayscope.escapes import HIDDEN, one_line, visible

HOSTILE = "a\x1b]0;owned\x07\u202eb\u2066\x00\u200b\udc80\x9b31m\rc"
LETTERS = "día 日本語 Ελλάδα עברית हिन्दी"


def terminal(encoding: str = "utf-8", **options) -> tuple[Terminal, io.BytesIO]:
    raw = io.BytesIO()
    return Terminal(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=200, **options), raw


def unsafe(text: str) -> list[str]:
    return [c for c in text if c != "\n" and unicodedata.category(c) in HIDDEN]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(text=st.text(max_size=40))
def test_whatever_is_printed_is_visible(text):
    for encoding in ("utf-8", "ascii", "latin-1"):
        console, raw = terminal(encoding)
        console.print(text, soft_wrap=True)
        table = Table(title=text)
        table.add_column(text)
        table.add_row(text)
        console.print(table)
        assert unsafe(raw.getvalue().decode(encoding)) == []


@settings(deadline=None, derandomize=True, max_examples=200)
@given(text=st.text(max_size=40))
def test_one_line_is_one(text):
    assert len(one_line(text).splitlines()) <= 1
    assert unsafe(one_line(text)) == []
    assert visible(visible(text)) == visible(text)


def test_letters_stay_and_the_rest_is_an_escape():
    console, raw = terminal()
    console.print(f"{LETTERS} {HOSTILE} [red]no markup[/red] :smile:", soft_wrap=True)
    shown = raw.getvalue().decode()
    assert shown.startswith(LETTERS)
    assert r"a\x1b]0;owned\u202eb\u2066\x00\u200b\udc80\x9b31m" in shown  # rich drops the bell
    assert "[red]no markup[/red] :smile:" in shown
    assert visible("\ufe0f\u3164x") == r"\ufe0f\u3164x"


def test_an_ascii_terminal_gets_escapes_of_letters_too():
    console, raw = terminal("ascii")
    console.print("día 日")
    assert raw.getvalue() == rb"d\xeda \u65e5" + b"\n"


def test_the_progress_bar_shows_no_escape_of_a_name():
    console, raw = terminal(force_terminal=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayscope.console.console", console)
        with progress(f"[b]{HOSTILE}", 10) as advance:
            advance(10)
    shown = raw.getvalue().decode()
    assert r"[b]a\x1b]0;owned" in shown
    assert "\x07" not in shown
    assert "\x1b]" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "1"}])
def test_the_error_line_of_a_folder_with_a_hostile_name(tmp_path, environment):
    name = os.fsdecode(b"\x1b[2Jx\xe2\x80\xae\xff\nrayscope: done")
    folder = tmp_path / name
    folder.mkdir()
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from rayscope.cli.command_line import perform, main; main(sys.argv[1:])",
            name,
        ],
        capture_output=True,
        cwd=Path(tmp_path),
        env=os.environ | environment,
        check=False,
    )
    assert told.returncode == 1
    assert told.stdout == b""
    lines = told.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(b"rayscope: no command ")
    assert b"\x1b" not in told.stderr
    assert "\u202e".encode() not in told.stderr
