"""Every key under conf/ is declared, its default is of its type,
and what is given is read as meant or refused in one line.
"""

import itertools
import re

import hydra
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from rayscope.cli.checks import check, leaves
from rayscope.cli.commands import COMMANDS
from rayscope.cli.groups import groups
from rayscope.cli.options import OPTIONS, declared, read
from rayscope.cli.overrides import ready
from rayscope.cli.values import Anything

CHOICES = [(group, choice) for group, choices in groups().items() for choice in choices]


@pytest.fixture(scope="module")
def composed() -> list[tuple[str, str, DictConfig]]:
    """Every command with every choice of its groups."""
    found = []
    with hydra.initialize_config_module("rayscope.conf", version_base="1.3"):
        for command in COMMANDS:
            has = hydra.compose(command)
            for group, choice in CHOICES:
                saved = group == "dictionaries" and command in ("evaluate", "features")
                first = command in (
                    "train",
                    "study",
                    "evaluate",
                    "demo",
                    "benchmark",
                )  # the others have the same groups
                if group in has and not saved and first:
                    value = f"[{choice}]" if group == "dictionaries" else choice
                    found.append((command, choice, hydra.compose(command, [f"{group}={value}"])))
            found.append((command, "", has))
    return found


@pytest.mark.slow
def test_every_key_is_declared_and_its_default_is_of_its_type(composed):
    seen: set[str] = set()
    for command, choice, config in composed:
        before = OmegaConf.to_container(config)
        for _, _, key in leaves(config):
            assert declared(key) is not None, (command, choice, key)
            seen.add(key)
        check(command, config)
        assert OmegaConf.to_container(config) == before, (command, choice)
    matched = {declared(key) for key in seen}
    unused = [name for name, of in OPTIONS.items() if "*" not in name and name not in seen and of not in matched]
    assert unused == []
    names = {name for name in OPTIONS if "*" not in name}
    assert names - seen <= {
        name for name in names if name.startswith(("study.run.rays.", "study.run.frozen.", "study.run.world."))
    }


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.context", "-5", "model.context=-5: a whole number of at least 2, or null"),
        ("text.max_tokens", "20k", "text.max_tokens=20k: a whole number of at least 1, or null"),
        ("dictionaries.mine.k", "1.5", "dictionaries.mine.k=1.5: a whole number of at least 1"),
        ("dictionaries.mine.seed", "null", "dictionaries.mine.seed=null: a whole number from 0 to 4294967295"),
        ("study.sizes.night.ks", "8", "study.sizes.night.ks=8: a list, each a whole number of at least 1"),
        ("precision", "fp64", "precision=fp64: fp32 or bf16"),
        ("out", "", "out=: a path, not empty"),
        ("text.column", "null", "text.column=null: a column's name, not empty"),
        ("sites.patterns", "null", "sites.patterns=null: a list"),
        ("seed", "20261125083000", "seed=20261125083000: a whole number from 0 to 4294967295"),
        ("training.checkpoint_seconds", "nan", "training.checkpoint_seconds=nan: a number of at least 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(key, value, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        ready([f"{key}={value}"])


@pytest.mark.parametrize("key", ["evaluation.draws", "evaluation.validation_tokens"])
def test_what_evaluate_can_do_without_may_be_0(key):
    assert read(key, 0) == 0


def test_an_unknown_key_has_its_nearest_named():
    with pytest.raises(ValueError, match=r"^no option 'stream.batchsize'; nearest: stream.batch_size"):
        read("stream.batchsize", 3)
    with pytest.raises(ValueError, match=r"^stream=5: not an option but several; give stream.batch_size"):
        read("stream", 5)


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
KEYS = [name.replace("*", "mine") for name, of in OPTIONS.items() if not isinstance(of, Anything)]


@pytest.mark.slow
@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from(KEYS), NESTED)
def test_any_value_of_any_option_is_read_or_refused_in_one_line(key, value):
    found, said = None, ""
    try:
        found = read(key, value)
    except ValueError as wrong:
        said = str(wrong)
    assert (said.startswith(f"{key}=") and len(said.splitlines()) == 1) if said else read(key, found) == found


ADDED = {"_target_": "rayscope.dictionaries.TopK", "_partial_": True, "latents": 8, "k": 4}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (ADDED | {"foo": 1, "auk": 3}, "dictionaries.mine.foo: no argument of rayscope.dictionaries.TopK; nearest: "),
        (ADDED | {"auk": 3}, "dictionaries.mine.auk: no argument of rayscope.dictionaries.TopK; nearest: auxk"),
        (ADDED | {"width": 3}, "dictionaries.mine.width: no argument"),
        (ADDED | {"_partial_": False}, "dictionaries.mine: _partial_ is not given"),
        ({"_target_": ADDED["_target_"], "_partial_": True, "k": 4}, "dictionaries.mine: latents of"),
        ({"k": 4}, "dictionaries.mine: _target_ is not given"),
        (
            ADDED | {"_target_": "rayscope.dictionaries.TopKK"},
            "dictionaries.mine._target_=rayscope.dictionaries.TopKK: Python finds no such name; "
            "nearest: rayscope.dictionaries.TopK",
        ),
        (ADDED | {"_target_": "rayscope.dictionaries.Dictionary"}, "dictionaries.mine._target_="),
        (
            ADDED | {"_target_": "no.such.module"},
            "dictionaries.mine._target_=no.such.module: Python finds no such name",
        ),
        (5, "dictionaries.mine=5: not an option but several"),
    ],
)
def test_an_added_dictionary_is_held_against_its_class(entry, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        check("train", OmegaConf.create({"dictionaries": {"mine": entry}}))
    check("train", OmegaConf.create({"dictionaries": {"mine": ADDED}}))


def test_values_become_what_is_meant_and_the_given_one_is_named():
    config = OmegaConf.create(
        {"latents": "1e3", "k": 8.0, "dictionaries": {"mine": ADDED | {"latents": "${latents}", "lr": "1e-3"}}}
    )
    check("train", config)
    assert (config.latents, config.k, config.dictionaries.mine.latents) == (1000, 8, 1000)
    assert [type(value) for value in (config.latents, config.k, config.dictionaries.mine.lr)] == [int, int, float]
    wrong = OmegaConf.create({"dictionaries": {"mine": ADDED | {"k": "${k}"}}, "k": 0})
    with pytest.raises(ValueError, match=r"^k=0: "):
        check("train", wrong)


def test_types_stand_in_for_no_other_key():
    """A pattern of one table never hides a more special one after it."""
    names = list(OPTIONS)
    for (i, name), later in itertools.product(enumerate(names), names):
        if names.index(later) > i and name.count(".") == later.count(".") and "*" not in later:
            assert declared(later) is OPTIONS[later], (name, later)
