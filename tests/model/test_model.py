"""The model against plain module hooks on the Hugging Face network, and against transformer-lens."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from rayscope.model import LanguageModel, load
from rayscope.model.sites import all_sites, resolve


def some_tokens(model: LanguageModel, rows: int = 3, length: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(model.network.config.vocab_size, (rows, length or model.context), generator=generator)


@torch.no_grad()
def hooked(network, tokens_RC: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """({hook: activation}, logits) of the network's own forward, by PyTorch module hooks."""
    found: dict[str, Tensor] = {}
    handles = []

    def keep_input(name: str):
        return lambda module, arguments: found.__setitem__(name, arguments[0].clone())

    def keep_output(name: str):
        return lambda module, arguments, out: found.__setitem__(
            name, (out[0] if isinstance(out, tuple) else out).clone()
        )

    for layer, block in enumerate(network.transformer.h):
        at = f"blocks.{layer}."
        handles += [
            block.register_forward_pre_hook(keep_input(at + "hook_resid_pre")),
            block.attn.register_forward_hook(keep_output(at + "hook_attn_out")),
            block.ln_2.register_forward_pre_hook(keep_input(at + "hook_resid_mid")),
            block.mlp.act.register_forward_hook(keep_output(at + "mlp.hook_post")),
            block.mlp.register_forward_hook(keep_output(at + "hook_mlp_out")),
            block.register_forward_hook(keep_output(at + "hook_resid_post")),
        ]
    logits = network(tokens_RC).logits
    for handle in handles:
        handle.remove()
    return found, logits


def test_run_blocks_is_the_forward_of_transformers(model: LanguageModel):
    for length in (model.context, 5, 1):
        tokens_RC = some_tokens(model, length=length)
        with torch.no_grad():
            ours = model.unembed(model.run_blocks(model.embed(tokens_RC)))
            theirs = model.network(tokens_RC).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_activations_at_every_site_are_those_of_module_hooks(model: LanguageModel):
    tokens_RC, sites = some_tokens(model), all_sites(model)
    theirs, _ = hooked(model.network, tokens_RC)
    ours = model.activations(tokens_RC, sites)
    assert set(theirs) == {site.hook for site in sites}
    for site in sites:
        assert ours[site.key].shape == (*tokens_RC.shape, site.width)
        torch.testing.assert_close(ours[site.key], theirs[site.hook], rtol=1e-5, atol=1e-5, msg=site.hook)


def test_a_pass_can_start_at_any_block(model: LanguageModel):
    tokens_RC = some_tokens(model)
    theirs, _ = hooked(model.network, tokens_RC)
    x_RCD = theirs["blocks.1.hook_resid_pre"]
    ours = {}
    torch.testing.assert_close(model.run_blocks(x_RCD, 1, ours.__setitem__), theirs["blocks.2.hook_resid_post"])
    torch.testing.assert_close(ours["blocks.1.hook_resid_post"], theirs["blocks.1.hook_resid_post"])
    assert "blocks.0.hook_resid_post" not in ours


def test_the_pass_ends_at_the_last_site_needed(model: LanguageModel):
    calls = []
    blocks = enumerate(model.network.transformer.h)
    handles = [b.mlp.c_fc.register_forward_hook(lambda *_, n=n: calls.append(n)) for n, b in blocks]
    model.activations(some_tokens(model), resolve(["blocks.0.hook_resid_post", "blocks.1.hook_resid_mid"], model))
    for handle in handles:
        handle.remove()
    assert calls == [0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformer-lens's own
def test_the_bridge_has_the_same_activations(model: LanguageModel):
    tokens_RC = some_tokens(model)
    bridge = model.bridge()
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens_RC)
        torch.testing.assert_close(logits, model.network(tokens_RC).logits, rtol=1e-4, atol=1e-4)
    ours = model.activations(tokens_RC, all_sites(model))
    for site in all_sites(model):
        torch.testing.assert_close(ours[site.key], cache[site.hook], rtol=1e-4, atol=1e-4, msg=site.hook)


def copy_of(folder: Path, to: Path, without: str = "") -> Path:
    shutil.copytree(folder, to)
    if without:
        (to / without).unlink()
    return to


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("tokenizer.json", "no tokenizer.json; save the tokenizer there"),
        ("config.json", "no config.json; save the model there"),
        ("model.safetensors", "no model.safetensors; save the model there"),
    ],
)
def test_a_folder_without_a_part_says_which(tiny_gpt2: Path, tmp_path: Path, missing: str, words: str):
    with pytest.raises(ValueError, match=words):
        load(str(copy_of(tiny_gpt2, tmp_path / "model", without=missing)))


@pytest.mark.parametrize("damaged", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_one_clear_line(tiny_gpt2: Path, tmp_path: Path, damaged: str):
    folder = copy_of(tiny_gpt2, tmp_path / "model")
    (folder / damaged).write_text("{damaged, and long enough to hold a header")
    with pytest.raises(ValueError, match=rf"^model.name=.*: {damaged} cannot be loaded \([^\n]*\)$"):
        load(str(folder))


def test_another_architecture_or_no_folder_or_a_longer_context_is_refused(tiny_gpt2: Path, tmp_path: Path):
    folder = copy_of(tiny_gpt2, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt_neo", "architectures": []}))
    with pytest.raises(ValueError, match="'gpt_neo' model; rayscope reads models of type 'gpt2'"):
        load(str(folder))
    with pytest.raises(ValueError, match="no such folder"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"model.context=64: .* has a context of 32"):
        load(str(tiny_gpt2), context=64)


def test_a_tokenizer_of_another_model_is_refused(tiny_gpt2: Path, tmp_path: Path, model: LanguageModel):
    from transformers import GPT2Config

    folder = copy_of(tiny_gpt2, tmp_path / "model")
    GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=32, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    with pytest.raises(ValueError, match="the tokenizer has 320 tokens, the model 100"):
        load(str(folder))


def with_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def with_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed(change: Callable[[str], str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed("_orig_mod.{}".format), "hold '_orig_mod.' .*and 36 more.; save the module that torch.compile wraps"),
        (renamed("module.{}".format), "hold 'module.' .*DataParallel"),
        (renamed("net.gpt.{}".format), "hold 'net.gpt.' .*save the GPT-2 alone"),
        (renamed(lambda n: "_orig_mod." + n.removeprefix("transformer.")), "hold '_orig_mod.'"),
        (renamed(lambda n: n.replace(".mlp.", "._orig_mod.mlp.")), "hold '_orig_mod.'"),
        (without("h.1.mlp.c_fc.weight"), "not in the file, and so random: transformer.h.1.mlp.c_fc.weight$"),
        (without("ln_f"), "random: transformer.ln_f.bias, transformer.ln_f.weight$"),
        (without("wte"), "random: lm_head.weight, transformer.wte.weight$"),
        (without("h.2."), "config.json says n_layer=3, the file has 2 layers"),
        (without("h.2.mlp"), "random: transformer.h.2.mlp.c_fc.bias, .*, and 1 more$"),
        (lambda t: {**t, "transformer.h.1.attn.c_attn.lora_A": torch.ones(2)}, "not in the model .*: .*lora_A$"),
        (lambda t: {n: x.to(torch.int8) if "c_fc" in n else x for n, x in t.items()}, "c_fc.bias is of type I8"),
        (lambda t: {**t, "lm_head.weight": torch.ones(300, 32)}, "lm_head.weight is 300 x 32 .*wte.weight 320 x 32$"),
        (lambda t: {**t, "transformer.ln_f.bias": torch.tensor(1.0)}, "ln_f.bias is a single number in the file"),
        (
            lambda t: {**t, "transformer.wpe.weight": torch.ones(0, 32)},
            "is 0 x 32 in the file, 32 x 32 by config.json$",
        ),
    ],
)
def test_a_model_that_is_not_all_in_the_file_is_refused(tiny_gpt2, tmp_path, capfd, change, said):
    """transformers would fill what is missing at random and print a table."""
    folder = copy_of(tiny_gpt2, tmp_path / "model")
    with_weights(folder, change)
    with pytest.raises(ValueError, match=rf"^model.name={folder}: [^\n]*{said}"):
        load(str(folder))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 2}, "config.json says n_layer=2, the file has 3 layers"),
        ({"n_layer": 5}, "config.json says n_layer=5, the file has 3 layers"),
        (
            {"vocab_size": 322},
            "wte.weight is 320 x 32 in the file, 322 x 32 by config.json: its vocab_size=322 should be 320",
        ),
        ({"n_positions": 64}, "wpe.weight is 32 x 32 in the file, .* its n_positions=64 should be 32"),
        ({"n_inner": 96}, "mlp.c_fc.bias is 128 in the file, 96 by config.json, and 8 more"),
        ({"tie_word_embeddings": False}, "random: lm_head.weight$"),
        ({"n_layer": "3"}, "config.json cannot be loaded .*'n_layer' expected int, got str"),
        ({"n_layer": 0}, "config.json's n_layer=0: at least 1"),
        ({"n_layer": 10**30}, "config.json's n_layer=10{30}: at least 1, at most 1,000$"),
        ({"n_embd": 10**30}, "config.json's n_embd=10{30}: at least 1, at most"),
        ({"attn_pdrop": "x"}, "config.json cannot be loaded .Field 'attn_pdrop' with value 'x' doesn't match [^:]*$"),
        ({"n_head": 3}, "config.json's n_embd=32 is not a multiple of n_head=3"),
        ({"activation_function": "foo"}, "activation_function='foo': not known"),
        ({"model_type": 5}, "a 5 model; rayscope reads models of type 'gpt2'"),
        ({"id2label": 5}, "config.json cannot be loaded"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "model.safetensors cannot be loaded"),
    ],
)
def test_a_config_that_is_not_the_weights_is_refused(tiny_gpt2, tmp_path, capfd, changes, said):
    folder = copy_of(tiny_gpt2, tmp_path / "model")
    with_config(folder, **changes)
    with pytest.raises(ValueError, match=rf"^model.name={folder}: [^\n]*{said}"):
        load(str(folder))
    assert capfd.readouterr() == ("", "")


def test_what_is_whole_in_another_form_is_the_same_model(tiny_gpt2: Path, tmp_path: Path, model: LanguageModel):
    """Masks that old files hold, a head for another task, no prefix, and plain torch.save."""
    changes = {
        "masks": lambda t: {**t, **{f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}},
        "head": lambda t: {**t, "v_head.summary.weight": torch.ones(1, 32)},
        "base": renamed(lambda name: name.removeprefix("transformer.")),
    }
    for name, change in changes.items():
        folder = copy_of(tiny_gpt2, tmp_path / name)
        with_weights(folder, change)
        assert load(str(folder)).fingerprint == model.fingerprint
    old = copy_of(tiny_gpt2, tmp_path / "old")
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    assert load(str(old)).fingerprint == model.fingerprint


def test_integers_in_a_bin_file_are_refused(tiny_gpt2: Path, tmp_path: Path):
    """Converted to floating point, they would be another model."""
    folder = copy_of(tiny_gpt2, tmp_path / "model", without="model.safetensors")
    tensors = {name: (10 * t).to(torch.int8) for name, t in load_file(tiny_gpt2 / "model.safetensors").items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=rf"^model.name={folder}: [^\n]* is of type int8; weights are read in floating"
    ):
        load(str(folder))


def test_an_adapter_is_refused_and_other_weights_in_the_folder_are_not_looked_at(
    tiny_gpt2: Path, tmp_path: Path, model
):
    """transformers would load what the adapter names in its place, or leave the adapter out: that depends on peft."""
    folder = copy_of(tiny_gpt2, tmp_path / "model")
    save_file({"x": torch.ones(1, dtype=torch.int8)}, folder / "model-00001-of-00002.safetensors")
    assert load(str(folder)).fingerprint == model.fingerprint
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "gpt2"}))
    with pytest.raises(ValueError, match=rf"^model.name={folder}: .* adapter_config.json; merge the adapter"):
        load(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_byte_order_mark_in_json_is_said(tiny_gpt2: Path, tmp_path: Path, file: str):
    folder = copy_of(tiny_gpt2, tmp_path / "model")
    (folder / file).write_bytes(b"\xef\xbb\xbf" + (folder / file).read_bytes())
    with pytest.raises(
        ValueError, match=rf"^model.name={folder}: {file} cannot be loaded .it begins with a byte order"
    ):
        load(str(folder))


class Planted:
    def __reduce__(self):
        return Path.touch, (Path("planted"),)


def test_pickled_code_is_not_run(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = copy_of(tiny_gpt2, tmp_path / "model", without="model.safetensors")
    for write in (
        lambda path: torch.save({"x": Planted()}, path),
        lambda path: path.write_bytes(pickle.dumps(Planted())),
    ):
        write(folder / "pytorch_model.bin")
        with pytest.raises(
            ValueError, match=r"^model.name=[^\n]*: pytorch_model.bin does not hold tensors alone; save .*$"
        ):
            load(str(folder))
    assert not Path("planted").exists()
    pickle.loads(pickle.dumps(Planted()))  # it would have been
    assert Path("planted").exists()


def test_a_name_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True, raising=False)
    Path("weights.pt").touch()
    for name, said in {
        "checkpoints/run1": "no such folder here, not in the hub's cache, and the hub cannot be reached",
        "checkpoints/run1/step_100": "no such folder here, and not a name on the hub, such as OWNER/MODEL",
        "my model": "no such folder here, and not a name on the hub",
        "./run1": "no such folder",
        "weights.pt": "not a folder; give the one that holds config.json",
        "": "give a folder, a name of the hub or tiny",
        None: "give a folder",
    }.items():
        with pytest.raises(ValueError, match=rf"^model.name={name}: {said}[^\n]*$"):
            load(name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("context", [0, 1, -5, 2.5, "16", True])
def test_a_context_is_a_whole_number_from_2_on(tiny_gpt2: Path, context):
    with pytest.raises(ValueError, match=rf"^model.context={context}: a whole number, at least 2"):
        load(str(tiny_gpt2), context=context)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]),
    where=st.floats(0, 1, exclude_max=True),
    junk=st.none() | st.binary(min_size=1, max_size=4),
)
def test_a_file_cut_or_overwritten_anywhere_is_one_line_or_a_whole_model(tiny_gpt2, tmp_path, file, where, junk):
    """Bytes of the weights themselves have no checksum: there, any model of finite shape may come out."""
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    copy_of(tiny_gpt2, folder)
    whole = (folder / file).read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little") if file == "model.safetensors" else len(whole)
    place = int(where * size)
    (folder / file).write_bytes(whole[:place] + (b"" if junk is None else junk + whole[place + len(junk) :]))
    said = ""
    try:
        assert load(str(folder)).layers == 3
    except ValueError as error:
        said = str(error)
    assert re.fullmatch(f"(model.name={folder}: .+)?", said)


def test_float16_on_disk_is_fp32_in_memory_and_frozen(tiny_gpt2: Path, tmp_path: Path, model: LanguageModel):
    folder = copy_of(tiny_gpt2, tmp_path / "model")
    GPT2LMHeadModel.from_pretrained(tiny_gpt2, dtype=torch.float16).save_pretrained(folder)
    half = load(str(folder))
    parameters = list(half.network.parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not any(p.requires_grad for p in parameters)
    assert not half.network.training
    torch.testing.assert_close(half.network.transformer.wte.weight, model.network.transformer.wte.weight.half().float())
    assert half.fingerprint != model.fingerprint == load(str(tiny_gpt2)).fingerprint


def test_a_shorter_context_changes_no_activation(tiny_gpt2: Path, model: LanguageModel):
    short, (site,) = load(str(tiny_gpt2), context=16), resolve("blocks.2.hook_resid_post", model)
    assert short.context == 16
    tokens_RC = some_tokens(model)
    there = model.activations(tokens_RC, [site])[site.key][:, :16]
    torch.testing.assert_close(short.activations(tokens_RC[:, :16], [site])[site.key], there, rtol=1e-5, atol=1e-5)
