"""What a person sees while something runs: one progress bar style, on stderr."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
console = Console(stderr=True, highlight=False)


class RateColumn(ProgressColumn):
    """Units a second, over the whole task."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


@contextmanager
def progress(description: str, total: float | None, unit: str = "tokens") -> Iterator:
    """Yields `advance(n)`; shows the rate in units a second and the time left. Silent where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4) as bar:
        task = bar.add_task(description, total=total, unit=unit)
        yield lambda n=1: bar.advance(task, n)


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "steps") -> Iterator[T]:
    """The items, with a bar that advances by one for each."""
    with progress(description, total if total is not None else len(items), unit) as advance:  # type: ignore[arg-type]
        for item in items:
            yield item
            advance()


def say(message: str) -> None:
    """One line of plain text: no markup is read from it."""
    console.print(message, markup=False, soft_wrap=True)
