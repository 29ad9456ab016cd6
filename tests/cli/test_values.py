"""What a value is read as: every usual spelling of a number as that number, everything else refused."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayscope.cli.values import (  # fmt: skip
    LIMIT,
    Anything,
    FilePath,
    Flag,
    Listed,
    Number,
    Optional,
    Text,
    Whole,
    choice,
    pattern,
)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (8, 8),
        (8.0, 8),
        ("8", 8),
        ("8.0", 8),
        ("1e6", 10**6),
        (1e6, 10**6),
        ("1_000_000", 10**6),
        (" 12 ", 12),
        ("+3", 3),
    ],
)
def test_whole_numbers_in_any_spelling(value, number):
    found = Whole(1).read(value)
    assert (type(found), found) == (int, number)


@pytest.mark.parametrize(
    "value", [8.5, "8.5", "20k", "", "1 000", True, None, [8], {}, math.nan, math.inf, "inf", "1e400", 0, -3]
)
def test_what_is_no_whole_number_of_at_least_1(value):
    with pytest.raises(ValueError):  # noqa: PT011 - the option's message is made by options.read
        Whole(1).read(value)


def test_ranges_include_their_ends_and_nothing_beyond():
    assert [Whole(0, 2**32 - 1).read(end) for end in (0, 2**32 - 1)] == [0, 2**32 - 1]
    assert Number(above=0, most=1).read(1) == 1
    for type, value in [
        (Whole(0, 5), 6),
        (Whole(0, 5), -1),
        (Number(above=0, most=1), 0),
        (Number(above=0, most=1), 1.01),
    ]:
        with pytest.raises(ValueError):  # noqa: PT011
            type.read(value)
    assert Whole(0, 9).what == "a whole number from 0 to 9"
    assert Number(above=0, most=1).what == "a number above 0 and at most 1"
    assert Optional(Whole(2)).what == "a whole number of at least 2, or null"


def test_numbers_and_what_a_sweeps_agent_writes():
    assert Number().read("1e-3") == Number().read(1e-3) == Number().read("0.001") == 1e-3
    assert type(Number().read(3)) is int
    assert [Optional(Number()).read(none) for none in (None, "None", "null", "none")] == [None] * 4
    assert [Flag().read(value) for value in (True, "True", "false")] == [True, True, False]
    for value in (1, "yes", None):
        with pytest.raises(ValueError):  # noqa: PT011
            Flag().read(value)


def test_text_paths_and_lists():
    assert Text().read(0) == "0"  # a column may be named so
    assert FilePath().read("~/runs") == str(Path.home() / "runs")
    assert FilePath().read("runs/日本語 (1)") == "runs/日本語 (1)"
    assert Listed(Whole(1)).read(["8", 16.0]) == [8, 16]
    assert Listed(Text(), alone=True).read("a.txt") == "a.txt"
    assert choice("fp32", "bf16").what == "fp32 or bf16"
    assert LIMIT.read(">= 3.0") == ">= 3.0"
    for type, value in [
        (Text(), ""), (Text(), "a\x1b[31m"), (Text(), "a\0"), (Text(), None), (Text(), 1.5), (Text(), True),
        (Text(), "\udc80"),
        (FilePath(), " "), (Listed(Whole(1)), 8), (Listed(Whole(1)), [8, 0]), (choice("a", "b"), "c"), (LIMIT, "3"),
        (LIMIT, ">= x"), (pattern("a+", "as"), "b"), (choice("a", "b"), ["a"]),
    ]:  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011
            type.read(value)


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TYPES = [
    Whole(), Whole(1), Whole(0, 5), Number(), Number(above=0), Flag(), Text(), FilePath(), Anything(), LIMIT,
    choice("a", "b"),
    Optional(Whole(2)), Listed(Whole(1)), Optional(Listed(Text())), Listed(FilePath(), alone=True),
]  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(TYPES), NESTED)
def test_anything_is_read_as_the_same_value_twice_or_refused(type, value):
    try:
        found = type.read(value)
    except ValueError:
        return
    if not isinstance(type, Anything):
        assert type.read(found) == found
