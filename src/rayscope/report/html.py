"""A run folder's files into RUN/report/index.html: one file, no scripts, nothing fetched, all text shown as text."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import base64
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from omegaconf import OmegaConf

from rayscope.escapes import visible
from rayscope.files import real, write_whole
from rayscope.report import figures
from rayscope.report.coders import coder_tables
from rayscope.report.elsewhere import SHOWN, compared_rows
from rayscope.report.features import MEANING, by_site
from rayscope.report.inputs import FILES, read
from rayscope.report.latents import contexts
from rayscope.report.metrics import METRICS
from rayscope.report.readings import readings, seconds_said, with_seconds
from rayscope.report.studies import finished
from rayscope.report.tables import (
    COLUMNS,
    ROLES,
    documents_said,
    headline_bits,
    points,
    rows,
    seeds_said,
    values_said,
)
from rayscope.report.texts import texts_said, unlike_said
from rayscope.report.verdicts import READ, Verdict, answer, by_method, outcome_said, said, verdicts
from rayscope.runs.run import PAGE, is_page

DETAILS = ("versions", "threads", "started", "seconds", "device", "precision")


def build(run: Path, studies: Path | None = None) -> Path:
    """Writes RUN/report/index.html from what the folder holds, naming what it does not; returns its path.

    studies: a folder below which finished studies are looked for.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder; give the one that a run was written to (out=...)")
    target = run / PAGE
    if os.path.lexists(target) and not is_page(target):
        raise ValueError(f"{target} is not a page that rayscope made; move it away, or give another out=")
    found = read(run)
    if not found and not (studies and real(studies).is_relative_to(real(run))):
        raise ValueError(nothing_in(run))
    evaluation = found.get("evaluation.csv", pd.DataFrame(columns=COLUMNS))
    table, every = rows(evaluation), with_seconds(points(evaluation), found.get("encode_seconds.csv"))
    ran = what_was_run(found, table)
    try:
        latents = contexts(found)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        path = run / "contexts.json"
        raise ValueError(
            f"{path} is not what `rayscope features` writes ({error!r}); "
            "remove it, and `rayscope features` makes it again"
        ) from None
    missing = [
        {"file": name, "holds": holds, "command": f"rayscope {command} out={shlex.quote(str(run))}"}
        for name, (holds, command, _) in FILES.items()
        if name not in found and name != "evaluation_elsewhere.csv"  # which not every demo makes
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
        title=real(run).name,
        ran=[line for line in ran if line[0] not in DETAILS],
        details=[line for line in ran if line[0] in DETAILS],
        config=found.get("config.yaml", "").splitlines(),
        missing=missing,
        metrics=list(METRICS.values()),
        sites=sites(evaluation, table, every),
        read=[METRICS[name] for name in READ],
        elsewhere=elsewhere_tables(found),
        by_coder=coder_tables(found),
        figures=drawings(found, table, every),
        features=by_site(found["token_features.csv"]) if "token_features.csv" in found else [],
        meaning=MEANING,
        contexts=latents,
        seeds=seeds_said(evaluation) if len(evaluation) else "",
        documents=documents_said(evaluation) if len(evaluation) else "",
        values=values_said(evaluation),
        texts=texts_said(evaluation) if len(evaluation) else "",
        roles=ROLES,
        studies=finished(Path(studies)) if studies else [],
    )
    target.parent.mkdir(exist_ok=True)
    write_whole(target, page)
    return target


def nothing_in(run: Path, most: int = 5) -> str:
    """Why there is no report of this folder, with the runs below it, if there are any."""
    runs = sorted(
        {path.parent for name in ("*/config.yaml", "*/*/config.yaml", "*/evaluation.csv") for path in run.glob(name)}
    )
    said = f"{run} holds no run: there is no {', '.join(list(FILES)[:-1])} or {list(FILES)[-1]}"
    if not runs:
        return said
    names = ", ".join(str(path.relative_to(run)) for path in runs[:most]) + (
        f" and {len(runs) - most} more" if len(runs) > most else ""
    )
    return f"{said}; below it are the runs {names}: give one, such as out={runs[0]}"


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
    for key, value in (
        sorted(environment.items()) if isinstance(environment, dict) else ()
    ):  # a resume writes another order
        if key == "command":
            lines.append((key, shlex.join(map(str, value)) if isinstance(value, list) else str(value)))
        elif key == "versions":
            lines.append((key, ", ".join(f"{name} {version}" for name, version in flat(value))))
        else:
            lines.append((key, "; ".join(f"{name} {inner}".strip() for name, inner in flat(value))))
    return lines


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text) pairs."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and all(not isinstance(item, dict | list) for item in value):
        return [(name, ", ".join(map(str, value)))]
    return [(name, str(value))]


def sites(evaluation: pd.DataFrame, table: pd.DataFrame, every: pd.DataFrame) -> list[dict]:
    """What the template shows of each site."""
    rate = headline_bits(every)
    found = []
    for site in dict.fromkeys(table["site"]):
        here, this = table[table["site"] == site], evaluation[evaluation["site"] == site]
        excluded, included = here[here["position0"] == "excluded"], here[here["position0"] == "included"]
        measured = every[every["site"] == site]
        judged = verdicts(measured, rate)
        rays = [verdict for verdict in judged if verdict.role == "rays" and verdict.position0 == "excluded"]
        found.append(
            {
                "name": site,
                "rate": METRICS["bits"].show(rate),
                "answers": [f"{who}: {answer(of)}" for who, of in by_method(rays).items()] or [answer(rays)],
                "unlike": unlike_said(this),
                "verdicts": pairs(rays, rate),
                "all": pairs([v for v in judged if v.role != "rays" and v.position0 == "excluded"], rate),
                "included_verdicts": pairs([v for v in judged if v.position0 == "included"], rate),
                "readings": reading_lines(measured[measured["position0"] == "excluded"], rate),
                "excluded": cells(excluded),
                "included": cells(included),
            }
        )
    return found


def elsewhere_tables(found: dict[str, Any]) -> dict[str, Any]:
    """What the template shows of text of another kind; empty if nothing was measured on any."""
    if "evaluation.csv" not in found or "evaluation_elsewhere.csv" not in found:
        return {}
    lines = compared_rows(found["evaluation.csv"], found["evaluation_elsewhere.csv"])
    by_site = {
        site: [line for line in lines if line["site"] == site] for site in dict.fromkeys(x["site"] for x in lines)
    }
    return {
        "sites": by_site,
        "metrics": [METRICS[name] for name in SHOWN],
        "texts": texts_said(found["evaluation_elsewhere.csv"]),
    }


def reading_lines(points: pd.DataFrame, rate: float) -> list[dict]:
    """Groups by role of what the template shows of each method at one rate."""
    found = readings(points, rate)
    groups = []
    for role, here in found.groupby("role", sort=False):
        lines = []
        for row in here.to_dict("records"):
            line = {"name": said(row["method"], row["coder"]), "bits": METRICS["bits"].show(row["bits"]), "cells": []}
            line |= {"l0": METRICS["l0"].show(row["l0"]), "seconds": seconds_said(row["seconds_per_1000"])}
            for metric in READ:
                show, low, high = METRICS[metric].show, row[f"{metric}_low"], row[f"{metric}_high"]
                interval = f"{show(low)} to {show(high)}" if low < high else ""
                line["cells"].append({"text": show(row[metric]), "interval": interval})
            lines.append(line)
        groups.append({"role": role, "heading": ROLES[str(role)], "rows": lines})
    return groups


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


def pairs(found: Sequence[Verdict], rate: float) -> list[dict]:
    """A line for each method under a coder and family, its fvu and dce side by side, with the numbers at a rate."""
    lines: dict[tuple, dict] = {}
    for verdict in found:
        key = (verdict.method, verdict.coder, verdict.family)
        line = lines.setdefault(key, {"ours": said(verdict.method, verdict.coder), "role": verdict.role, "cells": {}})
        show, there = METRICS[verdict.metric].show, verdict.at(rate)
        line["family"] = verdict.family
        line["cells"][verdict.metric] = {
            "numbers": f"{show(there['ours'])}, {show(there['theirs'])} ({there['best']})" if there else "",
            "said": outcome_said(verdict),
            "mark": there["outcome"] if there and verdict.judged else "",
        }
    return list(lines.values())


def drawings(found: dict[str, Any], table: pd.DataFrame, every: pd.DataFrame) -> dict[str, str]:
    """{name: data URI} of every figure with something to draw. Inside an image no SVG can act on the page."""
    features, density, training = (
        found.get(f"{name}.csv") for name in ("token_features", "latent_density", "training")
    )
    methods = [table[["role", "method"]]]
    if features is not None:
        methods.append(figures.at_headline(features)[["role", "method"]])
    look = figures.styles(pd.concat([one for one in methods if len(one)] or methods[:1]))
    made = {}
    for position0 in ("excluded", "included"):
        part = every[every["position0"] == position0]
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
