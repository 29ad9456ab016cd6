"""What a person sees while something runs: one progress bar style, on stderr."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from rayscope.escapes import one_line, visible

T = TypeVar("T")


class Terminal(Console):
    """A console on which no name from elsewhere can act:
    all text it prints is `visible`, in characters that the stream has.

    Line breaks stay, as those of what is printed; whoever prints a name that may hold some escapes it before.
    """

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=self.shown(segment.text))

    def shown(self, text: str) -> str:
        lines = "\n".join(map(visible, text.split("\n")))
        return lines.encode(self.encoding, "backslashreplace").decode(self.encoding)


console = Terminal(stderr=True)


def stdout() -> Terminal:
    """Where results go; made when it is asked for, since sys.stdout may be another by then."""
    return Terminal()


class RateColumn(ProgressColumn):
    """Units a second, over the whole task."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


@contextmanager
def progress(description: str, total: float | None, unit: str = "tokens") -> Iterator:
    """Yields `advance(n)`; shows the rate in units a second and the time left. Silent where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
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
    """One line, whatever the message holds."""
    console.print(one_line(message), soft_wrap=True)
