"""The parts of the benchmark: what each races, against what, and under which names its limits are asked for."""

from collections.abc import Callable
from typing import Any

import torch

from rayscope.benchmarks.bench import Bench
from rayscope.benchmarks.planted import planted_rays, save_random_gpt2
from rayscope.benchmarks.race import Contender, Result, total

FOREVER = 10_000  # steps of a schedule that no race comes to the end of
STEPS = {"sparsify": ["topk"], "dictionary_learning": ["topk", "batchtopk"], "saelens": ["topk", "batchtopk"]}


def both(bench: Bench, name: str, script: str, peer: str, **options: Any) -> list[Contender]:
    """A peer at its defaults, and with bfloat16 autocast: its own option where it has one, else put around it."""
    return [
        bench.contender(name + label, script, peer, autocast=autocast, **options)
        for label, autocast in (("", False), (" autocast", True))
    ]


def step(bench: Bench) -> None:
    """A training step of one dictionary: losses, backward, clip, Adam."""
    scale = bench.scale
    common = planted(bench, scale["vectors"]) | {"steps": scale["steps"], "lr": None, "total_steps": FOREVER}

    def ours(name: str, kind: str, **own: Any) -> Contender:
        options = {**common, "ks": [scale["k"]], "auxk": None, "dead": 0.0, "exact": False, **own}
        return bench.contender(name, "rayscope_step", kind=kind, **options)

    reference = {kind: ours(kind, kind) for kind in ("topk", "abstopk", "batchtopk")}
    auxk = ours("topk auxk firing", "topk", dead=scale["dead"], auxk=scale["auxk"])
    pieces = bench.contender("pieces", "rayscope_pieces", k=scale["k"], **common)
    mine = bench.race([*reference.values(), auxk, pieces])
    bench.compare(mine, "topk")
    bench.check("peak MB of topk without the data", without_data(mine["topk"], scale["vectors"] * scale["width"] * 4))
    for name, seconds in mine["pieces"].facts.get("pieces", {}).items():
        bench.check(f"piece: {name}, seconds", seconds)
    for peer in [peer for peer in STEPS if peer in bench.peers]:
        for kind in STEPS[peer]:
            rivals = both(bench, f"{peer} {kind}", f"{peer}_step", peer, kind=kind, k=scale["k"], **common)
            bench.compare(bench.race([reference[kind], *rivals]), kind)


def harvest(bench: Bench) -> None:
    """Tokens through the model to one site, without and with what else a pass can read."""
    scale, common, layer = bench.scale, gpt2(bench), bench.scale["layer"]
    sites = [f"blocks.{layer - i}.hook_resid_pre" for i in range(4)][::-1]
    for context in scale["contexts"]:
        rows = scale["tokens"] // context
        options = {**common, "context": context, "rows": rows, "layer": layer, "units": rows * context}
        options["steps"] = scale["steps"]
        contenders, against = [], {}
        for precision, autocast in (("bf16", True), ("fp32", False)):
            ours = f"rayscope {precision} {context}"
            for label, read in (("", sites[-1:]), (" 4 sites", sites)):
                own = {"precision": precision, "sites": read, "compare": not label}
                name = f"rayscope {precision}{label} {context}"
                contenders.append(bench.contender(name, "rayscope_harvest", **own, **options))
            bare = f"bare {precision} {context}"
            contenders.append(bench.contender(bare, "bare_harvest", autocast=autocast, **options))
            against |= {bare: ours, f"rayscope {precision} 4 sites {context}": ours}
            for label, stopped in (("", False), (" stopped", True)):
                name, lens = f"transformer_lens {precision}{label} {context}", "transformer_lens"
                own = {"autocast": autocast, "stopped": stopped}
                contenders.append(bench.contender(name, f"{lens}_harvest", lens, **own, **options))
                against[name] = f"rayscope bf16 {context}"  # ours at its fastest
        raced = bench.race(contenders)
        bench.compare(raced, {f"rayscope fp32 {context}": f"rayscope bf16 {context}", **against})
        for precision in ("bf16", "fp32"):
            error = raced[f"rayscope {precision} {context}"].facts.get("relative_error")
            bench.check(f"relative error of {precision} {context} to fp32 hidden states", error)


def pipeline(bench: Bench) -> None:
    """Text rows -> harvest -> shuffle -> training step, in trained tokens."""
    scale = bench.scale
    common = gpt2(bench) | streamed(scale) | {"ks": [scale["k"]], "sites": [f"blocks.{scale['layer']}.hook_resid_pre"]}
    mine = [
        bench.contender(f"rayscope {name}", "rayscope_pipeline", precision=name, steps=cycle(scale), **common)
        for name in ("bf16", "fp32")
    ]
    rivals = both(bench, "saelens", "saelens_pipeline", "saelens", steps=scale["steps"], **common)
    raced = bench.race([*mine, *rivals])
    bench.compare(raced, "rayscope bf16")
    bench.check("share of time outside model and step", raced["rayscope bf16"].facts.get("outside"))


def many(bench: Bench) -> None:
    """Several dictionaries at two sites on one stream, against a run each, and against what cannot be shared."""
    scale = bench.scale
    sites = [f"blocks.{scale['layer'] - 1}.hook_resid_pre", f"blocks.{scale['layer']}.hook_resid_pre"]
    common = gpt2(bench) | streamed(scale) | {"precision": "bf16"}

    def run(name: str, sites: list[str], ks: list) -> Contender:
        return bench.contender(name, "rayscope_pipeline", sites=sites, ks=ks, steps=cycle(scale), **common)

    separate = [run(f"k {k} at {site}", [site], [k]) for site in sites for k in scale["ks"]]
    rows = max(1, -(-scale["batch"] // (scale["context"] - 1)))
    share = scale["batch"] / (rows * (scale["context"] - 1))  # a batch's of what is harvested at one time
    harvested = bench.contender(
        "harvest", "rayscope_harvest", sites=sites, compare=False,
        **{**common, "rows": rows, "units": rows * (scale["context"] - 1)},
    )  # fmt: skip
    steps = bench.contender(
        "steps", "rayscope_step", kind="topk", ks=list(scale["ks"]) * len(sites), auxk=None, dead=0.0, exact=False,
        lr=None,
        total_steps=FOREVER, units=scale["batch"], **planted(bench, scale["vectors"]),
    )  # fmt: skip
    raced = bench.race([run("together", sites, list(scale["ks"])), *separate, harvested, steps])
    sums = {
        "separate runs": total("separate runs", [raced[one.name] for one in separate]),
        "harvest + steps": total("harvest + steps", [raced["steps"], raced["harvest"]], [1.0, share]),
    }
    bench.compare({**raced, **sums}, dict.fromkeys(sums, "together"))


def evaluation(bench: Bench) -> None:
    """Held-out vectors encoded, and encoded with the metrics of `rayscope evaluate` but splicing."""
    scale = bench.scale
    common = planted(bench, scale["vectors"]) | {"k": scale["k"], "context": scale["context"]}
    common |= {"units": scale["batch"] // scale["context"] * scale["context"], "steps": scale["steps"]}
    names = {"encode": False, "encode and measure": True}
    raced = bench.race([bench.contender(n, "rayscope_evaluation", measure=m, **common) for n, m in names.items()])
    bench.compare(raced, "encode")


def quality(bench: Bench) -> None:
    """FVU on the same held-out vectors after the same tokens, at the best of several learning rates of each side."""
    scale = bench.scale
    common = planted(bench, scale["vectors"] + scale["held_out"], held_out=scale["held_out"])
    common |= {"k": scale["k"], "steps": scale["steps"], "total_steps": scale["steps"], "kind": "topk"}
    own: dict[str, Any] = {"ks": [scale["k"]], "auxk": None, "dead": 0.0, "exact": False}
    sides: dict[str, tuple[str, str | None, dict[str, Any]]] = {
        "topk": ("rayscope_step", None, own),
        "topk fp32 selection": ("rayscope_step", None, {**own, "exact": True}),
        **{peer: (f"{peer}_step", peer, {"autocast": False}) for peer in STEPS},
    }
    found: dict[str, list[tuple[float, float]]] = {}
    for side, (script, peer, more) in sides.items():
        rates = scale["rates"][side.removesuffix(" fp32 selection")]
        for lr in rates if peer is None or peer in bench.peers else []:
            one = bench.contender(f"{side} lr {lr:g}", script, peer, **{**common, **more, "lr": lr})
            raced = bench.race([one], rounds=1, warm_up=False)
            bench.compare(raced, lr=lr)
            if (fvu := raced[one.name].facts.get("fvu")) is not None:
                found.setdefault(side, []).append((fvu, lr))
    lowest = {}
    for side, pairs in found.items():
        lowest[side], best = min(pairs)
        bench.check(f"best fvu of {side}", lowest[side])
        bench.check(f"best learning rate of {side}", best)  # at an end of the sweep, the sweep is too short
    theirs = [fvu for side, fvu in lowest.items() if side in STEPS]
    if theirs and "topk" in lowest:
        bench.check("fvu against the best peer's", lowest["topk"] / min(theirs))
    if {"topk", "topk fp32 selection"} <= set(lowest):
        bench.check("fvu against fp32 selection's", lowest["topk"] / lowest["topk fp32 selection"])


PARTS: dict[str, tuple[Callable[[Bench], None], str]] = {  # and the unit of its speeds
    "step": (step, "steps"),
    "harvest": (harvest, "tokens"),
    "pipeline": (pipeline, "tokens"),
    "many": (many, "tokens"),
    "evaluation": (evaluation, "tokens"),
    "quality": (quality, "steps"),
}


def planted(bench: Bench, vectors: int, held_out: int = 0) -> dict[str, Any]:
    """The settings of a worker that reads planted vectors."""
    scale, path = bench.scale, bench.folder / "planted.pt"
    torch.save(planted_rays(vectors, scale["width"], seed=bench.seed), path)
    shape = {name: scale[name] for name in ("width", "latents", "batch")}
    return {**shape, "data": str(path), "held_out": held_out}


def gpt2(bench: Bench) -> dict[str, Any]:
    """The settings of a worker that runs the model."""
    shape = dict(bench.scale["shape"])
    vocabulary = save_random_gpt2(bench.folder / "gpt2", shape)
    from transformers import GPT2Config

    whole = {name: getattr(GPT2Config(**shape), name) for name in ("n_layer", "n_embd", "n_head")}
    return {"model": str(bench.folder / "gpt2"), "vocabulary": vocabulary, "shape": whole}


def streamed(scale: Any) -> dict[str, Any]:
    names = ("context", "batch", "round_tokens", "rows", "latents")
    return {**{name: scale[name] for name in names}, "total_steps": FOREVER, "units": scale["batch"]}


def cycle(scale: Any) -> int:
    """Steps of one harvest: a round of the race that is a whole number of them holds as much harvest as training."""
    return scale["round_tokens"] // scale["batch"]


def without_data(result: Result, data_bytes: int) -> float | None:
    peak = result.facts.get("peak_mb")
    return None if peak is None else peak - data_bytes / 2**20
