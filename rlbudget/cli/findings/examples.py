"""Scored examples: the first answers beside their targets, so that wrong scoring shows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rlbudget.cli.findings.finding import Finding, fact, odd
from rlbudget.tasks.scorers import extracted
from rlbudget.traces.trace import Trace, scorer_of

EXAMPLES = 5
_LONGEST = 60


@dataclass(slots=True)
class FirstAnswers:
    """Takes traces as they end; shows the first ``EXAMPLES`` once they are there."""

    show: Callable[[Iterable[Finding]], None]
    held: list[Trace] = field(default_factory=list)
    shown: bool = False

    def take(self, trace: Trace) -> None:
        """One more."""
        if not self.shown:
            self.held.append(trace)
        if len(self.held) == EXAMPLES:
            self.flush()

    def flush(self) -> None:
        """Show what there is, where fewer came."""
        if self.held and not self.shown:
            self.show(of_examples(self.held))
        self.shown, self.held = self.shown or bool(self.held), []


def of_examples(traces: Sequence[Trace]) -> list[Finding]:
    """A line each for some traces, and what is odd about them."""
    scorer = scorer_of(traces[0]) if traces else "auto"
    found = [fact(f"the first {len(traces)} answers, scored by {scorer}:")]
    found += [fact("  " + example(trace)) for trace in traces]
    if traces and not any(trace.final.exact_match for trace in traces):
        found.append(
            odd(
                f"the first {len(traces)} answers are all scored wrong",
                do="if they are right to your eye, stop here (Ctrl-C) and choose another scorer",
            )
        )
    return found


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
