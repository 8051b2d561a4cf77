"""A batch of decodes in lockstep, from checkpoint to checkpoint.

Every thinking row stands at the same count of thinking tokens, so a checkpoint is one moment
for all. Rows that ended their thinking write their answer greedily in the same forward
passes; rows that are through are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rlbudget.models.answers import (
    Continuation,
    ExitResult,
    OptionsResult,
    ProbeResult,
    continue_greedily,
    ends_answer,
    make_probe,
    read_answer,
    read_options,
)
from rlbudget.models.profiles import Profile
from rlbudget.models.sampling import Uniforms, sample, token_signals
from rlbudget.models.sequences import Sequences
from rlbudget.models.vocabulary import Vocabulary
from rlbudget.signals import Window

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_THINKING, _ANSWERING, _DONE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Finished:
    """The natural end of a row, or its end at the cap."""

    answer: str
    thinking_tokens: int
    answer_tokens: int
    natural: bool
    """False where the thinking was cut at ``max_tokens``"""
    text: str
    """the thinking"""
    rest: str
    """everything after it: the end of the thinking, the answer, its end"""


class DecodeBatch:
    """``n`` decodes; rows are named by their index in the questions of ``begin``."""

    def __init__(
        self,
        sequences: Sequences,
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
        self.final: list[Finished | None] = [None] * n
        """the end of each row that reached it; rows stopped by ``stop`` have none"""
        self.at_checkpoint: Ints = np.empty(0, dtype=np.int64)
        """rows that stand at a checkpoint now"""
        self.thinking_tokens = 0
        """tokens of thinking at this checkpoint, the same for every row that stands at it"""
        self.generated = 0
        """tokens produced by sampling or as natural answers so far, all rows, exits left out"""
        self._temperature = temperature
        self._sequences = sequences
        self._uniforms = Uniforms(seeds)
        self._window = Window(n)
        self._signals: dict[str, Floats] = {}
        self._end_ids = torch.from_numpy(vocabulary.end_first_ids).to(sequences.logits.device)
        self._rows = np.arange(n)  # the row each sequence belongs to
        self._mode = np.full(n, _THINKING)
        self._history = np.zeros((n, 256), dtype=np.int64)
        self._step = 0
        self._thinking = np.zeros(n, dtype=np.int64)
        self._answer_from = np.zeros(n, dtype=np.int64)  # first token of the answer itself
        self._unseen = np.zeros(n, dtype=np.int64)  # paid tokens that were replaced
        self._natural = np.ones(n, dtype=bool)
        self._forced: dict[int, list[int]] = {}

    @property
    def done(self) -> bool:
        """Whether no row has anything left to write."""
        return bool((self._mode == _DONE).all())

    @torch.inference_mode()
    def advance(self) -> None:
        """Run every thinking row to its next checkpoint or its end.

        Afterwards ``at_checkpoint`` holds the rows at the checkpoint; it is empty when all
        rows are through.
        """
        self.at_checkpoint = np.empty(0, dtype=np.int64)
        while not self.done:
            self._advance_one()
            thinking = self._mode[self._rows] == _THINKING
            if self._step % self.stride == 0 and thinking.any():
                self._signals = self._window.read()
                self.at_checkpoint = self._rows[thinking]
                self.thinking_tokens = self._step
                return

    def signals(self, rows: npt.ArrayLike) -> dict[str, Floats]:
        """The signals of ``rlbudget.signals.SIGNALS`` at this checkpoint: name -> (len(rows),)."""
        places = self._places(np.asarray(rows, dtype=np.int64))
        return {name: column[places] for name, column in self._signals.items()}

    @torch.inference_mode()
    def fork_exits(self, rows: npt.ArrayLike) -> list[ExitResult]:
        """What a stop of these rows here would give; the decode goes on untouched."""
        cap = self.profile.max_answer_tokens
        stops = self.profile.answer_stop
        exit_ids = self.vocabulary.exit_ids
        return [
            ExitResult(
                answer=read_answer(c.ids, self.vocabulary, self.profile, stops),
                answer_tokens=len(exit_ids) + len(c.ids),
                ids=c.ids,
                logprobs=c.logprobs,
                entropy=c.entropy,
            )
            for c in self._ahead(np.asarray(rows, dtype=np.int64), exit_ids, cap, stops)
        ]

    @torch.inference_mode()
    def fork_probes(self, rows: npt.ArrayLike, max_new: int) -> list[ProbeResult]:
        """Trial answers of up to ``max_new`` tokens; the decode goes on untouched."""
        index = np.asarray(rows, dtype=np.int64)
        stops = self.profile.probe_stop
        ahead = self._ahead(index, self.vocabulary.probe_ids, max_new, stops)
        return [make_probe(c, max_new, self.vocabulary, self.profile) for c in ahead]

    def probes_of(self, exits: Sequence[ExitResult], max_new: int) -> list[ProbeResult] | None:
        """The probes that these exits begin with; None where a probe has a cue of its own."""
        profile = self.profile
        same = (profile.probe_cue, profile.probe_stop) == (profile.exit_text, profile.answer_stop)
        if not same or max_new > profile.max_answer_tokens:
            return None
        return [make_probe(e, max_new, self.vocabulary, self.profile) for e in exits]

    @torch.inference_mode()
    def fork_options(
        self, rows: npt.ArrayLike, options: Sequence[Sequence[Sequence[int]]]
    ) -> list[OptionsResult]:
        """How likely each option is as the trial answer of these rows; the decode goes on
        untouched. ``options`` has a row's token ids, see ``TransformersModel.option_ids``."""
        places = self._places(np.asarray(rows, dtype=np.int64))
        if not len(places):
            return []
        cue = list(self.vocabulary.probe_ids)
        with self._fork_of(places) as (ahead, wanted):
            ahead.feed(torch.tensor([cue], device=ahead.logits.device).expand(len(ahead), -1))
            of_place: list[Sequence[Sequence[int]]] = [()] * len(ahead)
            for place, given in zip(wanted.tolist(), options, strict=True):
                of_place[place] = given
            found = read_options(ahead, of_place, self.vocabulary)
        return [found[place] for place in wanted.tolist()]

    def stop(self, rows: npt.ArrayLike) -> list[ExitResult]:
        """End the thinking of these rows here and write their answers."""
        results = self.fork_exits(rows)
        self.drop(rows)
        return results

    def drop(self, rows: npt.ArrayLike) -> None:
        """Abandon rows."""
        index = np.asarray(rows, dtype=np.int64)
        self._mode[index] = _DONE
        self.at_checkpoint = np.setdiff1d(self.at_checkpoint, index)

    def thinking_ids(self, row: int) -> Ints:
        """The thinking of a row so far, or whole once it has ended."""
        ended = self._mode[row] != _THINKING
        return self._history[row, : self._thinking[row] if ended else self._step]

    def thinking_text(self, row: int) -> str:
        """``thinking_ids`` as text."""
        return self.vocabulary.text(self.thinking_ids(row), special=True)

    def _places(self, rows: Ints) -> Ints:
        place = np.full(len(self._mode), -1, dtype=np.int64)
        place[self._rows] = np.arange(len(self._rows))
        places = place[rows]
        if (places < 0).any():
            raise ValueError("these rows are no longer being decoded")
        return places

    def _ahead(
        self, rows: Ints, cue: Sequence[int], cap: int, stops: Sequence[str]
    ) -> list[Continuation]:
        places = self._places(rows)
        with self._fork_of(places) as (sequences, wanted):
            found = continue_greedily(
                sequences,
                cue,
                np.isin(np.arange(len(sequences)), wanted),
                cap=cap,
                vocabulary=self.vocabulary,
                stops=stops,
            )
        return [found[place] for place in wanted.tolist()]

    @contextmanager
    def _fork_of(self, places: Ints) -> Iterator[tuple[Sequences, Ints]]:
        if 2 * len(places) >= len(self._sequences):
            with self._sequences.fork() as ahead:
                yield ahead, places
            return
        index = torch.from_numpy(places).to(self._sequences.logits.device)
        yield self._sequences.selected(index), np.arange(len(places))

    def _advance_one(self) -> None:
        self._drop_finished()
        rows, logits = self._rows, self._sequences.logits
        thinking = self._mode[rows] == _THINKING
        chosen = self._choose(logits, thinking)
        tokens = chosen.numpy(force=True).copy()
        for row, queue in self._forced.items():
            tokens[rows == row] = queue[0]
        if thinking.any():
            measured = token_signals(logits, chosen, self._end_ids).double().numpy(force=True)
            self._window.push(measured, self.vocabulary.markers[tokens])
        if self._step == self._history.shape[1]:
            self._history = np.concatenate([self._history, np.zeros_like(self._history)], axis=1)
        self._history[rows, self._step] = tokens
        self._step += 1
        self.generated += int((self._mode[rows] != _DONE).sum())
        self._after_answer_tokens(rows[self._mode[rows] == _ANSWERING])
        self._after_thinking_tokens(rows[thinking])
        if not self.done:
            fed = self._history[rows, self._step - 1]
            self._sequences.feed(torch.from_numpy(fed).to(logits.device)[:, None])

    def _choose(self, logits: torch.Tensor, thinking: npt.NDArray[np.bool_]) -> torch.Tensor:
        greedy = None
        if self._temperature == 0 or not thinking.all():
            greedy = logits.argmax(dim=-1)
            if self._temperature == 0 or not thinking.any():
                return greedy
        # Row and position name the number, so a token does not depend on its neighbours.
        uniforms = torch.from_numpy(self._uniforms.at(self._step)[self._rows]).to(logits.device)
        sampled = sample(logits, self._temperature, uniforms)
        if greedy is None:
            return sampled
        return torch.where(torch.from_numpy(thinking).to(logits.device), sampled, greedy)

    def _after_thinking_tokens(self, rows: Ints) -> None:
        last = self._history[rows, self._step - 1]
        gave_up = np.isin(last, self.vocabulary.eos_ids)
        for row in rows[gave_up].tolist():
            # The model ended everything without an answer: what it would have to say next
            # takes the place of its end token, which was paid for all the same.
            self._unseen[row] = 1
            self._end_thinking(row, self._step - 1, self._step - 1)
        if self.vocabulary.end_id is not None:
            for row in rows[last == self.vocabulary.end_id].tolist():
                self._end_thinking(row, self._step - 1, None)
        else:
            for row in rows[~gave_up].tolist():
                spelled = self.vocabulary.end_length(self._history[row, : self._step])
                if spelled:
                    # An end text may straddle a checkpoint; the thinking never ends before it.
                    before = (self._step - 1) // self.stride * self.stride
                    self._end_thinking(row, max(self._step - spelled, before), None)
        if self._step == self.max_tokens:
            for row in rows[self._mode[rows] == _THINKING].tolist():
                self._natural[row] = False
                self._end_thinking(row, self._step, self._step)

    def _end_thinking(self, row: int, thinking: int, force_at: int | None) -> None:
        """Let a row answer from here; ``force_at`` is where the exit text goes, if it does."""
        self._mode[row] = _ANSWERING
        self._thinking[row] = thinking
        self._answer_from[row] = self._step
        if force_at is None:
            return
        queue = list(self.vocabulary.exit_ids)
        self._answer_from[row] = force_at + len(queue)
        if force_at < self._step:
            self._history[row, force_at] = queue.pop(0)
        if queue:
            self._forced[row] = queue

    def _after_answer_tokens(self, rows: Ints) -> None:
        for row in rows.tolist():
            queue = self._forced.get(row)
            if queue is not None:
                queue.pop(0)
                if not queue:
                    del self._forced[row]
                continue
            ids = self._history[row, self._answer_from[row] : self._step]
            stops = self.profile.answer_stop
            if (
                ids[-1] in self.vocabulary.eos_ids
                or len(ids) >= self.profile.max_answer_tokens
                or (stops and ends_answer(ids.tolist(), self.vocabulary, stops))
            ):
                self._finish(row, ids)

    def _finish(self, row: int, ids: Ints) -> None:
        self._mode[row] = _DONE
        thinking = int(self._thinking[row])
        self.final[row] = Finished(
            answer=read_answer(ids, self.vocabulary, self.profile, self.profile.answer_stop),
            thinking_tokens=thinking,
            answer_tokens=self._step - thinking + int(self._unseen[row]),
            natural=bool(self._natural[row]),
            text=self.vocabulary.text(self._history[row, :thinking], special=True),
            rest=self.vocabulary.text(self._history[row, thinking : self._step], special=True),
        )

    def _drop_finished(self) -> None:
        busy = self._mode[self._rows] != _DONE
        # Dropping copies the cache once; it pays when it saves a quarter of the work.
        if 4 * busy.sum() > 3 * len(busy) or busy.all():
            return
        kept = np.flatnonzero(busy)
        self._sequences.keep(torch.from_numpy(kept).to(self._sequences.logits.device))
        self._window.keep(kept)
        self._rows = self._rows[kept]
