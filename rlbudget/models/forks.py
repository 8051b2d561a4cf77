"""What can be written aside of unfinished sequences: exits, trial answers, answer options.

The sequences stand where they stood afterwards. All take ``places``, (k,) rows of the sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from rlbudget.arrays import Ints
from rlbudget.models.answers import OptionsResult, continue_greedily, read_options
from rlbudget.models.profiles import Profile
from rlbudget.models.reading import (
    Continuation,
    ExitResult,
    ProbeResult,
    begins_with_probe,
    make_exit,
    make_probe,
)
from rlbudget.models.sequences import Unfinished
from rlbudget.models.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Forks:
    """How answers are written aside by a profile."""

    vocabulary: Vocabulary
    profile: Profile

    @torch.inference_mode()
    def exits(self, sequences: Unfinished, places: Ints) -> list[ExitResult]:
        """What a stop of these rows here would give."""
        cap = self.profile.max_answer_tokens
        stops = self.profile.answer_stop
        ahead = self._ahead(sequences, places, self.vocabulary.exit_ids, cap, stops)
        return [make_exit(c, self.vocabulary, self.profile) for c in ahead]

    @torch.inference_mode()
    def probes(self, sequences: Unfinished, places: Ints, max_new: int) -> list[ProbeResult]:
        """Trial answers of up to ``max_new`` tokens."""
        stops = self.profile.probe_stop
        ahead = self._ahead(sequences, places, self.vocabulary.probe_ids, max_new, stops)
        return [make_probe(c, max_new, self.vocabulary, self.profile) for c in ahead]

    def probes_of(self, exits: Sequence[ExitResult], max_new: int) -> list[ProbeResult] | None:
        """The probes that these exits begin with; None where a probe has a cue of its own."""
        if not begins_with_probe(self.profile, max_new):
            return None
        return [make_probe(e, max_new, self.vocabulary, self.profile) for e in exits]

    @torch.inference_mode()
    def options(
        self, sequences: Unfinished, places: Ints, options: Sequence[Sequence[Sequence[int]]]
    ) -> list[OptionsResult]:
        """How likely each option is as the trial answer of these rows. ``options`` has a row's
        token ids, see ``TransformersModel.option_ids``."""
        if not len(places):
            return []
        cue = list(self.vocabulary.probe_ids)
        with _fork_of(sequences, places) as (ahead, wanted):
            ahead.feed(torch.tensor([cue], device=ahead.logits.device).expand(len(ahead), -1))
            of_place: list[Sequence[Sequence[int]]] = [()] * len(ahead)
            for place, given in zip(wanted.tolist(), options, strict=True):
                of_place[place] = given
            found = read_options(ahead, of_place, self.vocabulary)
        return [found[place] for place in wanted.tolist()]

    def _ahead(
        self, sequences: Unfinished, places: Ints, cue: Sequence[int], cap: int,
        stops: Sequence[str],
    ) -> list[Continuation]:  # fmt: skip
        if not len(places):
            return []
        with _fork_of(sequences, places) as (ahead, wanted):
            found = continue_greedily(
                ahead,
                cue,
                np.isin(np.arange(len(ahead)), wanted),
                cap=cap,
                vocabulary=self.vocabulary,
                stops=stops,
            )
        return [found[place] for place in wanted.tolist()]


@contextmanager
def _fork_of(sequences: Unfinished, places: Ints) -> Iterator[tuple[Unfinished, Ints]]:
    if 2 * len(places) >= len(sequences):
        with sequences.fork() as ahead:
            yield ahead, places
        return
    index = torch.from_numpy(places).to(sequences.logits.device)
    yield sequences.selected(index), np.arange(len(places))
