"""What is recorded at a checkpoint: signals, exit, trial answer, choice of an option."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy.typing as npt

from rlbudget.arrays import Floats, Ints
from rlbudget.models.reading import ExitResult, ProbeResult
from rlbudget.models.vocabulary import Vocabulary
from rlbudget.signals.repeats import TOKEN_REPEATS, TokenRepeats
from rlbudget.signals.text import TextWindow
from rlbudget.traces.trace import Checkpoint, Exit, Probe

if TYPE_CHECKING:
    from rlbudget.models.answers import OptionsResult


class Standing(Protocol):
    """Decodes of which some stand at a checkpoint; ``DecodeBatch`` says what each does."""

    at_checkpoint: Ints

    def thinking_ids(self, row: int) -> Ints: ...  # noqa: D102

    def thinking_tokens(self, rows: npt.ArrayLike) -> Ints: ...  # noqa: D102

    def signals(self, rows: npt.ArrayLike) -> dict[str, Floats]: ...  # noqa: D102

    def fork_exits(self, rows: npt.ArrayLike) -> list[ExitResult]: ...  # noqa: D102

    def probes_of(  # noqa: D102
        self, exits: Sequence[ExitResult], max_new: int
    ) -> list[ProbeResult] | None: ...

    def fork_probes(self, rows: npt.ArrayLike, max_new: int) -> list[ProbeResult]: ...  # noqa: D102

    def fork_options(  # noqa: D102
        self, rows: npt.ArrayLike, options: Sequence[Sequence[Sequence[int]]]
    ) -> list[OptionsResult]: ...


class Written:
    """The signals of what decodes have written, which go by their numbers: how much of it repeats
    itself and, with ``texts``, those of the text."""

    def __init__(self, vocabulary: Vocabulary, *, texts: bool) -> None:
        self._vocabulary = vocabulary
        self._texts = texts
        self._open: dict[int, tuple[TokenRepeats, TextWindow]] = {}

    def at(self, number: int, ids: Sequence[int] | Ints) -> dict[str, float]:
        """``signals.repeats.TOKEN_REPEATS`` and ``signals.text.TEXT_SIGNALS`` of a decode whose
        thinking so far are these ids."""
        if number not in self._open:
            self._open[number] = TokenRepeats(), TextWindow()
        repeats, text = self._open[number]
        read = repeats.tokens
        repeats.push(map(int, ids[read:]))
        found = {TOKEN_REPEATS: repeats.read()}
        if self._texts:
            text.push(self._vocabulary.added(ids, read))
            found |= text.read()
        return found

    def forget(self, number: int) -> None:
        """A decode has ended."""
        self._open.pop(number, None)


def checkpoints_of(
    batch: Standing,
    numbers: Sequence[int],
    options: Sequence[Sequence[Sequence[int]]],
    probe_tokens: int,
    score: Callable[[int, str], int],
    written: Written,
) -> Iterator[Checkpoint]:
    """What every row at a checkpoint has to say there.

    ``numbers`` are the rows' questions; ``options``, the token ids of each answer option, and
    ``score`` go by them. ``probe_tokens`` is the length of the trial answers, 0 for none.
    """
    rows = batch.at_checkpoint
    if not len(rows):
        return
    signals = batch.signals(rows)
    tokens = batch.thinking_tokens(rows).tolist()
    exits = batch.fork_exits(rows)
    probes = None
    if probe_tokens:
        probes = batch.probes_of(exits, probe_tokens)
        if probes is None:
            probes = batch.fork_probes(rows, probe_tokens)
    choosing = [row for row in rows.tolist() if options[numbers[row]]]
    read = batch.fork_options(choosing, [options[numbers[row]] for row in choosing])
    choices = dict(zip(choosing, read, strict=True))
    for place, row in enumerate(rows.tolist()):
        answer, probe = exits[place], probes[place] if probes else None
        looks = {"exit_entropy": answer.entropy}
        if probe:
            looks["probe_tail"] = probe.tail
        if row in choices:
            looks["answer_entropy"] = choices[row].entropy
            looks["option_tokens"] = float(choices[row].tokens)
        looks |= written.at(numbers[row], batch.thinking_ids(row))
        yield Checkpoint(
            thinking_tokens=tokens[place],
            signals={
                **{name: float(column[place]) for name, column in signals.items()},
                **looks,
            },
            exit=Exit(answer.answer, score(numbers[row], answer.answer), answer.answer_tokens),
            probe=Probe(probe.answer, probe.confidence, probe.tokens) if probe else None,
        )
