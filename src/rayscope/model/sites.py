"""Sites: the places in a GPT-2 whose activations are read and replaced, by TransformerLens's hook point names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

MOST = 1000  # names that a pattern may stand for: more than any model's layers
LONGEST = 80  # characters of a pattern that a message repeats
PARTS = {  # {kind of site: the part of the block that it belongs to}, in the order in which a block computes them
    "hook_resid_pre": "residual",
    "hook_attn_out": "attention",
    "hook_resid_mid": "residual",
    "mlp.hook_post": "mlp",
    "hook_mlp_out": "mlp",
    "hook_resid_post": "residual",
}
KINDS = tuple(PARTS)


@dataclass(frozen=True)
class Site:
    """hook: such as `blocks.3.mlp.hook_post`; width: of its activations; layer: the block's number."""

    hook: str
    width: int
    layer: int

    @property
    def key(self) -> str:
        """The hook without dots, which module names cannot hold."""
        return self.hook.replace(".", "_")

    @property
    def output(self) -> "Site":
        """The site that a dictionary here reconstructs: the one that it reads."""
        return self

    @property
    def kind(self) -> str:
        return self.hook.split(".", 2)[2]

    @property
    def part(self) -> str:
        """residual, attention or mlp."""
        return PARTS[self.kind]


class Sized(Protocol):
    @property
    def layers(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...


def all_sites(model: Sized) -> list[Site]:
    """Every site of the model, in the order of computation."""
    return [
        Site(f"blocks.{layer}.{kind}", model.d_mlp if kind == "mlp.hook_post" else model.d_model, layer)
        for layer in range(model.layers)
        for kind in KINDS
    ]


def with_outputs(sites: Iterable[Site]) -> list[Site]:
    """The sites, and those that dictionaries at them write to: what a pass of the model has to read."""
    sites = list(sites)
    return list(dict.fromkeys([*sites, *(site.output for site in sites)]))


def resolve(patterns: str | Iterable[str], model: Sized) -> list[Site]:
    """The sites that the patterns name, each once, in the order of computation.

    A pattern is a hook point in which `{2,4}`, `{2..4}` and `*` stand for layers or names:
    `blocks.{2,4}.hook_resid_post`, `blocks.*.mlp.hook_post`, `blocks.3.hook_resid_*`; the layer `middle` is half-way
    up. Raises ValueError with the nearest names for a pattern that matches nothing.
    """
    sites = all_sites(model)
    names = [site.hook for site in sites]
    chosen: set[str] = set()
    for pattern in as_patterns(patterns):
        for hook in expand(pattern.replace("blocks.middle.", f"blocks.{model.layers // 2}.")):
            regex = re.compile(re.escape(hook).replace(r"\*", r"[^.]*"))
            found = {name for name in names if regex.fullmatch(name)}
            if not found:
                raise ValueError(
                    f"sites.patterns: no hook point {hook[:LONGEST]!r} in this model of {model.layers} layers; "
                    f"nearest: {', '.join(nearest(hook[:LONGEST], names))}"
                )
            chosen |= found
    return [site for site in sites if site.hook in chosen]


def as_patterns(given: object) -> list[str]:
    patterns = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    for pattern in patterns or [None]:
        if not isinstance(pattern, str) or not pattern.strip():
            what = "null" if pattern is None and patterns else "none" if pattern is None else repr(pattern)
            raise ValueError(f"sites.patterns: {what} given; a hook point is such as blocks.3.hook_resid_post")
    return [str(pattern) for pattern in patterns]


def nearest(hook: str, names: list[str]) -> list[str]:
    """The three names that are most like it; of a hook of nothing like them,
    those of its layer, or of the middle one.
    """
    found = get_close_matches(hook, names, n=3, cutoff=0.5)
    if not found:
        layers = list(dict.fromkeys(name.split(".")[1] for name in names))
        asked = [layer for layer in re.findall(r"\d+", hook) if layer in layers] or [layers[len(layers) // 2]]
        found = [name for name in names if name.startswith(f"blocks.{asked[0]}.")]
    return found


def expand(pattern: str) -> list[str]:
    """`a.{1,3..5}.b` -> a.1.b, a.3.b, a.4.b, a.5.b.

    Raises ValueError for a range that runs down, and for more than MOST names.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    options: list[str] = []
    for part in match[1].split(","):
        bounds = re.fullmatch(r"\s*([0-9]{1,9})\.\.([0-9]{1,9})\s*", part)
        if not bounds:
            options.append(part.strip())
            continue
        first, last = int(bounds[1]), int(bounds[2])
        if first > last:
            raise ValueError(f"sites.patterns: {{{part.strip()}}} runs down; write {{{last}..{first}}}")
        options += map(str, range(first, min(last, first + MOST) + 1))
    done: list[str] = []
    for option in options:
        done += expand(pattern[: match.start()] + option + pattern[match.end() :])
        if len(done) > MOST:
            raise ValueError(f"sites.patterns: {pattern[:LONGEST]!r} stands for more than {MOST} names")
    return done
