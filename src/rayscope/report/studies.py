"""Finished studies: their verdicts in words, for the terminal and for a report."""

import base64
import json
from pathlib import Path
from typing import Any

from rayscope.runs.replacing import is_replaced

PASSED = {True: "pass", False: "FAIL", None: "reported"}


def judged(passed: bool | None, threshold: bool) -> str:
    return "not judged" if passed is None and threshold else PASSED[passed]


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def verdict_lines(verdict: dict[str, Any]) -> list[str]:
    """The study's line, then one for each of its predictions: what was predicted, asked and observed."""
    seeds = f"{len(verdict['seeds'])} seed{'s' if len(verdict['seeds']) != 1 else ''}"
    trained = [f"{' and '.join(f'{tokens:,}' for tokens in verdict['budgets'])} tokens"] if verdict["budgets"] else []
    about = ", ".join([f"size {verdict['size']}", f"model {verdict['model']}", seeds, *trained])
    asked = any(one["threshold"] for one in verdict["predictions"].values())
    lines = [f"{verdict['study']} ({about}): {judged(verdict['pass'], asked)}. {verdict['question']}"]
    for name, one in verdict["predictions"].items():
        low, high = one["ci"]
        interval = f" ({number(low)} to {number(high)})" if low != high else ""
        asked = f", asked {one['threshold']}" if one["threshold"] else ""
        what = f"{number(one['observed'])}{interval}{asked}"
        said = f"{judged(one['pass'], bool(one['threshold']))}: {one['prediction']} [{name}]: observed {what}"
        lines.append(f"  {said}{convergence(one)}")
    return lines


def convergence(one: dict[str, Any]) -> str:
    """Whether the number is the same with three times the tokens, and if not what it is at each budget."""
    if one["converged"]:
        return "; converged"
    at = ", ".join(f"{number(value)} at {int(tokens):,} tokens" for tokens, value in one.get("at", {}).items())
    return f"; {'not converged: ' * (one['converged'] is False)}{at}" if at else ""


def read_verdict(path: Path) -> dict[str, Any]:
    """What a study wrote. Raises ValueError, with the path and what is wrong, for anything else."""
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        check(
            verdict,
            {
                **dict.fromkeys(("study", "question", "size", "model"), str),
                **dict.fromkeys(("seeds", "budgets"), list),
                "predictions": dict,
            },
        )
        for one in verdict["predictions"].values():
            check(one, {"prediction": str, "threshold": str | None, "ci": list})
            check({"at": {}, **one}, {"at": dict})
        if not verdict["seeds"]:
            raise ValueError("seeds is []")
        verdict_lines(verdict)  # numbers are such as can be shown
    except KeyError as error:
        why = f"{error.args[0]!r} is not there"
    except RecursionError:
        why = "it is nested too deeply"
    except (ValueError, TypeError) as error:  # JSON's and UTF-8's errors are ValueErrors
        why = str(error)
    else:
        return verdict
    raise ValueError(
        f"{path} is not what `rayscope study` writes ({why:.80}); remove it, and the same study makes it again"
    )


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def check(found: Any, types: dict[str, Any]) -> None:
    """Raises ValueError or KeyError for what is no mapping with these entries, and pass and converged, which may be
    null."""
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}")
    for key, kind in types.items():
        if not isinstance(found[key], kind):
            raise ValueError(f"{key} is {found[key]!r:.40}")
    for key in ("pass", "converged"):
        if not isinstance(found[key], bool | None):
            raise ValueError(f"{key} is {found[key]!r:.40}")


def finished(folder: Path) -> list[dict[str, Any]]:
    """{name, lines, figure (data URI), passed} of every study below the folder, in the order of their paths.

    Raises ValueError for a broken verdict.
    """
    found = []
    for path in sorted(folder.rglob("verdict.json")) if folder.is_dir() else []:
        if is_replaced(path.relative_to(folder)):
            continue  # by a later run, which is shown
        verdict = read_verdict(path)
        lines = verdict_lines(verdict)
        drawn = path.with_name("figure.svg")
        svg = drawn.read_bytes() if drawn.is_file() else b""
        figure = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" if svg else ""
        found.append({"name": path.parent.name, "lines": lines, "figure": figure, "passed": verdict["pass"]})
    return found
