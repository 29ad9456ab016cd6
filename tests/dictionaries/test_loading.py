"""A folder that is no saved dictionary, or no longer one, is a ValueError that names it, whatever is wrong with it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from rayscope.dictionaries import BottleneckTopK, Dictionary, TiedTopK, TokenBiasTopK, TopK, find, load

FEW = settings(deadline=None, derandomize=True, max_examples=150)
NUMBERS = st.integers() | st.floats(allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return TopK(8, 16, 2).save(tmp_path_factory.mktemp("saved") / "topk", {"site": "blocks.1.hook_resid_post"})


@pytest.fixture(scope="module")
def scratch(saved, tmp_path_factory) -> Path:
    """A copy that examples change and change back."""
    return shutil.copytree(saved, tmp_path_factory.mktemp("scratch") / "topk")


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match="topk") as raised:
        load(folder)
    assert type(raised.value) is ValueError
    assert str(raised.value).startswith(str(folder))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def loaded_unless_refused(folder: Path) -> Dictionary | None:
    try:
        return load(folder)
    except ValueError:
        refused(folder)
        return None


def rewrite(folder: Path, tensors: dict[str, torch.Tensor], **changed) -> Path:
    """The folder with these tensors, and a config.json that agrees with their hash."""
    weights = save_tensors(tensors)
    (folder / "weights.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    config |= {"sha256": hashlib.sha256(weights).hexdigest(), **changed}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors((folder / "weights.safetensors").read_bytes())


def test_a_config_cut_at_any_byte(saved, scratch):
    whole = (saved / "config.json").read_bytes()
    for length in range(len(whole)):
        (scratch / "config.json").write_bytes(whole[:length])
        refused(scratch)
    (scratch / "config.json").write_bytes(whole)
    assert isinstance(load(scratch), TopK)


@FEW
@given(document=JSON)
def test_a_config_that_is_any_json(scratch, document):
    before = (scratch / "config.json").read_bytes()
    (scratch / "config.json").write_text(json.dumps(document))
    refused(scratch)
    (scratch / "config.json").write_bytes(before)


@FEW
@given(key=st.sampled_from(["format", "kind", "arguments", "sha256", "provenance"]), value=JSON)
def test_a_config_with_any_value_of_another_type(saved, scratch, key, value):
    config = json.loads((saved / "config.json").read_text())
    if key != "provenance" or not isinstance(value, dict):  # any object is a provenance
        (scratch / "config.json").write_text(json.dumps(config | {key: value if value != config[key] else None}))
        refused(scratch)
    (scratch / "config.json").write_text(json.dumps(config))


@FEW
@given(name=st.sampled_from(["width", "latents", "k", "seed", "auxk", "decoder", "other"]), value=JSON)
def test_a_config_with_any_argument(saved, scratch, name, value):
    config = json.loads((saved / "config.json").read_text())
    config["arguments"][name] = value
    (scratch / "config.json").write_text(json.dumps(config))
    dictionary = loaded_unless_refused(scratch)
    if dictionary is not None:
        assert name in ("k", "seed", "auxk", "decoder")
        assert dictionary.encode(torch.ones(1, 8)).shape == (1, 16)
    (scratch / "config.json").write_text((saved / "config.json").read_text())


@FEW
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_one_bit_of_the_weights(saved, scratch, place, bit):
    whole = (saved / "weights.safetensors").read_bytes()
    changed = bytearray(whole)
    changed[place % len(whole)] ^= 1 << bit
    (scratch / "weights.safetensors").write_bytes(changed)
    assert "weights.safetensors is not the file that config.json was written for" in refused(scratch)
    (scratch / "weights.safetensors").write_bytes(whole)


@FEW
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_one_bit_of_a_weights_file_whose_hash_was_made_to_agree(saved, scratch, place, bit):
    whole = (saved / "weights.safetensors").read_bytes()
    changed = bytearray(whole)
    changed[place % len(whole)] ^= 1 << bit
    (scratch / "weights.safetensors").write_bytes(changed)
    config = json.loads((saved / "config.json").read_text()) | {"sha256": hashlib.sha256(changed).hexdigest()}
    (scratch / "config.json").write_text(json.dumps(config))
    dictionary = loaded_unless_refused(scratch)  # another number is a number
    assert dictionary is None or all(tensor.isfinite().all() for tensor in dictionary.state_dict().values())
    (scratch / "weights.safetensors").write_bytes(whole)
    (scratch / "config.json").write_text((saved / "config.json").read_text())


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"[]", "holds a list"), (b"7", "holds a int"), (b'{"format": 1, "kind": "topk"}', "has no arguments"),
        (b"\x80", "utf-8"), (b"[" * 100_000, "recursion"), (b'{"format": ' + b"9" * 10_000 + b"}", "digits"),
        (b"", "Expecting value"),
    ],
)  # fmt: skip
def test_a_config_of_something_else(saved, tmp_path, content, fact):
    folder = shutil.copytree(saved, tmp_path / "topk")
    (folder / "config.json").write_bytes(content)
    assert fact in refused(folder)


def test_sizes_that_the_weights_have_not_are_refused_before_anything_is_allocated(saved, tmp_path, monkeypatch):
    folder = shutil.copytree(saved, tmp_path / "topk")
    monkeypatch.setattr(TopK, "__init__", lambda *args, **kwargs: pytest.fail("made"))
    arguments = json.loads((folder / "config.json").read_text())["arguments"]
    for change in ({"latents": 10**15}, {"width": 10**15}, {"latents": -1}, {"width": "8"}, {"latents": [16]}):
        rewrite(folder, weights_of(saved), arguments=arguments | change)
        assert f"config.json says {next(iter(change))}=" in refused(folder)
    thin = {"a": torch.zeros(4_000_000), "b": torch.zeros(3_000_000)}  # both sizes are there, their product is not
    rewrite(folder, thin, arguments=arguments | {"latents": 4_000_000, "width": 3_000_000})
    assert "smaller than the dictionary" in refused(folder)


def test_tensors_that_do_not_belong(saved, tmp_path):
    folder, own = shutil.copytree(saved, tmp_path / "topk"), weights_of(saved)
    name = "W_dec_LD"
    assert "lacks tensor 'W_dec_LD'" in refused(rewrite(folder, {n: t for n, t in own.items() if n != name}))
    assert "has an unknown tensor 'other'" in refused(rewrite(folder, own | {"other": torch.zeros(1)}))
    assert "W_dec_LD has shape (8, 16), by config.json it has (16, 8)" in refused(
        rewrite(folder, own | {name: own[name].T.contiguous()})
    )
    assert "W_dec_LD holds torch.int32, not torch.float32" in refused(rewrite(folder, own | {name: own[name].int()}))
    for bad in (torch.nan, torch.inf):
        diverged = own[name].clone()
        diverged[3, 5] = bad
        assert "W_dec_LD holds NaN or infinity" in refused(rewrite(folder, own | {name: diverged}))
    assert torch.equal(load(rewrite(folder, own)).W_dec_LD, own[name])


@pytest.mark.parametrize(
    "dictionary",
    [
        TiedTopK(8, 16, 2),
        BottleneckTopK(8, 16, 2, rank=3),
        TokenBiasTopK(8, 16, 2, vocabulary=11),
        TopK(8, 16, 2, whiten=True),
    ],
)
def test_kinds_whose_tensors_are_not_all_of_latents_and_width(dictionary: Dictionary, tmp_path):
    x_ND = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    dictionary.prepare(x_ND, dead_window=10, tokens_N=torch.arange(64) % 11)
    again = load(dictionary.save(tmp_path / "saved"))
    assert torch.allclose(again.directions, dictionary.directions, atol=1e-5)


def test_a_half_of_a_dictionary_is_not_found(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "a/topk")
    shutil.copytree(saved, tmp_path / "a/.topk-1a2b3c4d.rayscope-part")
    (tmp_path / "a/half").mkdir()
    shutil.copy(saved / "config.json", tmp_path / "a/half")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    assert find(tmp_path) == {"a/topk": tmp_path / "a/topk"}
