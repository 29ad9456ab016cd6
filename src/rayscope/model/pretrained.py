"""A GPT-2 and its tokenizer as they are on disk or on the hub:
every tensor from the file, or one line that says which is not.
"""

import codecs
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rayscope.huggingface import first_words, quiet, unreachable

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
JSON = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", *(name for name in WEIGHTS if name.endswith("json"))),
)
WRAPPERS = {  # what they put into the names of the tensors of a module that they wrap
    "_orig_mod.": "torch.compile",
    "_forward_module.": "Fabric",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "DataParallel or DeepSpeed",
}
MASKS = re.compile(r"\.attn\.(bias|masked_bias)$")  # GPT-2's causal mask, kept in old files and the same in every model
FLOATS = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "float64",
    "float32",
    "float16",
    "bfloat16",
)  # as safetensors and torch call them
MOST, MOST_LAYERS = 10**8, 1000  # of config.json's sizes: a model of more would not be made in any time or memory
FIELDS = {  # the number of config.json that a tensor's first axis is
    "transformer.wte.weight": "vocab_size",
    "lm_head.weight": "vocab_size",
    "transformer.wpe.weight": "n_positions",
}


def read(name: str, revision: str | None = None) -> tuple[Any, Any]:
    """(GPT2LMHeadModel in fp32, tokenizer) of `tiny`, a local folder or a model of the hub.

    Raises ValueError, one line, for what cannot be read, is of another architecture, or is not whole: tensors of the
    model that the file lacks would be random.
    """
    import transformers
    from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

    transformers.utils.logging.disable_progress_bar()
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"model.name={name}: give a folder, a name of the hub or tiny")
    path = str(files("rayscope") / "assets/tiny") if name == "tiny" else os.path.expanduser(name)  # noqa: PTH111 (leaves a ~ of nobody)
    options: dict[str, Any] = {"trust_remote_code": False}
    if Path(path).is_dir():
        options["local_files_only"] = True
        check_folder(name, Path(path))
        weights = next(file for file in WEIGHTS if (Path(path) / file).is_file())
    else:
        options["revision"] = revision or "main"
        check_name(name)
        weights = "the weights"
    with quiet():
        with reading(name, "config.json"):
            config = AutoConfig.from_pretrained(path, **options)
        check_config(name, config)
        with reading(name, weights):
            loaded: Any = GPT2LMHeadModel.from_pretrained(
                path,
                dtype=torch.float32,
                attn_implementation="sdpa",
                weights_only=True,
                ignore_mismatched_sizes=True,  # they are refused below, with their shapes
                output_loading_info=True,
                **options,
            )
            network, info = loaded
        if fault := unlike(network, info):
            raise ValueError(f"model.name={name}: {fault}")
        with reading(name, "the tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            vocabulary = 1 + max(tokenizer.get_vocab().values())
            tokenizer.backend_tokenizer.to_str()
    if vocabulary > config.vocab_size:
        raise ValueError(
            f"model.name={name}: the tokenizer has {vocabulary} tokens, the model {config.vocab_size}; "
            "they do not belong together"
        )
    return network, tokenizer


def check_name(name: str) -> None:
    """Raises ValueError for a path that is no folder."""
    if os.path.exists(os.path.expanduser(name)):  # noqa: PTH110, PTH111
        raise ValueError(f"model.name={name}: not a folder; give the one that holds config.json")
    if name.startswith(("/", "./", "../", "~")):
        raise ValueError(f"model.name={name}: no such folder")


def check_folder(name: str, folder: Path) -> None:
    for wanted, what in (("config.json", "model"), ("tokenizer.json", "tokenizer")):
        if not (folder / wanted).is_file():
            raise ValueError(f"model.name={name}: the folder has no {wanted}; save the {what} there (save_pretrained)")
    if not any((folder / file).is_file() for file in WEIGHTS):
        raise ValueError(f"model.name={name}: the folder has no {WEIGHTS[0]}; save the model there (save_pretrained)")
    for file in JSON:
        if (folder / file).is_file():
            try:
                content = (folder / file).read_bytes()
                whole = json.loads(content)
                if content.startswith(codecs.BOM_UTF8):  # which the libraries do not read
                    raise ValueError("it begins with a byte order mark")
            except (ValueError, RecursionError) as error:
                raise ValueError(f"model.name={name}: {file} cannot be loaded ({error})") from None
            if not isinstance(whole, dict):
                raise ValueError(f"model.name={name}: {file} cannot be loaded (it holds no JSON object)")
            if file == "config.json" and whole.get("model_type", "gpt2") != "gpt2":
                raise ValueError(another_architecture(name, whole["model_type"]))
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"model.name={name}: the folder has an adapter_config.json; merge the adapter into the model "
            "(merge_and_unload) and save that in a folder of its own (save_pretrained)"
        )
    check_tensors(name, folder)


def check_tensors(name: str, folder: Path) -> None:
    """The types in the files, which the libraries would convert, and the two shapes that they take for one."""
    weights = next(file for file in WEIGHTS if (folder / file).is_file())
    stem, end = weights.split(".")[:2]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob(f"{stem}-*.{end}")) if weights.endswith("json") else [folder / weights]:
        with reading(name, file.name):
            found = header(file)
        for key, (kind, size) in found.items():
            if kind not in FLOATS and not MASKS.search(key):
                raise ValueError(
                    f"model.name={name}: {key} is of type {kind}; weights are read in floating point alone"
                )
            shapes[key.removeprefix("transformer.")] = size
    embedding, head = shapes.get("wte.weight"), shapes.get("lm_head.weight")
    if embedding is not None and head is not None and embedding != head:
        raise ValueError(
            f"model.name={name}: lm_head.weight is {shape(head)} in the file, transformer.wte.weight {shape(embedding)}"
        )


def header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (type, shape)} of the tensors in a file, of which none is read."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118 (it is no dict)
            return {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}
    found = torch.load(file, map_location="meta", weights_only=True)
    tensors = {key: part for key, part in found.items() if isinstance(part, torch.Tensor)}
    return {key: (str(part.dtype).removeprefix("torch."), tuple(part.shape)) for key, part in tensors.items()}


def another_architecture(name: str, kind: object) -> str:
    return f"model.name={name}: a {kind!r} model; rayscope reads models of type 'gpt2'"


def check_config(name: str, config: Any) -> None:
    from transformers.activations import ACT2FN

    if config.model_type != "gpt2":
        raise ValueError(another_architecture(name, config.model_type))
    sizes = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", *(["n_inner"] if config.n_inner else []))
    for field in sizes:
        most = MOST_LAYERS if field == "n_layer" else MOST
        if not 1 <= getattr(config, field) <= most:
            raise ValueError(
                f"model.name={name}: config.json's {field}={getattr(config, field)}: at least 1, at most {most:,}"
            )
    if config.n_embd % config.n_head:
        raise ValueError(
            f"model.name={name}: config.json's n_embd={config.n_embd} is not a multiple of n_head={config.n_head}"
        )
    if config.activation_function not in ACT2FN:
        raise ValueError(
            f"model.name={name}: config.json's activation_function={config.activation_function!r}: not known; "
            "GPT-2's is 'gelu_new'"
        )


@contextmanager
def reading(name: str, what: str) -> Iterator[None]:
    """Any error of the libraries as one line: for a damaged file they raise whatever comes,
    even what is no Exception.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        said = unreachable(error, "model") or f"{what} cannot be loaded ({first_words(error)})"
        if what.startswith("pytorch_model") and not what.endswith("json"):
            said = f"{what} does not hold tensors alone; save the model as safetensors (save_pretrained)"
        raise ValueError(f"model.name={name}: {said}") from None


def unlike(network: Any, info: dict[str, Any]) -> str | None:
    """How the file's tensors are not those of the model that config.json says;
    None if they are, heads for other tasks apart.
    """
    missing = in_order(info["missing_keys"])
    unexpected = in_order(name for name in info["unexpected_keys"] if not MASKS.search(name))
    for name, there, wanted in sorted(info["mismatched_keys"]):
        said = f"{name} is {shape(there)} in the file, {shape(wanted)} by config.json"
        field = FIELDS.get(name) if there[:1] != (0,) and there[1:] == wanted[1:] else None
        return said + (f": its {field}={wanted[0]} should be {there[0]}" if field else more(info["mismatched_keys"]))
    if wrapped := prefix_of(unexpected, missing):
        prefix, example = wrapped
        who = f"save the module that {WRAPPERS[prefix]} wraps" if prefix in WRAPPERS else "save the GPT-2 alone"
        return f"the tensors' names hold {prefix!r} ({example}{more(unexpected)}); {who}"
    if layers := depth(network, missing, unexpected):
        return f"config.json says n_layer={network.config.n_layer}, the file has {layers} layers"
    if missing:
        return f"not in the file, and so random: {listed(missing)}"
    parts = [name for name in unexpected if re.match(r"(transformer\.|h\.\d+\.|lm_head\.)", name)]
    if parts:
        return f"in the file, and not in the model of config.json: {listed(parts)}"
    return "; ".join(info["error_msgs"]) or None


def depth(network: Any, missing: list[str], unexpected: list[str]) -> int | None:
    """How many layers the file has, if whole layers more or fewer than the model's are all that differs."""

    def layer(name: str) -> int:
        found = re.search(r"\bh\.(\d+)\.", name)
        return int(found[1]) if found else -1

    numbers = {layer(name) for name in missing + unexpected}
    if not missing and min(numbers, default=-1) >= network.config.n_layer:
        return max(numbers) + 1
    whole = {name for name, _ in network.named_parameters() if layer(name) >= min(numbers, default=-1)}
    return min(numbers) if not unexpected and min(numbers, default=-1) > 0 and set(missing) == whole else None


def prefix_of(unexpected: list[str], missing: list[str]) -> tuple[str, str] | None:
    """(what stands in most unexpected names but not in those that are missing, the first such name)."""
    wanted = {*missing, *(name.removeprefix("transformer.") for name in missing)}
    found: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in unexpected:
        parts = name.split(".")
        prefixes = [".".join(parts[:n]) + "." for n in range(1, len(parts))]
        fitting = [w for w in WRAPPERS if name.replace(w, "") in wanted and w in name]
        fitting += [prefix for prefix in prefixes if name.removeprefix(prefix) in wanted]
        counts.update(fitting[:1])
        found.setdefault(*(fitting[0], name)) if fitting else None
    prefix, count = counts.most_common(1)[0] if counts else ("", 0)
    return (prefix, found[prefix]) if 2 * count > len(unexpected) else None


def in_order(names: Iterable[str]) -> list[str]:
    """Layer 2 before layer 10."""
    return sorted(
        names, key=lambda name: [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
    )


def listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def more(names: Iterable[Any]) -> str:
    others = len(list(names)) - 1
    return f", and {others} more" if others else ""


def shape(size: Iterable[int]) -> str:
    return " x ".join(map(str, size)) or "a single number"
