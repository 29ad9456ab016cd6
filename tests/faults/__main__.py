"""python tests/faults [quick] [PART OF A NAME ...]: the tables of kills and of faults, printed and, when whole, written to docs/faults.md."""

import os
import platform
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for toys
DOCS = HERE.parent.parent / "docs" / "faults.md"


def main(arguments: list[str]) -> int:
    quick, parts = "quick" in arguments, [a for a in arguments if a != "quick"]
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        os.environ["RAYSCOPE_CACHE"] = f"{work}/cache"
        os.environ["WANDB_MODE"] = "online"
        import harness

        import toys

        harness.warm()
        place = harness.Place(Path(work))
        place.here.mkdir()
        toys.save_gpt2(place.here / "model")
        toys.write_text(place.here / "prose.txt")
        place.keep("nothing")
        began = time.monotonic()
        kills = of_kills(place, quick, parts)
        faults = of_faults(place, parts)
        seconds = time.monotonic() - began
    wrong = [f"{t.name}: {w}" for t in kills for w in t.wrong] + [
        f"{name}: {'; '.join(w)}" for name, _, w in faults if w
    ]
    print(f"\n{sum(t.kills for t in kills)} kills and {len(faults)} faults in {seconds:.0f} s; wrong: {len(wrong)}")
    print("\n".join(wrong))
    if not quick and not parts and not wrong:
        DOCS.parent.mkdir(exist_ok=True)
        DOCS.write_text(page(kills, faults, seconds), encoding="utf-8")
    return bool(wrong)


def of_kills(place, quick: bool, parts: list[str]) -> list:
    from kills import kills, lines

    tallies = []
    for line in lines():
        if chosen(line.name, parts) and not (quick and line.slow):
            for tally in kills(place, line, every=not quick, randomly=1 if quick else 10):
                print(f"\r{tally.name}: {tally.equal} of {tally.kills} kills", end="", flush=True)
            print(f", {tally.operations} file operations")
            tallies.append(tally)
    return tallies


def of_faults(place, parts: list[str]) -> list[tuple[str, str, list[str]]]:
    from rows import faults, make_states

    rows = [fault for fault in faults() if chosen(fault.name, parts)]
    if rows:
        make_states(place)
    found = []
    for fault in rows:
        ended, wrong = fault.meet(place)
        print(
            f"{'WRONG' if wrong else 'right'}  {fault.name}: {ended.last if not wrong else '; '.join(wrong)}"[:300],
            flush=True,
        )
        found.append(
            (fault.name, f"exit code {ended.code}: {ended.last}" if ended.code else "result as without it", wrong)
        )
    return found


def chosen(name: str, parts: list[str]) -> bool:
    return not parts or any(part in name for part in parts)


def page(kills, faults, seconds: float) -> str:
    """docs/faults.md."""
    lines = [
        "# Faults",
        "",
        "What a killed, stopped or damaged run comes to, and what is said of broken inputs. `make faults` does all of it again, on a toy",
        f"GPT-2 with 3 layers, and writes this page; here in {seconds / 60:.0f} minutes on {processor()}.",
        "",
        "## Killed, and the same command again",
        "",
        "kill -9 before every file operation (open for writing, rename, unlink, mkdir, rmdir) in the run's folder and the cache; 10 kills each within",
        "an operation, at random moments, and by SIGTERM or SIGINT. Equal: every file, bitwise, as after an uninterrupted run, and no other file.",
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
