"""The benchmark: its parts one after another, each into a table, the JSON and the figure."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rayscope.benchmarks.bench import Bench
from rayscope.benchmarks.environments import PEERS
from rayscope.benchmarks.figure import draw
from rayscope.benchmarks.parts import PARTS
from rayscope.benchmarks.records import merge, path_of, read, table
from rayscope.limits import met


def run(
    *,
    parts: Sequence[str],
    peers: Sequence[str],
    scale: dict[str, Any],
    limits: dict[str, dict[str, str]],
    threads: int | None,
    rounds: int,
    seed: int,
    out: str | Path,
    figure: str | Path | None,
    environments: str | Path | None,
    show: Callable[[str], None],
) -> Path:
    """Runs the parts, shows each one's table, and returns the JSON that they are merged into, part by part.

    limits: {part: {row or check: such as ">= 3.0"}}, of the full scale; at another nothing is judged.
    Raises ValueError, before the first part, for an unknown part or peer, a wrong limit, a JSON that is not ours, and
    an OSError if a file cannot be written.
    """
    if not parts:
        raise ValueError(f"parts=[]: give at least one of {', '.join(PARTS)}")
    nearest("parts", parts, list(PARTS))
    nearest("peers", peers, PEERS)
    if threads is None:
        raise ValueError("threads=null: times are of a known number of threads; give one, such as threads=2")
    if rounds < 1 or threads < 1:
        raise ValueError(f"rounds={rounds} and threads={threads} must be at least 1")
    out = Path(out)
    path, asked = path_of(out, scale["name"]), limits if scale["name"] == "full" else {}
    read(path)
    drawing = Path(figure) if figure else path.with_suffix(".svg")
    if drawing.is_dir():
        raise ValueError(f"figure={drawing}: is a folder; give the name of a file, such as {drawing / 'speed.svg'}")
    for part, named in limits.items():
        for name, limit in named.items():
            try:
                met(0.0, limit)
            except ValueError as error:
                raise ValueError(f"limits.{part}.{name}: {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        function, unit = PARTS[part]
        with TemporaryDirectory(prefix="rayscope-benchmark-") as folder:
            bench = Bench(
                part, unit, scale[part], asked.get(part, {}), peers, rounds, threads, seed, Path(folder),
                out / "logs" / part, Path(environments).expanduser() if environments else None,
            )  # fmt: skip
            function(bench)
        record = {
            "unit": unit, "threads": threads, "rounds": rounds, "seed": seed, "size": scale[part], "rows": bench.rows,
            "checks": bench.checks,
        }  # fmt: skip
        show(table(part, record))
        merged = merge(path, part, record)
        draw(merged, drawing)
    return path


def nearest(key: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError for a name that is not known."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=2) or known
            raise ValueError(f"no {key}={name}; nearest: {', '.join(near)}")
