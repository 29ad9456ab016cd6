"""A run folder's files into RUN/report/index.html: one file, no scripts, nothing fetched, all text shown as text."""
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false, reportReturnType=false
# (what pandas' own annotations say of df[...] is a union of everything)

import base64
import csv
import io
import json
import math
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from omegaconf import OmegaConf

from rayscope.report import figures
from rayscope.report.tables import (
    BASELINES,
    COLUMNS,
    METHODS,
    METRICS,
    ROLES,
    answer,
    at_k,
    headline_k,
    rows,
    seeds_said,
    verdicts,
)

TEXT = {"site", "dictionary", "kind", "metric", "position0", "split", "predicate", "token", "labels"}
FEATURES = [
    "site",
    "dictionary",
    "kind",
    "k",
    "predicate",
    "token",
    "rank",
    "balanced_accuracy",
    "labels",
    "appeared_at",
]
FILES = {  # file: (what it holds, the command that makes it, columns that it must have)
    "config.yaml": ("what was run", "train", []),
    "environment.json": ("versions, threads and command", "train", []),
    "training.csv": ("training curves", "train", ["tokens"]),
    "evaluation.csv": ("the comparison, its figures and verdicts", "evaluate", COLUMNS),
    "latent_density.csv": ("density histograms", "evaluate", ["site", "dictionary", "latent", "density"]),
    "token_features.csv": ("token-feature figures", "features", FEATURES),
    "contexts.json": ("latents with their top contexts", "features", []),
}
BEFORE, AFTER, SHOWN = 24, 12, 8  # tokens shown around the focus, contexts shown for a latent

DETAILS = ("versions", "threads", "started", "seconds", "device", "precision")
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
RETURN = "\ue00d"  # private use: stands for a carriage return while a CSV file is read


def visible(text: str) -> str:
    """Every character that would hide, move or break something as its escape: \\n, \\x00, \\u202e.

    So is a mark that would settle on the character before the text.
    """
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) in HIDDEN or (i == 0 and unicodedata.category(c)[0] == "M") else c
        for i, c in enumerate(text)
    )


def read_csv(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    """Read by the csv module, to which tokens such as NA, null and "\\0" are text; blank numbers are nan."""
    text = path.read_bytes().decode("utf-8", "replace")
    if (
        "\r\n" not in text.partition("\n")[0] + "\n"
    ):  # then a carriage return is a token's, which writers leave unquoted
        text = text.replace("\r", RETURN)
    lines = csv.reader(io.StringIO(text, newline=""))
    header = next(lines, [])
    body = [[field.replace(RETURN, "\r") for field in line] for line in lines if line]
    missing = [column for column in needed if column not in header]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns should be {', '.join(needed)}")
    uneven = next((i for i, line in enumerate(body, 2) if len(line) != len(header)), None)
    if uneven:
        raise ValueError(f"{path}: record {uneven} has not the {len(header)} fields of the header; was it cut off?")
    table = pd.DataFrame(body, columns=header, dtype=object)
    for column in table.columns:
        if column not in TEXT:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table


def read(run: Path) -> dict[str, Any]:
    """{file: its content} of what is there."""
    found: dict[str, Any] = {}
    for name, (_, _, needed) in FILES.items():
        path = run / name
        if path.is_file():
            try:
                text = path.suffix != ".csv" and path.read_text(encoding="utf-8", errors="replace")
                found[name] = (
                    read_csv(path, needed) if not text else json.loads(text) if path.suffix == ".json" else text
                )
            except (json.JSONDecodeError, csv.Error) as error:
                raise ValueError(f"{path} cannot be read ({error}); make it again or remove it") from None
    return found


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text) pairs."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and all(not isinstance(item, dict | list) for item in value):
        return [(name, ", ".join(map(str, value)))]
    return [(name, str(value))]


def what_was_run(found: dict[str, Any], table: pd.DataFrame) -> list[tuple[str, str]]:
    """The lines at the top of the page: model, text, sites, sizes, seeds, command."""
    try:
        config = OmegaConf.to_container(OmegaConf.create(found.get("config.yaml", "")), resolve=False)
    except Exception as error:  # whatever YAML or OmegaConf says of a broken file
        config = {"config.yaml": f"cannot be read: {str(error).splitlines()[0]}"}
    lines = []
    for key in ("config.yaml", "model", "text", "sites", "tokens", "seed", "device", "precision"):
        if isinstance(config, dict) and config.get(key) is not None:
            pairs = flat(config[key])
            lines.append((key, "; ".join(f"{name} {value}" if name else value for name, value in pairs)))
    if len(table):
        ks = ", ".join(f"{k:.0f}" for k in sorted(table["k"].dropna().unique()))
        lines.append(("sites evaluated", ", ".join(dict.fromkeys(table["site"]))))
        lines.append(("k", ks or "none"))
        for name, heading in (("trained_tokens", "training tokens"), ("tokens", "evaluation tokens")):
            if table[name].notna().any():
                lines.append((heading, f"{table[name].max():,.0f}"))
        lines.append(("seeds", seeds_said(found["evaluation.csv"])))
    environment = found.get("environment.json", {})
    for key, value in environment.items() if isinstance(environment, dict) else ():
        if key == "command":
            lines.append((key, shlex.join(map(str, value)) if isinstance(value, list) else str(value)))
        elif key == "versions":
            lines.append((key, ", ".join(f"{name} {version}" for name, version in flat(value))))
        else:
            lines.append((key, "; ".join(f"{name} {inner}".strip() for name, inner in flat(value))))
    return lines


def cells(table: pd.DataFrame) -> list[dict]:
    """Rows grouped by role for the template: a cell has the text, the exact value and the interval."""
    groups = []
    for name, heading in ROLES.items():
        lines = []
        for row in table[table["role"] == name].to_dict("records"):
            line: dict[str, Any] = {"name": row["dictionary"], "kind": row["kind"], "cells": []}
            for key in ("k", "latents"):
                line[key] = "" if math.isnan(row[key]) else f"{row[key]:,.0f}"
            for metric in METRICS.values():
                value, low, high = row[metric.name], row[f"{metric.name}_low"], row[f"{metric.name}_high"]
                interval = metric.name in ("fvu", "dce", "kl") and low < high
                line["cells"].append(
                    {
                        "text": metric.show(value),
                        "value": "" if math.isnan(value) else repr(float(value)),
                        "interval": f"{metric.show(low)} to {metric.show(high)}" if interval else "",
                    }
                )
            lines.append(line)
        if lines:
            groups.append({"role": name, "heading": heading, "rows": lines})
    return groups


def sites(evaluation: pd.DataFrame, table: pd.DataFrame) -> list[dict]:
    """What the template shows of each site."""
    k = headline_k(table)
    signed = list(dict.fromkeys(table.loc[table["role"] == "directions", "family"]))
    found = []
    for site in dict.fromkeys(table["site"]):
        here, this = table[table["site"] == site], evaluation[evaluation["site"] == site]
        excluded, included = here[here["position0"] == "excluded"], here[here["position0"] == "included"]
        all_k = verdicts(this)
        headline = [row for row in all_k if row["k"] == k and row["role"] == "rays"]
        beside = verdicts(this, against=signed, roles=("rays",)) if signed else []
        found.append(
            {
                "name": site,
                "k": f"{k:.0f}",
                "answer": answer(headline),
                "verdicts": pairs(headline),
                "all": pairs(all_k + beside),
                "included_verdicts": pairs(verdicts(this, position0="included")),
                "headline": cells(at_k(excluded, k)),
                "excluded": cells(excluded),
                "included": cells(included),
            }
        )
    return found


def pairs(found: Sequence[dict]) -> list[dict]:
    """A line for each dictionary and rival, its fvu and dce side by side."""
    lines: dict[tuple, dict] = {}
    for row in found:
        line = lines.setdefault((row["ours"], row["k"], row["baseline"]), {"row": row, "cells": []})
        show = METRICS[row["metric"]].show
        note = " (intervals overlap)" if row["overlap"] else " (no interval)" if row["overlap"] is None else ""
        cell = {"ours": show(row["value"]), "theirs": show(row["baseline_value"]), "outcome": row["outcome"] + note}
        line["cells"].append(cell | {"mark": row["outcome"].replace(" ", "-")})
        line |= {"bits": METRICS["bits"].show(row["bits"]), "method": METHODS[row["method"]], "role": row["role"]}
    return list(lines.values())


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
        latent |= {"score": f"{row['balanced_accuracy']:.3f}" if row else "", "contexts": []}
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


def ascii_repr(token: str) -> str:
    """A token in quotes, its spaces seen; letters of other scripts stay."""
    return f"'{visible(token)}'"


def drawings(found: dict[str, Any], table: pd.DataFrame) -> dict[str, str]:
    """{name: data URI} of every figure with something to draw. Inside an image no SVG can act on the page."""
    features, density, training = (
        found.get(f"{name}.csv") for name in ("token_features", "latent_density", "training")
    )
    both = [table[["role", "family", "kind"]]] + (
        [] if features is None else [figures.at_headline(features)[["role", "family", "kind"]]]
    )
    look = figures.styles(pd.concat([one for one in both if len(one)] or both[:1]))
    made = {}
    for position0 in ("excluded", "included"):
        part = table[table["position0"] == position0]
        made |= {
            f"{metric}_{position0}": figures.bits_figure(part, metric, look) for metric in ("fvu", "dce") if len(part)
        }
    excluded = table[table["position0"] == "excluded"]
    if features is not None:
        made |= {"tokens": figures.token_figure(features, look), "appeared": figures.appeared_figure(features, look)}
    if density is not None:
        made["density"] = figures.density_figure(density, excluded, look)
    if training is not None:
        made["training"] = figures.training_figure(training, excluded, look)
    return {
        name: f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
        for name, svg in made.items()
        if svg
    }


def build(run: Path) -> Path:
    """Writes RUN/report/index.html from what the folder holds, naming what it does not; returns its path."""
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder; give the one that a run was written to (out=...)")
    found = read(run)
    evaluation = found.get("evaluation.csv", pd.DataFrame(columns=COLUMNS))
    table = rows(evaluation)
    ran = what_was_run(found, table)
    try:
        latents = contexts(found)
    except (KeyError, TypeError, AttributeError) as error:
        path = run / "contexts.json"
        raise ValueError(
            f"{path} is not what `rayscope features` writes ({error!r}); make it again or remove it"
        ) from None
    missing = [
        {"file": name, "holds": holds, "command": f"rayscope {command} out={shlex.quote(str(run))}"}
        for name, (holds, command, _) in FILES.items()
        if name not in found
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    page = environment.get_template("report.html").render(
        title=run.resolve().name,
        ran=[line for line in ran if line[0] not in DETAILS],
        details=[line for line in ran if line[0] in DETAILS],
        config=found.get("config.yaml", "").splitlines(),
        missing=missing,
        metrics=list(METRICS.values()),
        sites=sites(evaluation, table),
        baselines=" and ".join(BASELINES),
        figures=drawings(found, table),
        contexts=latents,
        seeds=seeds_said(evaluation) if len(evaluation) else "",
        roles=ROLES,
    )
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    temporary = folder / ".index.html"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(folder / "index.html")
    return folder / "index.html"
