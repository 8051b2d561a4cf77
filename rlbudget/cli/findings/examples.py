"""Scored examples: the first answers beside their targets, so that wrong scoring shows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rlbudget.cli.findings.finding import odd
from rlbudget.tasks.scorers import extracted
from rlbudget.traces.trace import Trace, scorer_of

EXAMPLES = 5
_LONGEST = 60


@dataclass(slots=True)
class FirstAnswers:
    """Takes traces as they end; shows the first ``EXAMPLES`` once they are there."""

    show: Callable[[Iterable[str]], None]
    held: list[Trace] = field(default_factory=list)

    def take(self, trace: Trace) -> None:
        """One more."""
        if len(self.held) < EXAMPLES:
            self.held.append(trace)
            if len(self.held) == EXAMPLES:
                self.show(of_examples(self.held))

    def flush(self) -> None:
        """Show what there is, where fewer came."""
        if 0 < len(self.held) < EXAMPLES:
            self.show(of_examples(self.held))
            self.held.clear()


def of_examples(traces: Sequence[Trace]) -> Iterator[str]:
    """A line each for some traces, and what is odd about them."""
    yield f"the first {len(traces)} answers, scored by {scorer_of(traces[0])}:"
    for trace in traces:
        yield "  " + example(trace)
    if not any(trace.final.exact_match for trace in traces):
        yield odd(
            f"the first {len(traces)} answers are all scored wrong",
            do="if they are right to your eye, stop here (Ctrl-C) and choose another scorer",
        )


def example(trace: Trace) -> str:
    """``1  target '12'  answer '12'``, and the text the answer was found in where it is longer."""
    written = trace.final.answer
    answer = extracted(written, scorer_of(trace))
    line = f"{trace.final.exact_match}  target {_short(trace.target)}  answer {_short(answer)}"
    return line if written.strip() == answer else f"{line}  in {_short(written, end=True)}"


def _short(text: str, *, end: bool = False) -> str:
    """A text on one line in quotes, its end kept rather than its beginning where it is long."""
    line = " ".join(text.split())
    if len(line) > _LONGEST:
        line = "…" + line[1 - _LONGEST :] if end else line[: _LONGEST - 1] + "…"
    return f"'{line}'"
