"""A part's record as a table to read, and as a piece of the day's JSON for this machine."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from rayscope import __version__
from rayscope.benchmarks.race import slug
from rayscope.files import write_whole
from rayscope.limits import met
from rayscope.records import cpu_model

Record = dict[str, Any]


def table(part: str, record: Record) -> str:
    """The part's rows and checks, aligned; a row that failed says how instead of its numbers."""
    rows, unit = record["rows"], record["unit"]
    fvu = any("fvu" in row for row in rows)
    head = ["contender", f"{unit}/s", "CPU-s/step", "peak MB", *(["FVU"] if fvu else [])]
    head += ["against", "x its time", "asked", "met"]
    lines = [[f"{part}: {record['threads']} threads, medians of {record['rounds']} rounds"], head]
    for row in rows:
        if "error" in row:
            lines.append([row["contender"], f"failed: {row['error']}"])
            continue
        numbers = [short(row["per_second"]), short(row["cpu_seconds"]), short(row.get("peak_mb"))]
        numbers += [short(row.get("fvu"))] if fvu else []
        lines.append([row["contender"], *numbers, row.get("against", ""), short(row.get("ratio")), *verdict(row)])
    if record["checks"]:
        lines += [[""], ["check", "value", "asked", "met"]]
        lines += [[check["check"], short(check["value"]), *verdict(check)] for check in record["checks"]]
    return aligned(lines)


def short(value: float | None) -> str:
    """Three digits: 12,345 · 123 · 1.23 · 0.0123."""
    if value is None:
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.1e}"


def verdict(row: Record) -> tuple[str, str]:
    return row.get("limit") or "", {True: "yes", False: "NO"}.get(row.get("met"), "")  # type: ignore[arg-type]


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, among neighbouring lines of the same length; names left, the rest right."""
    text, start = [], 0
    for stop in range(1, len(lines) + 1):
        if stop == len(lines) or len(lines[stop]) != len(lines[start]):
            block = lines[start:stop]
            widths = [max(len(line[i]) for line in block) for i in range(len(block[0]))]
            for line in block:
                first, *rest = line
                cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
                text.append("  ".join(cells).rstrip())
            start = stop
    return "\n".join(text)


def path_of(out: Path, scale: str) -> Path:
    """<date>-<machine>.json; another scale than the full one is in its name, for its numbers are not comparable."""
    name = f"{date.today().isoformat()}-{slug(f'{cpu_model()} {os.cpu_count()} cores')}"
    return out / (f"{name}.json" if scale == "full" else f"{name}-{scale}.json")


def read(path: Path) -> Record:
    """The file's content; no parts if it is not there.

    Raises ValueError if it is not what `merge` wrote, or was measured on another machine or with other versions.
    """
    if not path.exists():
        return {"machine": machine(), "parts": {}}
    try:
        held = json.loads(path.read_bytes())
        for record in held["parts"].values():
            for row in record["rows"]:
                met(row.get("ratio"), row.get("limit"))
        differing = [key for key, value in machine().items() if held["machine"].get(key) != value]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what rayscope benchmark wrote ({type(error).__name__}: {error}); "
            "move it away, or give another out="
        ) from None
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path} was measured with {key} {held['machine'].get(key)}, here it is {machine()[key]}; "
            "move it away, or give another out="
        )
    return held


def merge(path: Path, part: str, record: Record) -> Record:
    """The file's content with this part's record in place of an older one. Raises ValueError as `read` does."""
    merged = {"machine": machine(), "parts": {**read(path)["parts"], part: record}}
    write_whole(path, json.dumps(merged, indent=1) + "\n")
    return merged


def machine() -> Record:
    """What decides the speeds; no name of the host."""
    supported = {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **supported,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rayscope": __version__,
    }
