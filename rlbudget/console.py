"""What a command shows while it works: progress on stderr, results on stdout.

Nothing shown is read as markup, and no text controls the terminal: what a model, a server or a file
says appears with its control characters escaped. Messages hide the keys in addresses. What is read
by programs (``tell_json``, files) is the true text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment, Segments
from rich.table import Table

from rlbudget.errors import one_line, visible, without_keys

Advance = Callable[[int, int], None]
"""``advance(done, total)``"""


def quiet(done: int, total: int) -> None:
    """An ``Advance`` that shows nothing."""


_WIDEST = 10_000
"""columns; wider than any table"""
_WIDE = 200
"""columns where the output is no terminal, so that a table in a pipe is not cut"""


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


out = _console(stderr=False)
err = _console(stderr=True)


def tell(text: str) -> None:
    """A text of a model or a user on stdout, unwrapped, as it is."""
    print(visible(text), flush=True)


def tell_json(value: Any) -> None:
    """A value as one line of JSON in ASCII on stdout: true to the last character."""
    print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)


def show(table: RenderableType, *, on: Console | None = None) -> None:
    """A table on stdout, whole: wider than the terminal rather than cut short or folded."""
    console = on or out
    widest = console.options.update(width=_WIDEST)
    natural = widest.update(width=Measurement.get(console, widest, table).maximum)
    for line in console.render_lines(table, natural, pad=False):
        safe = [Segment(visible(part.text), part.style) for part in line]
        console.print(Segments([*safe, Segment.line()]), end="", crop=False)


def note(text: str) -> None:
    """A message on stderr, keys in addresses hidden."""
    print(visible(without_keys(text)), file=sys.stderr, flush=True)


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """A bar on stderr; where stderr is no terminal, a line each tenth of the way."""
    title = one_line(title)
    if not err.is_terminal:
        yield _lines(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Told:
    """Reports the first few skipped items, each on a line of stderr, and counts them all."""

    SHOWN = 10

    def __init__(self, what: str) -> None:
        self.what = what
        self.n = 0

    def __call__(self, problem: str) -> None:
        """Count one, and say it if it is one of the first."""
        self.n += 1
        if self.n <= self.SHOWN:
            print(f"rlbudget: {one_line(problem)}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        several = "" if self.n == 1 else "s"
        return f", {self.n} {self.what}{several} left out" if self.n else ""


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without frames: names on the left, numbers on the right."""
    table = Table(header_style="", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _lines(title: str) -> Advance:
    shown = -1

    def advance(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            print(f"{title}: {done} of {total}", file=sys.stderr, flush=True)

    return advance
