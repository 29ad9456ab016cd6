"""Top contexts: the text around the places where a token's latent is strongest.

R rows, C context, D site width, U (latent, sign) pairs of one dictionary.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from rayscope.dictionaries.base import Dictionary
from rayscope.features.detection import columns
from rayscope.features.tokens import text_of

if TYPE_CHECKING:
    from rayscope.model.sites import Site
    from rayscope.streams.windows import Window


@torch.no_grad()
def top_contexts(
    table: pd.DataFrame,
    windows: Iterable["Window"],
    dictionaries: Mapping["Site", Mapping[str, Dictionary]],
    tokenizer,
    *,
    tokens: int = 12,
    contexts: int = 6,
    before: int = 12,
    after: int = 5,
) -> list[dict[str, Any]]:
    """contexts.json: where the latents chosen for the most frequent tokens are strongest.

    windows: of the test text. Neither position 0 nor a special token, on which no dictionary was trained, is a focus:
    in a context they have activation 0. Activations are sign * z. Equal ones: the earlier position. tokens: how many,
    by rank. contexts: for each latent at most, each from `before` tokens to `after`.
    """
    rows = [row for row in table.to_dict("records") if row["labels"] == "real" and not pd.isna(row["latent"])]
    ranks = sorted({row["rank"] for row in rows})[:tokens]
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["predicate"], row["rank"])):
        if row["rank"] in ranks:
            groups.setdefault((row["site"], row["dictionary"]), []).append(row)
    named = [(site, name, d) for site, of_site in dictionaries.items() for name, d in of_site.items()]
    named = [(site, name, d) for site, name, d in named if (site.hook, name) in groups]
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for window in windows:
        tokens_RC = window.tokens_RC
        for site, name, dictionary in named:
            latents_U, signs_U = (
                torch.tensor([int(row[column]) for row in groups[site.hook, name]]) for column in ("latent", "sign")
            )
            vectors = window.at(site)
            z_NU = columns(vectors.encode(dictionary).cpu(), latents_U) * signs_U
            z_NU[vectors.first_N] = 0
            for u, z_RC in enumerate(window.in_rows(z_NU, torch.zeros(*tokens_RC.shape, len(latents_U))).unbind(-1)):
                best = found.get((site.hook, name, u), []) + strongest(z_RC, tokens_RC, contexts, before, after)
                found[site.hook, name, u] = sorted(best, key=lambda c: -c["activations"][c["focus"]])[:contexts]
    entries = []
    for site, name, _ in named:
        for u, row in enumerate(groups[site.hook, name]):
            texts = [
                context | {"tokens": [text_of(tokenizer, i) for i in context["tokens"]]}
                for context in found.get((site.hook, name, u), [])
            ]
            about = {"site": site.hook, "dictionary": name, "predicate": row["predicate"], "token": row["token"]}
            entries.append(about | {"latent": int(row["latent"]), "sign": int(row["sign"]), "contexts": texts})
    return entries


def strongest(z_RC: Tensor, tokens_RC: Tensor, contexts: int, before: int, after: int) -> list[dict[str, Any]]:
    """Windows of token ids and activations about the greatest positive z, greatest first."""
    windows = []
    for place in z_RC.flatten().argsort(descending=True, stable=True)[:contexts].tolist():
        row, focus = divmod(place, z_RC.shape[1])
        start = max(focus - before, 0)
        if z_RC[row, focus] > 0:
            span = (row, slice(start, focus + after + 1))
            windows.append(
                {"tokens": tokens_RC[span].tolist(), "activations": z_RC[span].tolist(), "focus": focus - start}
            )
    return windows
