"""Options: the type and range of every key under conf/, in one table."""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from rayscope.cli.values import (
    LIMIT,
    Anything,
    FilePath,
    Flag,
    Listed,
    Number,
    Optional,
    Text,
    Type,
    Whole,
    choice,
    pattern,
)
from rayscope.errors import one_line

NULLS = (
    "gaussian",
    "elliptical",
    "pc_shuffled",
    "token_mixture",
    "random_weights",
    "random_blocks",
    "permuted_weights",
)
COUNT = Whole(1)
SEED = Whole(0, 2**32 - 1)  # scikit-learn takes no other
RATE = Optional(Number(above=0))
COUNTS = Listed(COUNT, such="[8, 16]")
NAMES = Listed(Text("a name"), such="[topk, abstopk]")
MADE_LATER = {"_target_": Text("a name that Python finds, such as rayscope.dictionaries.TopK"), "_partial_": Flag()}
DICTIONARY: dict[str, Type] = {  # what the constructors of learned dictionaries take
    **MADE_LATER,
    "latents": COUNT,
    "k": COUNT,
    "seed": SEED,
    "decoder": choice("learned", "frozen", "soft_frozen"),
    "encoder": choice("learned", "frozen"),
    "lr": RATE,
    "auxk": Optional(Whole(0)),
    "auxk_coefficient": Number(0),
    "whiten": Flag(),
    "initial_rows": Optional(Text("a name")),
    "refine": Optional(COUNT),
    "rank": COUNT,
    "prior": Number(0),
    "groups": Optional(Listed(COUNT, such="[512, 2048]")),
    "coefficient": Optional(Number(0)),
    "sparsity": choice("quadratic", "step", "tanh"),
    "bandwidth": Number(above=0),
    "steepness": Number(above=0),
    "p_end": Number(above=0, most=1),
}
FIT: dict[str, Type] = {  # and what the fits of baselines do
    **MADE_LATER,
    "latents": COUNT,
    "components": COUNT,
    "k": COUNT,
    "seed": SEED,
    "iterations": COUNT,
    "sweeps": COUNT,
    "min_count": COUNT,
    "tolerance": Number(above=0),
    "most_negative": Number(0, 1),
    "matrix": choice("W_E", "W_in", "W_out"),
}
TEXT: dict[str, Type] = {  # what sources of text take
    "_target_": Text(),
    "files": Listed(FilePath(), alone=True, such="[notes.txt, data/*.jsonl]"),
    "column": Text("a column's name"),
    "max_tokens": Optional(COUNT),
    "dataset": FilePath(meant="a folder or a name of the hub"),
    "config": Optional(Text()),
    "split": Text(),
    "revision": Optional(Text()),
    "standard_library": Flag(),
    "packages": Listed(Text("a package's name"), such="[numpy, scipy]"),
}
SIZES: dict[str, Type] = {  # of the studies
    **{name: COUNT for name in ("latents", "k", "null_k", "tokens", "fit_tokens", "test_tokens", "held_out", "sample")},
    **{
        name: COUNT
        for name in ("splice_tokens", "splice_rows", "validation_tokens", "gap_tokens", "means_tokens", "null_tokens")
    },
    "seeds": Optional(Listed(SEED, such="[0, 1, 2]")),
    "ks": COUNTS,
    "widths": COUNTS,
    "nulls": Listed(choice(*NULLS)),
    "batch_size": Optional(COUNT),
    "lr": RATE,
}
SCALE: dict[str, Type] = {  # of the benchmark's parts
    **{name: COUNT for name in ("vectors", "held_out", "width", "latents", "k", "batch", "steps", "rows", "context")},
    **{name: COUNT for name in ("layer", "tokens", "round_tokens")},
    "auxk": Whole(0),
    "dead": Number(0, 1),
    "ks": COUNTS,
    "contexts": COUNTS,
    "shape.*": COUNT,
    "rates.*": Listed(Number(above=0), such="[1e-3, 2e-3]"),
}


def each(prefix: str, types: dict[str, Type]) -> dict[str, Type]:
    return {f"{prefix}.{name}": type for name, type in types.items()}


OPTIONS: dict[str, Type] = {  # the first that a key matches; * stands for names that the user may choose
    "out": FilePath(),
    "seed": SEED,
    "device": pattern(r"auto|cpu(:\d+)?|cuda(:\d+)?", "cpu, cuda, cuda:0, ... or auto"),
    "precision": choice("fp32", "bf16"),
    "threads": Optional(COUNT),
    "overwrite": Flag(),
    "cache": Optional(FilePath()),
    "stream.batch_size": COUNT,
    "stream.round_tokens": COUNT,
    "model._target_": Text(),
    "model.name": FilePath(meant="tiny, a folder or a name of the hub"),
    "model.revision": Optional(Text()),
    "model.context": Optional(Whole(2)),
    **each("text", TEXT),
    **each("elsewhere", TEXT),
    "sites.patterns": Listed(Text("a hook point"), alone=True, such="[blocks.3.hook_resid_post]"),
    "stage": choice("dictionaries", "kl"),
    "tokens": COUNT,
    "latents": COUNT,
    "k": COUNT,
    "training.log_every": Whole(0),
    "training.checkpoint_steps": Whole(0),
    "training.checkpoint_seconds": Number(0),
    "training.snapshots": Whole(0),
    "training.snapshot_names": Optional(NAMES),
    "training.calibration_tokens": COUNT,
    "finetuning.folder": Optional(FilePath()),
    "finetuning.tokens": COUNT,
    "finetuning.rows": COUNT,
    "finetuning.kl": Number(0),
    "finetuning.lr": RATE,
    "dictionaries.folder": Optional(FilePath()),
    **each("dictionaries.*", DICTIONARY),
    "dictionaries.*.*": Anything(),  # of a class of the user's own, which checks it
    "baselines.fit_tokens": COUNT,
    "baselines.text": choice("auto", "dictionaries", "evaluated"),
    "baselines.headline_k": COUNT,
    "baselines.sample": Whole(0),
    **each("baselines.list.*.fit", FIT),
    "baselines.list.*.fit.*": Anything(),
    "baselines.list.*.budgets": choice("all", "headline"),
    "baselines.list.*.max_k": Optional(COUNT),
    "baselines.list.*.family": Optional(Text()),
    "evaluation.tokens": COUNT,
    "evaluation.splice_tokens": Whole(0),
    "evaluation.validation_tokens": Whole(0),
    "evaluation.value_bits": Listed(Whole(1, 15), such="[2, 4, 8]"),
    "evaluation.levels": choice("lloyd", "uniform"),
    "evaluation.coders": Listed(Text("a coder"), such="[own, omp]"),
    "evaluation.recalibrate": Flag(),
    "evaluation.draws": Whole(0),  # 0: no intervals
    "features.most_frequent": Whole(0),
    "features.spaced": Whole(0),
    "features.min_count": COUNT,
    "features.tokens": COUNT,
    "features.names": Optional(NAMES),
    "features.contexts": Whole(0),
    "logger._target_": Text(),
    **{f"logger.{name}": Optional(Text()) for name in ("project", "entity", "name", "group")},
    "logger.tags": Optional(Listed(Text("a tag"), such="[a, b]")),
    "logger.offline": Flag(),
    "studies": Optional(FilePath()),
    "size": Text("one of study.sizes"),
    "part": Optional(pattern(r"[1-9]\d{0,3}/[1-9]\d{0,3}", "a part of how many, such as 1/3")),
    "study.name": Text(),
    "study.question": Text(),
    "study.trained_on": Listed(Text("one of study.sizes' options"), such="[tokens]"),
    "study.predictions.*.prediction": Text(),
    "study.predictions.*.threshold": Optional(LIMIT),
    "study.effort.*.iterations": COUNT,
    "study.effort.*.sweeps": COUNT,
    **each("study.sizes.*.planted", SIZES),
    **each("study.sizes.*", SIZES),
    "study.run._target_": Text(),
    "study.run._partial_": Flag(),
    "study.run.value_bits": Listed(Whole(1, 15), such="[2, 4, 8]"),
    "study.run.coders": Listed(Text("a coder"), such="[own, omp]"),
    "study.run.rank": COUNT,
    "study.run.fit_tokens": COUNT,
    "study.run.sample": COUNT,
    "study.run.explained": Number(0, 1),
    "study.run.taus": Listed(Number(-1, 1), such="[0.7, 0.9]"),
    "study.run.bipolar": Listed(Number(0, 1), such="[0, 0.5, 1]"),
    "study.run.nulls": Listed(choice(*NULLS)),
    **each("study.run.world", {**MADE_LATER, "features": COUNT, "width": COUNT, "l0": Number(above=0)}),
    **each("study.run.rays", DICTIONARY),
    **each("study.run.frozen", DICTIONARY),
    **{
        key: of
        for group in ("arms", "controls", "kinds")
        for key, of in each(f"study.run.{group}.*", DICTIONARY).items()
    },
    **each("study.run.baselines.*.fit", FIT),
    "study.run.baselines.*.budgets": choice("all", "headline"),
    "study.run.baselines.*.max_k": Optional(COUNT),
    "study.run.baselines.*.family": Optional(Text()),
    "parts": Listed(Text("a part"), such="[step, harvest]"),
    "peers": Listed(Text("a peer"), such="[sparsify, saelens]"),
    "rounds": COUNT,
    "figure": Optional(FilePath()),
    "environments": Optional(FilePath()),
    "limits.*.*": Optional(LIMIT),
    "scale.name": Text(),
    **each("scale.*", SCALE),
}


@cache
def declared(key: str) -> Type | None:
    """The type of an option; None for a key that is no option."""
    if key in OPTIONS:
        return OPTIONS[key]
    depth = key.count(".")
    return next((of for name, of in OPTIONS.items() if name.count(".") == depth and fnmatchcase(key, name)), None)


def read(key: str, value: Any, typed: str | None = None) -> Any:
    """The option's value as it is meant. Raises ValueError in one line that begins with the key.

    typed: the value as the user spelled it.
    """
    spelled = shown(value if typed is None else typed)
    of = declared(key)
    if of is None:
        if inside := names_under(key):
            raise ValueError(f"{key}={spelled}: not an option but several; give {', '.join(inside)}")
        raise ValueError(f"no option {key!r}; nearest: {', '.join(nearest(key, OPTIONS))}")
    try:
        return of.read(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{key}={spelled}: {of.what}") from None


def names_under(key: str, most: int = 8) -> list[str]:
    """The first options whose names begin with the key, a mapping of them."""
    depth = key.count(".") + 1
    parts = [name.split(".") for name in OPTIONS]
    rests = [".".join(part[depth:]) for part in parts if part[depth:] and fnmatchcase(key, ".".join(part[:depth]))]
    return [f"{key}.{rest}" for rest in rests if "*" not in rest][:most]


def shown(value: Any, longest: int = 80) -> str:
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else None
    text = one_line(str(value)) if text is None else text
    return text if len(text) <= longest else text[: longest - 3] + "..."


def nearest(key: str, known: Iterable[str]) -> list[str]:
    """The names of `known` that are most like the key, those of the same parent first; else all of the same parent."""
    names = [name for name in known if "*" not in name]
    parent, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    near = [siblings[name] for name in get_close_matches(last, siblings, n=3)] + get_close_matches(key, names, n=3)
    return list(dict.fromkeys(near)) or list(siblings.values()) or [name for name in names if "." not in name]
