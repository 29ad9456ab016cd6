"""Writes docs/options.md from conf/ and the declared types, and docs/benchmarks.md from benchmarks/*.json."""

import json
import re
from pathlib import Path

from rayscope.benchmarks.records import table
from rayscope.cli.options import OPTIONS, declared
from rayscope.cli.values import Anything

ROOT = Path(__file__).parents[1]
CONF, DOCS = ROOT / "conf", ROOT / "docs"
COMMANDS = {
    "base": "Every command",
    "train": "`train` and `demo`",
    "evaluate": "`evaluate`",
    "features": "`features`",
    "study": "`study`",
    "report": "`report`",
    "benchmark": "`benchmark`",
}
GROUPS = ("model", "text", "sites", "training", "finetuning", "evaluation", "features", "logger")
LINE = re.compile(r"(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>[^#]*?))?(?: +# ?(?P<comment>.*))?")
HIDDEN = ("._target_", "._partial_")  # which class a file of conf/ stands for
ALIKE = {  # parts that take what others take, most of them of studies
    "elsewhere": "text",
    **{f"study.run.{group}": "dictionaries.*" for group in ("rays", "frozen", "arms.*", "controls.*", "kinds.*")},
    "study.run.baselines.*": "baselines.list.*",
    "study.sizes.*.planted": "study.sizes.*",
}
Row = tuple[str, str, str, str]  # option, type, default, meaning


def rows(path: Path, prefix: str = "") -> list[Row]:
    """The lines of a YAML file that set a declared option."""
    options: list[Row] = []
    parent = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        matched = LINE.fullmatch(line)
        if not matched or (path.stem == "base" and matched["key"] == "out"):  # every command sets its own
            continue
        parent = parent if matched["indent"] else ""
        key = f"{prefix}{parent}{matched['key']}"
        kind = declared(key)
        if kind is not None and not key.endswith(HIDDEN):
            default = (matched["value"] or "").strip().replace("???", "must be given")
            options.append((key, kind.what, default, (matched["comment"] or "").strip()))
        elif not matched["indent"]:
            parent = f"{matched['key']}."
    return options


def markdown(options: list[Row]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in options]
    lines = [
        f"| `{key}` | {what} | {f'`{default}`' if default else ''} | {said} |" for key, what, default, said in cells
    ]
    return ["| option | values | default | |", "|---|---|---|---|", *lines, ""] if lines else []


def comment(path: Path) -> str:
    """The comment that opens the file, if any."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("# ") if first.startswith("# ") else ""


def choices(group: str) -> list[str]:
    paths = [path for path in sorted((CONF / group).glob("*.yaml")) if path.stem != "demo"]
    return ["| choice | |", "|---|---|", *(f"| `{path.stem}` | {comment(path)} |" for path in paths), ""]


def options_page() -> str:
    lines = [
        "# Options",
        "",
        "Options are [Hydra](https://hydra.cc)'s: `key=value` sets one, and `group=choice` takes a file of `conf/`.",
        "`--cfg job` shows what would run, `--help` lists a command's options. A value of the wrong type or range is",
        "refused in one line. This page is written by `python scripts/docs_pages.py`.",
        "",
    ]
    for name, heading in COMMANDS.items():
        lines += [f"## {heading}", "", *markdown(rows(CONF / f"{name}.yaml"))]
    for group in GROUPS:
        lines += [f"## {group}", ""]
        for path in sorted((CONF / group).glob("*.yaml")):
            if path.stem != "default":
                lines += [f"`{group}={path.stem}` {comment(path)}".rstrip(), ""]
            lines += markdown(rows(path, f"{group}."))
    lines += [
        "## dictionaries",
        "",
        "Several in a list: `'dictionaries=[topk,abstopk]'`.",
        "",
        *choices("dictionaries"),
    ]
    lines += ["NAME stands for each of them.", ""]
    shared = (CONF / f"dictionaries/shared/{name}.yaml" for name in ("learned", "k_sparse"))
    lines += markdown([row for path in shared for row in rows(path, "dictionaries.NAME.")])
    kinds = [path for path in sorted((CONF / "dictionaries").glob("*.yaml")) if path.stem != "demo"]
    lines += markdown([row for path in kinds for row in rows(path, "dictionaries.")])
    lines += ["## baselines", "", *choices("baselines"), *markdown(rows(CONF / "baselines/all.yaml", "baselines."))]
    lines += ["## elsewhere", "", "`demo` measures the headline's dictionaries on other text too.", ""]
    lines += choices("elsewhere")
    lines += ["## study", "", "The `study` command takes one of these.", "", *choices("study")]
    shown = "\n".join(lines)
    rest = [
        (name, kind.what, "", "")
        for key, kind in OPTIONS.items()
        if f"`{(name := key.replace('*', 'NAME'))}`" not in shown
        if not isinstance(kind, Anything) and not key.endswith(HIDDEN) and not key.startswith(tuple(ALIKE))
    ]
    rest += [
        (f"{part}.*".replace("*", "NAME"), f"as `{like}.*`".replace("*", "NAME"), "", "")
        for part, like in ALIKE.items()
    ]
    lines += [
        "## Inside a choice",
        "",
        "What a choice sets for its parts. NAME stands for any name; `--cfg job` shows the values.",
        "",
        *markdown(rest),
    ]
    return "\n".join(lines)


def benchmarks_page() -> str:
    lines = [
        "# Benchmark tables",
        "",
        "`make bench` wrote these numbers to `benchmarks/`, one file per day and machine. *x its time* is a",
        "contender's time per unit divided by that of the row that it is against, median over rounds. NO marks a limit",
        "that was missed.",
        "This page is written by `python scripts/docs_pages.py`; [Speed](speed.md) says what the rows mean.",
        "",
    ]
    for path in sorted((ROOT / "benchmarks").glob("*.json"), reverse=True):
        held = json.loads(path.read_bytes())
        machine = held["machine"]
        lines += [f"## {path.stem}", "", f"{machine['cores']} cores of {machine['cpu']}, torch {machine['torch']}.", ""]
        for part, record in held["parts"].items():
            lines += ["```text", table(part, record), "```", ""]
    return "\n".join(lines)


PAGES = {"options.md": options_page, "benchmarks.md": benchmarks_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
