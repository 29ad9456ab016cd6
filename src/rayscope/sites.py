"""Sites: the places in a GPT-2 whose activations are read and replaced, by TransformerLens's hook point names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

# in the order in which a block computes them
KINDS = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "mlp.hook_post", "hook_mlp_out", "hook_resid_post")


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
    def kind(self) -> str:
        return self.hook.split(".", 2)[2]


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


def resolve(patterns: str | Iterable[str], model: Sized) -> list[Site]:
    """The sites that the patterns name, each once, in the order of computation.

    A pattern is a hook point in which `{2,4}`, `{2..4}` and `*` stand for layers or names: `blocks.{2,4}.hook_resid_post`,
    `blocks.*.mlp.hook_post`, `blocks.3.hook_resid_*`; the layer `middle` is half-way up.
    Raises ValueError with the nearest names for a pattern that matches nothing.
    """
    sites = all_sites(model)
    names = {site.hook for site in sites}
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for hook in expand(pattern.replace("blocks.middle.", f"blocks.{model.layers // 2}.")):
            regex = re.compile(re.escape(hook).replace(r"\*", r"[^.]*"))
            found = {name for name in names if regex.fullmatch(name)}
            if not found:
                near = get_close_matches(hook, sorted(names), n=3, cutoff=0.3)
                raise ValueError(
                    f"sites: no hook point {hook!r} in this model of {model.layers} layers; nearest: {', '.join(near)}"
                )
            chosen |= found
    if not chosen:
        raise ValueError("sites: no hook point given, such as blocks.3.hook_resid_post")
    return [site for site in sites if site.hook in chosen]


def expand(pattern: str) -> list[str]:
    """`a.{1,3..5}.b` -> a.1.b, a.3.b, a.4.b, a.5.b."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    options: list[str] = []
    for part in match[1].split(","):
        bounds = re.fullmatch(r"\s*(\d+)\.\.(\d+)\s*", part)
        options += map(str, range(int(bounds[1]), int(bounds[2]) + 1)) if bounds else [part.strip()]
    return [done for option in options for done in expand(pattern[: match.start()] + option + pattern[match.end() :])]
