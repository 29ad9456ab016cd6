"""python tests/faults [quick | every] [PART OF A NAME ...]:
the tables of kills and of faults, printed and, when whole, written to docs/faults.md.

A command is killed before the first operation of each kind on each kind of file; with `every`, before every operation.
"""

import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import Place, warm
from kills import LINES, Tally, kills
from rows import faults, make_states

import toys
from rayscope.escapes import visible

DOCS = HERE.parent.parent / "docs" / "faults.md"


def main(arguments: list[str]) -> int:
    quick, every = "quick" in arguments, "every" in arguments
    parts = [a for a in arguments if a not in ("quick", "every")]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        place = prepare(Path(work))
        lines = [line.name for line in LINES if chosen(line.name, parts) and not (quick and line.slow)]
        names = [fault.name for fault in faults() if chosen(fault.name, parts)]
        if names:
            make_states(place)
        workers = os.cpu_count() or 1
        with ProcessPoolExecutor(workers, get_context("fork")) as pool:  # each a fork of this, the warm interpreter
            of_lines = [pool.submit(kill, place, name, every, 1 if quick else 5) for name in lines]
            of_names = [pool.submit(meet, place, names[start::workers]) for start in range(workers)]
            tallies = [done.result() for done in of_lines]
            found = {row[0]: row for done in of_names for row in done.result()}
    rows, seconds = [found[name] for name in names], time.monotonic() - began
    wrong = [f"{t.name}: {w}" for t in tallies for w in t.wrong] + [f"{name}: {w}" for name, _, ws in rows for w in ws]
    print(f"\n{sum(t.kills for t in tallies)} kills and {len(rows)} faults in {seconds:.0f} s; wrong: {len(wrong)}")
    for each in wrong:
        print(visible(each))
    if not quick and not parts and not wrong:
        DOCS.parent.mkdir(exist_ok=True)
        DOCS.write_text(page(tallies, rows, seconds, every), encoding="utf-8")
    return bool(wrong)


def prepare(work: Path) -> Place:
    """The place, with a toy model and a toy text in it, in a warm interpreter."""
    os.environ["RAYSCOPE_CACHE"] = f"{work}/cache"
    os.environ.pop("WANDB_MODE", None)
    warm()
    place = Place(work)
    place.here.mkdir()
    toys.save_gpt2(place.here / "model")
    toys.write_text(place.here / "prose.txt")
    place.keep("nothing")
    return place


def kill(place: Place, name: str, every: bool, randomly: int) -> Tally:
    """In a worker: every kill of a line."""
    own, (line,) = place.copied(), [line for line in LINES if line.name == name]
    for tally in kills(own, line, every=every, randomly=randomly):
        if tally.kills % 20 == 0:
            print(f"{name}: {tally.equal} of {tally.kills} kills", flush=True)
    print(f"{name}: {tally.equal} of {tally.kills} kills equal, {tally.operations} file operations", flush=True)
    return tally


def meet(place: Place, names: list[str]) -> list[tuple[str, str, list[str]]]:
    """In a worker: (name, what came of it, what is wrong) of some faults."""
    own, found = place.copied(), []
    for fault in (fault for fault in faults() if fault.name in names):
        ended, wrong = fault.meet(own)
        said = ended.last.replace(f"{own.here}/", "").replace(f"{own.cache}/", "cache/")
        outcome = visible(said) if ended.code else own.like() or "exit code 0"
        print(f"{'WRONG' if wrong else 'right'}  {fault.name}: {visible('; '.join(wrong[:3])) or outcome}", flush=True)
        found.append((fault.name, outcome, wrong))
    return found


def chosen(name: str, parts: list[str]) -> bool:
    return not parts or any(part in name for part in parts)


def page(kills, faults, seconds: float, every: bool) -> str:
    """docs/faults.md."""
    lines = [
        "# Faults",
        "",
        "What a killed, stopped or damaged run comes to, and what is said of broken inputs. `make faults` does all of it again, on a toy",  # noqa: E501
        f"GPT-2 with 3 layers, and writes this page; here in {seconds / 60:.0f} minutes on {processor()}.",
        "",
        "## Killed, and the same command again",
        "",
        f"kill -9 before {'every file operation' if every else 'the first file operation of each kind (open for writing, rename, unlink, mkdir, rmdir) on each kind of file'}",  # noqa: E501
        "in the run's folder and the cache; 5 kills each within an operation, at random moments, and by SIGTERM or SIGINT. Equal: every file,",  # noqa: E501
        "bitwise, as after an uninterrupted run, and no other file. `python tests/faults every` kills before every operation that Python reports.",  # noqa: E501
        "",
        "| command | file operations | kills | equal |",
        "|---|---|---|---|",
        *(f"| {t.name} | {t.operations} | {t.kills} | {t.equal} |" for t in kills),
        "",
        "## Broken",
        "",
        "| what was wrong | what came of it |",
        "|---|---|",
        *(f"| {name.replace('|', ' ')} | {outcome.replace('|', ' ')} |" for name, outcome, _ in faults),
        "",
    ]
    return "\n".join(lines)


def processor() -> str:
    try:
        found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return f"{len(found)} cores of {found[0].partition(': ')[2]}"
    except (OSError, IndexError):
        return platform.machine()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
