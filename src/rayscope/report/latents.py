"""The latent browser: each token's best latent and the contexts in which it is strongest."""

import math
from typing import Any

from rayscope.escapes import ascii_repr

BEFORE, AFTER, SHOWN = 24, 12, 8  # tokens shown around the focus, contexts shown for a latent


def contexts(found: dict[str, Any]) -> list[dict]:
    """Groups of latents by site and dictionary; most frequent token first where ranks are known."""
    features, groups = found.get("token_features.csv"), {}
    known = {}
    if features is not None:
        for row in features[features["labels"] == "real"].to_dict("records"):
            known[row["site"], row["dictionary"], row["predicate"], row["token"]] = row
    for entry in found.get("contexts.json", []):
        row = known.get(tuple(entry[key] for key in ("site", "dictionary", "predicate", "token")), {})
        latent = {key: entry[key] for key in ("predicate", "latent", "sign")}
        latent |= {"token": ascii_repr(entry["token"]), "rank": row.get("rank", math.inf)}
        latent |= {"score": score(row) if row else "", "contexts": []}
        peak = (
            max((abs(a) for c in entry["contexts"] for a in c["activations"] if math.isfinite(a)), default=0.0) or 1.0
        )
        for context in entry["contexts"][:SHOWN]:
            focus = context["focus"]
            spans = list(zip(context["tokens"], context["activations"], strict=False))
            first, last = max(0, focus - BEFORE), focus + AFTER + 1
            latent["contexts"].append(
                {
                    "before": first > 0,
                    "after": last < len(spans),
                    "spans": [
                        {
                            "text": text or "(empty)",
                            "shade": f"{0.75 * min(1.0, abs(a) / peak):.2f}" if math.isfinite(a) and a != 0 else "",
                            "sign": "minus" if a < 0 else "plus",
                            "focus": i == focus,
                            "activation": f"{a:.3g}",
                        }
                        for i, (text, a) in list(enumerate(spans))[first:last]
                    ],
                }
            )
        groups.setdefault((entry["site"], entry["dictionary"]), []).append(latent)
    return [
        {"site": site, "dictionary": name, "latents": sorted(latents, key=lambda one: (one["rank"], one["predicate"]))}
        for (site, name), latents in groups.items()
    ]


def score(row: dict[str, Any]) -> str:
    """How well the latent tells its token, and the tokens on which it fires most instead."""
    said = f"balanced accuracy {row['balanced_accuracy']:.3f}"
    if row["hard_tokens"]:
        found = "found" if row["found"] == "True" else "not found"
        said += f", AUROC {row['hard_auroc']:.3f} against the nearest of {row['hard_tokens']}: {found}"
    return said
