"""Thoughts that were written before, read again from checkpoint to checkpoint.

What the model would have measured while it wrote them, and what a stop at each checkpoint gives.
A stride of tokens is one forward pass, not one each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from rlbudget.arrays import Floats, Ints
from rlbudget.errors import UserError
from rlbudget.models.answers import OptionsResult
from rlbudget.models.attempts import BATCH_TOKENS, Attempts
from rlbudget.models.decode_batch import NOT_NUMBERS
from rlbudget.models.forks import Forks
from rlbudget.models.profiles import Profile
from rlbudget.models.reading import ExitResult, ProbeResult
from rlbudget.models.sampling import token_signals
from rlbudget.models.self_check import Driving, start
from rlbudget.models.vocabulary import LONGEST_CHARACTER, Vocabulary
from rlbudget.signals.tokens import Window

_NUMBERS_AT_ONCE = 2**25
"""logits of one forward pass"""


class Loaded(Protocol):
    """Weights that are ready; ``TransformersModel`` says what each is."""

    @property
    def network(self) -> Any: ...  # noqa: D102

    @property
    def profile(self) -> Profile: ...  # noqa: D102

    @property
    def vocabulary(self) -> Vocabulary: ...  # noqa: D102

    @property
    def driving(self) -> Driving: ...  # noqa: D102


class Rereading:
    """Thoughts that are read in lockstep, numbered by ``numbers``, which rise.

    Its checkpoints are those of ``DecodeBatch``: every ``stride`` tokens, none inside a character,
    none past the end.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: Loaded,
        prompts: Sequence[Sequence[int]],
        thoughts: Sequence[Sequence[int]],
        numbers: Sequence[int],
        *,
        stride: int,
    ) -> None:
        self.stride = stride
        self.at_checkpoint: Ints = np.empty(0, dtype=np.int64)
        """rows that stand at a checkpoint now"""
        self.ended: Ints = np.empty(0, dtype=np.int64)
        """rows whose last checkpoint is behind them since the last ``advance``"""
        self._vocabulary = model.vocabulary
        self._forks = Forks(model.vocabulary, model.profile)
        self._lengths = np.array([len(ids) for ids in thoughts], dtype=np.int64)
        self._thoughts = np.zeros((len(thoughts), int(self._lengths.max())), dtype=np.int64)
        for place, ids in enumerate(thoughts):
            self._thoughts[place, : len(ids)] = ids
        self._rows = np.array(numbers, dtype=np.int64)
        self._read = 0
        self._window = Window(len(thoughts))
        self._signals: dict[str, Floats] = {}
        self._sequences = start(model.driving, model.network, prompts)
        device = self._sequences.logits.device
        self._end_ids = torch.from_numpy(model.vocabulary.end_first_ids).to(device)

    @property
    def done(self) -> bool:
        """Whether all rows ended."""
        return not len(self._rows)

    @torch.inference_mode()
    def advance(self) -> None:
        """Go on to the next place on the grid; rows that end before it are in ``ended``.

        Raises ``UserError`` for logits that are NaN.
        """
        going = self._lengths >= self._read + self.stride
        self.ended, self.at_checkpoint = self._rows[~going], self._rows[:0]
        if not going.all():
            kept = np.flatnonzero(going)
            for name in ("_rows", "_lengths", "_thoughts"):
                setattr(self, name, getattr(self, name)[kept])
            if len(kept):
                self._sequences.keep(kept)
            self._window.keep(kept)
        if self.done:
            return
        tokens = self._thoughts[:, self._read : self._read + self.stride]
        vocabulary = self._sequences.logits.shape[-1]
        width = max(1, _NUMBERS_AT_ONCE // (len(tokens) * vocabulary))
        for begin in range(0, self.stride, width):
            self._take(tokens[:, begin : begin + width])
        self._read += self.stride
        stand = np.array([not self._inside(ids) for ids in self._thoughts], dtype=bool)
        self._signals = self._window.read(stand)
        self.at_checkpoint = self._rows[stand]

    def _take(self, tokens: Ints) -> None:
        given = torch.from_numpy(tokens).to(self._sequences.logits.device)
        logits = self._sequences.read(given)[:, :-1]
        measured = token_signals(logits.flatten(0, 1), given.flatten(), self._end_ids)
        each = measured.double().numpy(force=True).reshape(*tokens.shape, -1)
        if np.isnan(each).any():
            raise UserError(NOT_NUMBERS)
        for place in range(tokens.shape[1]):
            self._window.push(each[:, place], self._vocabulary.markers[tokens[:, place]])

    def _inside(self, ids: Ints) -> bool:
        begin = max(0, self._read - LONGEST_CHARACTER)
        return self._vocabulary.inside_character(ids[begin : self._read])

    def thinking_tokens(self, rows: npt.ArrayLike) -> Ints:
        """Tokens of thinking of each of these rows so far: shape (len(rows),)."""
        return np.full(len(np.asarray(rows)), self._read, dtype=np.int64)

    def thinking_ids(self, row: int) -> Ints:
        """The thinking of a row up to this place."""
        return self._thoughts[int(self._places([row])[0]), : self._read]

    def signals(self, rows: npt.ArrayLike) -> dict[str, Floats]:
        """The signals of ``signals.tokens.SIGNALS`` at this checkpoint: name -> (len(rows),)."""
        places = self._places(rows)
        return {name: column[places] for name, column in self._signals.items()}

    def fork_exits(self, rows: npt.ArrayLike) -> list[ExitResult]:
        """What a stop of these rows here would give."""
        return self._forks.exits(self._sequences, self._places(rows))

    def fork_probes(self, rows: npt.ArrayLike, max_new: int) -> list[ProbeResult]:
        """Trial answers of up to ``max_new`` tokens."""
        return self._forks.probes(self._sequences, self._places(rows), max_new)

    def probes_of(self, exits: Sequence[ExitResult], max_new: int) -> list[ProbeResult] | None:
        """The probes that these exits begin with; None where a probe has a cue of its own."""
        return self._forks.probes_of(exits, max_new)

    def fork_options(
        self, rows: npt.ArrayLike, options: Sequence[Sequence[Sequence[int]]]
    ) -> list[OptionsResult]:
        """How likely each option is as the trial answer of these rows."""
        return self._forks.options(self._sequences, self._places(rows), options)

    def _places(self, rows: npt.ArrayLike) -> Ints:
        return np.searchsorted(self._rows, np.asarray(rows, dtype=np.int64))


def read_again(
    model: Loaded,
    prompts: Sequence[Sequence[int]],
    thoughts: Sequence[Sequence[int]],
    *,
    stride: int,
    batch_size: int,
    on_halved: Callable[[str], None] | None = None,
) -> Iterator[Rereading]:
    """Read all thoughts, a batch after the other; rows are numbered as given.

    Yields the batch at every place on the grid, where rows of it stand at a checkpoint or have
    ended. Give the longest first: a batch is best of one length. Where the memory runs out rows
    that had not ended begin again in a new batch, half as wide; ``on_halved`` is told. Raises
    ``UserError`` for logits that are NaN, and where one row is too much.
    """
    attempts = Attempts(len(prompts), batch_size, on_halved=on_halved)
    for attempt in attempts:
        with attempt:
            left = attempt.rows
            longest = max(len(prompts[number]) + len(thoughts[number]) for number in left)
            longest += model.profile.max_answer_tokens + len(model.vocabulary.exit_ids)
            width = max(1, min(attempt.width, BATCH_TOKENS // longest))
            for numbers in (left[i : i + width] for i in range(0, len(left), width)):
                batch = Rereading(
                    model,
                    [prompts[number] for number in numbers],
                    [thoughts[number] for number in numbers],
                    numbers,
                    stride=stride,
                )
                while not batch.done:
                    batch.advance()
                    yield batch
                    for number in batch.ended.tolist():
                        attempt.ended(number)
