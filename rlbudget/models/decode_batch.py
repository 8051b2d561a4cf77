"""A batch of decodes that rows join and leave, from checkpoint to checkpoint.

The rows advance together, a token each, and new ones join only where the others stand on the
grid of checkpoints: so a checkpoint is one moment for all thinking rows, at different counts of
thinking tokens, and their forks are one wide batch. Rows that ended their thinking write their
answer greedily in the same forward passes; a row that is through leaves its place at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.models.answers import OptionsResult
from rlbudget.models.forks import Forks
from rlbudget.models.profiles import Profile
from rlbudget.models.reading import ExitResult, Finished, ProbeResult, ends_answer, read_answer
from rlbudget.models.sampling import Uniforms, sample, token_signals
from rlbudget.models.sequences import Unfinished
from rlbudget.models.vocabulary import LONGEST_CHARACTER, Vocabulary
from rlbudget.signals.tokens import Window

NOT_NUMBERS = (
    "the model's logits are not numbers (NaN): its weights overflow in this dtype, or are damaged;"
    " try dtype float32"
)
_THINKING, _ANSWERING, _DONE = 0, 1, 2
_BY_PLACE = ("_rows", "_mode", "_step", "_history", "_thinking", "_answer_from", "_unseen",
             "_natural")  # fmt: skip


class DecodeBatch:
    """Decodes under way; rows are numbered in the order in which they began."""

    def __init__(
        self,
        sequences: Unfinished,
        vocabulary: Vocabulary,
        profile: Profile,
        seeds: Sequence[int],
        *,
        temperature: float,
        max_tokens: int,
        stride: int,
    ) -> None:
        n = len(sequences)
        self.vocabulary = vocabulary
        self.profile = profile
        self.stride = stride
        self.max_tokens = max_tokens
        self.final: dict[int, Finished] = {}
        """the end of each row that reached it, free to be taken out; rows stopped by ``stop``
        have none"""
        self.at_checkpoint: Ints = np.empty(0, dtype=np.int64)
        """rows that stand at a checkpoint now"""
        self.broken: set[int] = set()
        """rows of which some logits were NaN: no token after them means anything"""
        self.generated = 0
        """tokens produced by sampling or as natural answers so far, all rows, exits left out"""
        self._forks = Forks(vocabulary, profile)
        self._temperature = temperature
        self._sequences = sequences
        self._uniforms = Uniforms(seeds)
        self._window = Window(n)
        self._signals: dict[str, Floats] = {}
        self._end_ids = torch.from_numpy(vocabulary.end_first_ids).to(sequences.logits.device)
        self._tick = 0  # tokens since some moment on everybody's grid
        # By place among the sequences:
        self._rows = np.arange(n)
        self._next = n
        self._mode = np.full(n, _THINKING)
        self._step = np.zeros(n, dtype=np.int64)  # tokens written
        self._history = np.zeros((n, 256), dtype=np.int64)
        self._thinking = np.zeros(n, dtype=np.int64)
        self._answer_from = np.zeros(n, dtype=np.int64)  # first token of the answer itself
        self._unseen = np.zeros(n, dtype=np.int64)  # paid tokens that were replaced
        self._natural = np.ones(n, dtype=bool)
        # By row:
        self._forced: dict[int, list[int]] = {}

    @property
    def done(self) -> bool:
        """Whether no row has anything left to write."""
        return bool((self._mode == _DONE).all())

    @property
    def under_way(self) -> int:
        """Rows that have something left to write."""
        return int((self._mode != _DONE).sum())

    @property
    def takes_more(self) -> bool:
        """Whether ``join`` can be called: between two calls of ``advance``, and where the model's
        cache forgets only once all rows are through."""
        on_grid = self._tick % self.stride == 0 and self._sequences.takes_more
        return self.done or on_grid

    @property
    def held(self) -> tuple[int, int]:
        """(rows, columns) of the memory that the cache holds; zeros where it is not ours."""
        return self._sequences.held

    def join(self, sequences: Unfinished, seeds: Sequence[int]) -> Ints:
        """Take more rows in, standing before their first thinking token; their numbers.

        The checkpoint is over with that. Raises ``ValueError`` where ``takes_more`` is false.
        """
        if not self.takes_more:
            raise ValueError("rows join only where the others stand at a checkpoint")
        other = DecodeBatch(
            sequences, self.vocabulary, self.profile, seeds,
            temperature=self._temperature, max_tokens=self.max_tokens, stride=self.stride,
        )  # fmt: skip
        self.at_checkpoint = np.empty(0, dtype=np.int64)
        other._rows += self._next
        self._next += len(other._rows)
        if not self.done:
            self._drop_finished()
            self._keep(self._sequences.oldest_first(len(self._rows) + len(other._rows)))
            width = self._history.shape[1] - other._history.shape[1]
            other._history = np.pad(other._history, ((0, 0), (0, width)))
            self._sequences.join(sequences)
            self._window.join(other._window)
            self._uniforms.join(seeds)
            for name in _BY_PLACE:
                both = np.concatenate([getattr(self, name), getattr(other, name)])
                setattr(self, name, both)
        else:
            self._tick = 0
            for name in ("_sequences", "_window", "_uniforms", *_BY_PLACE):
                setattr(self, name, getattr(other, name))
        return other._rows

    @torch.inference_mode()
    def advance(self, *, pause_at_end: bool = False) -> None:
        """Run every thinking row to its next checkpoint or its end.

        There is no checkpoint inside a character: the row's next one is a stride further on.
        Afterwards ``at_checkpoint`` holds the rows at a checkpoint; it is empty when all rows
        are through. ``pause_at_end`` also returns where a row has just ended its thinking, before
        its answer: ``at_checkpoint`` is empty then as well, and ``done`` false.
        """
        self.at_checkpoint = np.empty(0, dtype=np.int64)
        while not self.done:
            thinking = int((self._mode == _THINKING).sum())
            self._advance_one()
            if pause_at_end and int((self._mode == _THINKING).sum()) < thinking:
                return
            if self._tick % self.stride == 0:
                stand = self._standing()
                if stand.any():
                    self._signals = self._window.read(stand)
                    self.at_checkpoint = self._rows[stand]
                    return

    def _standing(self) -> Bools:
        """Which places stand at a checkpoint: they think, and not inside a character."""
        stand: Bools = self._mode == _THINKING
        for place in np.flatnonzero(stand).tolist():
            step = int(self._step[place])
            last = self._history[place, max(0, step - LONGEST_CHARACTER) : step]
            stand[place] = not self.vocabulary.inside_character(last)
        return stand

    def thinking_tokens(self, rows: npt.ArrayLike) -> Ints:
        """Tokens of thinking of each of these rows so far: shape (len(rows),)."""
        places = self._places(np.asarray(rows, dtype=np.int64))
        thinks = self._mode[places] == _THINKING
        written: Ints = np.where(thinks, self._step[places], self._thinking[places])
        return written

    def signals(self, rows: npt.ArrayLike) -> dict[str, Floats]:
        """The signals of ``signals.tokens.SIGNALS`` at this checkpoint: name -> (len(rows),)."""
        places = self._places(np.asarray(rows, dtype=np.int64))
        return {name: column[places] for name, column in self._signals.items()}

    def fork_exits(self, rows: npt.ArrayLike) -> list[ExitResult]:
        """What a stop of these rows here would give; the decode goes on untouched."""
        index = np.asarray(rows, dtype=np.int64)
        exits = self._forks.exits(self._sequences, self._places(index))
        broken = [bool(np.isnan(written.logprobs).any()) for written in exits]
        self.broken.update(index[broken].tolist())
        return exits

    def fork_probes(self, rows: npt.ArrayLike, max_new: int) -> list[ProbeResult]:
        """Trial answers of up to ``max_new`` tokens; the decode goes on untouched."""
        index = np.asarray(rows, dtype=np.int64)
        probes = self._forks.probes(self._sequences, self._places(index), max_new)
        self.broken.update(index[[np.isnan(probe.confidence) for probe in probes]].tolist())
        return probes

    def probes_of(self, exits: Sequence[ExitResult], max_new: int) -> list[ProbeResult] | None:
        """The probes that these exits begin with; None where a probe has a cue of its own."""
        return self._forks.probes_of(exits, max_new)

    def fork_options(
        self, rows: npt.ArrayLike, options: Sequence[Sequence[Sequence[int]]]
    ) -> list[OptionsResult]:
        """How likely each option is as the trial answer of these rows; the decode goes on
        untouched. ``options`` has a row's token ids, see ``TransformersModel.option_ids``."""
        places = self._places(np.asarray(rows, dtype=np.int64))
        return self._forks.options(self._sequences, places, options)

    def stop(self, rows: npt.ArrayLike) -> list[ExitResult]:
        """End the thinking of these rows here and write their answers."""
        results = self.fork_exits(rows)
        self.drop(rows)
        return results

    def drop(self, rows: npt.ArrayLike) -> None:
        """Abandon rows."""
        index = np.asarray(rows, dtype=np.int64)
        self._mode[self._places(index)] = _DONE
        self.at_checkpoint = np.setdiff1d(self.at_checkpoint, index)

    def problem(self, row: int) -> str | None:
        """What is wrong with a row's decode, in one line."""
        return NOT_NUMBERS if row in self.broken else None

    def thinking_ids(self, row: int) -> Ints:
        """The thinking so far of a row under way."""
        (place,) = self._places(np.array([row]))
        return self._history[place, : int(self.thinking_tokens([row])[0])]

    def thinking_text(self, row: int) -> str:
        """``thinking_ids`` as text."""
        return self.vocabulary.text(self.thinking_ids(row), special=True)

    def _places(self, rows: Ints) -> Ints:
        place_of = {row: place for place, row in enumerate(self._rows.tolist())}
        try:
            return np.array([place_of[row] for row in rows.tolist()], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"row {error} is no longer being decoded") from None

    def _advance_one(self) -> None:
        self._drop_finished()
        logits = self._sequences.logits
        thinking = self._mode == _THINKING
        chosen = self._choose(logits, thinking)
        tokens = chosen.numpy(force=True).copy()
        if self._forced:
            for place, row in enumerate(self._rows.tolist()):
                if row in self._forced:
                    tokens[place] = self._forced[row][0]
        if thinking.any():
            measured = token_signals(logits, chosen, self._end_ids).double().numpy(force=True)
            self._window.push(measured, self.vocabulary.markers[tokens])
            nan = np.isnan(measured).any(axis=1)
        else:
            nan = logits.isnan().any(dim=-1).numpy(force=True)
        if nan.any():
            self.broken.update(self._rows[nan].tolist())
        if self._step.max() == self._history.shape[1]:
            self._history = np.concatenate([self._history, np.zeros_like(self._history)], axis=1)
        self._history[np.arange(len(tokens)), self._step] = tokens
        self._step += 1
        self._tick += 1
        self.generated += len(tokens)
        self._after_answer_tokens(np.flatnonzero(~thinking))
        self._after_thinking_tokens(np.flatnonzero(thinking), tokens)
        if not self.done:
            self._drop_finished()
            fed = self._history[np.arange(len(self._step)), self._step - 1]
            self._sequences.feed(torch.from_numpy(fed).to(logits.device)[:, None])

    def _choose(self, logits: torch.Tensor, thinking: Bools) -> torch.Tensor:
        greedy = None
        if self._temperature == 0 or not thinking.all():
            greedy = logits.argmax(dim=-1)
            if self._temperature == 0 or not thinking.any():
                return greedy
        # Row and position name the number, so a token does not depend on its neighbours.
        uniforms = torch.from_numpy(self._uniforms.at(self._step)).to(logits.device)
        sampled = sample(logits, self._temperature, uniforms)
        if greedy is None:
            return sampled
        return torch.where(torch.from_numpy(thinking).to(logits.device), sampled, greedy)

    def _after_thinking_tokens(self, places: Ints, tokens: Ints) -> None:
        gave_up = np.isin(tokens[places], self.vocabulary.eos_ids)
        for place in places[gave_up].tolist():
            # The model ended everything without an answer: what it would have to say next
            # takes the place of its end token, which was paid for all the same.
            step = int(self._step[place])
            self._unseen[place] = 1
            self._end_thinking(place, step - 1, step - 1)
        if self.vocabulary.end_id is not None:
            for place in places[tokens[places] == self.vocabulary.end_id].tolist():
                self._end_thinking(place, int(self._step[place]) - 1, None)
        else:
            for place in places[~gave_up].tolist():
                step = int(self._step[place])
                spelled = self.vocabulary.end_length(self._history[place, :step])
                if spelled:
                    # An end text may straddle a checkpoint; the thinking never ends before it.
                    before = (step - 1) // self.stride * self.stride
                    self._end_thinking(place, max(step - spelled, before), None)
        for place in places[self._step[places] == self.max_tokens].tolist():
            if self._mode[place] == _THINKING:
                self._natural[place] = False
                self._end_thinking(place, self.max_tokens, self.max_tokens)

    def _end_thinking(self, place: int, thinking: int, force_at: int | None) -> None:
        """Let a row answer from here; ``force_at`` is where the exit text goes, if it does."""
        step = int(self._step[place])
        self._mode[place] = _ANSWERING
        self._thinking[place] = thinking
        self._answer_from[place] = step
        if force_at is None:
            return
        queue = list(self.vocabulary.exit_ids)
        self._answer_from[place] = force_at + len(queue)
        if force_at < step:
            self._history[place, force_at] = queue.pop(0)
        if queue:
            self._forced[int(self._rows[place])] = queue

    def _after_answer_tokens(self, places: Ints) -> None:
        for place in places.tolist():
            row = int(self._rows[place])
            queue = self._forced.get(row)
            if queue is not None:
                queue.pop(0)
                if not queue:
                    del self._forced[row]
                continue
            ids = self._history[place, self._answer_from[place] : self._step[place]]
            stops = self.profile.answer_stop
            if (
                ids[-1] in self.vocabulary.eos_ids
                or len(ids) >= self.profile.max_answer_tokens
                or (stops and ends_answer(ids.tolist(), self.vocabulary, stops))
            ):
                self._finish(place, ids)

    def _finish(self, place: int, ids: Ints) -> None:
        self._mode[place] = _DONE
        step, thinking = int(self._step[place]), int(self._thinking[place])
        history = self._history[place]
        self.final[int(self._rows[place])] = Finished(
            answer=read_answer(ids, self.vocabulary, self.profile, self.profile.answer_stop),
            thinking_tokens=thinking,
            answer_tokens=step - thinking + int(self._unseen[place]),
            natural=bool(self._natural[place]),
            ids=tuple(history[:thinking].tolist()),
            text=self.vocabulary.text(history[:thinking], special=True),
            rest=self.vocabulary.text(history[thinking:step], special=True),
        )

    def _drop_finished(self) -> None:
        busy = self._mode != _DONE
        n = int(busy.sum())
        if n == len(busy):
            return
        # The last rows take the places of those that go: little is moved.
        kept = np.arange(n)
        kept[~busy[:n]] = n + np.flatnonzero(busy[n:])
        self._keep(kept)

    def _keep(self, places: Ints) -> None:
        self._sequences.keep(places)
        self._window.keep(places)
        self._uniforms.keep(places)
        for name in _BY_PLACE:
            setattr(self, name, getattr(self, name)[places])
