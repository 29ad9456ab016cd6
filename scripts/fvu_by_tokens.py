"""python scripts/fvu_by_tokens.py FOLDER...: FVU against the tokens trained on, to choose a size before any verdict.

Of each dictionary trained in or below the folders, from their training.csv. A number is a mean of what was logged since
the one before it; they are a factor of two apart. The last has the rate at its end, where FVU falls once more: to
compare sizes, train each to its own end and compare the last numbers.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from rayscope.training.log import TRAINING_LOG, rows

FVU = "train/fvu/"


def by_tokens(path: Path) -> dict[str, list[tuple[int, float]]]:
    """{SITE/DICTIONARY: [(tokens, mean FVU since the row before)]}."""
    logged: dict[str, list[tuple[int, float]]] = {}
    for tokens, scalars, _ in rows(path):
        for name, value in scalars.items():
            if name.startswith(FVU):
                logged.setdefault(name.removeprefix(FVU), []).append((tokens, value))
    return {name: list(halving(points)) for name, points in logged.items()}


def halving(points: list[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """Means over ..., (T/4, T/2], (T/2, T] of the stretches in which something was logged."""
    ends = [points[-1][0]]
    while ends[0] // 2 >= points[0][0]:
        ends.insert(0, ends[0] // 2)
    for before, end in zip([0, *ends], ends, strict=False):
        if values := [value for tokens, value in points if before < tokens <= end]:
            yield end, sum(values) / len(values)


def main(folders: list[str]) -> None:
    paths = sorted(path for folder in folders for path in Path(folder).rglob(TRAINING_LOG))
    if not paths:
        raise SystemExit(f"fvu_by_tokens: no {TRAINING_LOG} in or below {', '.join(folders) or 'nothing'}")
    for path in paths:
        print(path.parent)
        for name, points in by_tokens(path).items():
            print(f"  {name}: " + ", ".join(f"{fvu:.3f} at {tokens:,}" for tokens, fvu in points))


if __name__ == "__main__":
    main(sys.argv[1:])
