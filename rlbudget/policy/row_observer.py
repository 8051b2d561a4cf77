"""Observations of one live decode: those of ``Observer``, bit for bit, at a tenth of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlbudget.arrays import Float32s
from rlbudget.policy.observation import (
    BEFORE_FIRST,
    EMA_WEIGHT,
    TRANSFORMS,
    odds_of,
)
from rlbudget.policy.own_memory import Seen, is_own, own_memories
from rlbudget.policy.trials import PROBE_SIGNALS, trials_of
from rlbudget.signals.tokens import PAID_SIGNALS
from rlbudget.signals.turns import TURN_SIGNALS, TrialMemory

_ROW = np.zeros(1, dtype=np.int64)


class RowObserver:
    """What ``policy.observation.Observer`` is to ``n`` decodes, on plain numbers.

    Not to be shared between requests or threads. ``ValueError`` for an unknown transform.
    """

    def __init__(self, features: Sequence[str]) -> None:
        self.features = tuple(features)
        split = [feature.partition(".") for feature in self.features]
        self.trials = trials_of(self.features)
        """where they need trial answers"""
        self._own = own_memories(self.features, 1)
        self._trials = TrialMemory(1)
        self._held = {signal: BEFORE_FIRST.get(signal, 0.0) for signal, _, _ in split}
        self._seen = 0
        self._kept = [0.0] * len(self.features)
        self._values = [0.0] * len(self.features)
        self._columns: dict[str, list[tuple[int, str]]] = {name: [] for name in TRANSFORMS}
        for column, (signal, _, name) in enumerate(split):
            if is_own(self.features[column]):
                continue
            if name not in TRANSFORMS:
                raise ValueError(f"feature {self.features[column]!r}: no transform {name!r};"
                                 f" one of {sorted(TRANSFORMS)}")  # fmt: skip
            self._columns[name].append((column, signal))
        logs = [*self._columns["log"], *self._columns["age"]]
        self._logs = [column for column, _ in logs]
        self._odds = [column for column, _ in self._columns["odds"]]

    def needs_probe(self, signals: Mapping[str, float]) -> bool:
        """Whether the checkpoint with these signals needs a trial answer."""
        if self._periodic:
            return True
        return self.trials.at_turns and self._at_turn(signals)

    @property
    def _periodic(self) -> bool:
        """At the next checkpoint."""
        every = self.trials.every
        return bool(every) and any((self._seen + 1) % one == 0 for one in every)

    def _at_turn(self, signals: Mapping[str, float]) -> bool:
        return bool(self.trials.at_turn(signals, self._trials.count[0]))

    def update(
        self,
        thinking_tokens: float,
        signals: Mapping[str, float],
        probe_answer: int | None = None,
        probe_confidence: float | None = None,
        probe_hedged: bool | None = None,
    ) -> Float32s:
        """Take the next checkpoint: its observation, (n_features,) float32. As ``Observer``."""
        tokens, held = float(thinking_tokens), self._held
        turn = self.trials.at_turns and self._at_turn(signals)
        gone = PAID_SIGNALS if self.trials.at_turns and not turn else ()
        for name, value in signals.items():
            if name in held and value == value and name not in gone:  # not NaN
                held[name] = float(value)
        probed = self._periodic
        if probed:
            self._probe(tokens, probe_answer, probe_confidence)
        if self.trials.at_turns:
            self._turn(tokens, turn, probe_answer, probe_confidence)
        if "thinking_tokens" in held:
            held["thinking_tokens"] = tokens
        self._seen += 1
        self._transform(tokens)
        for column, signal, memory in self._own:
            x = np.nan if signal in gone else signals.get(signal, np.nan)
            if (
                signal in TURN_SIGNALS
                or signal == "thinking_tokens"
                or (probed and signal in PROBE_SIGNALS)
            ):
                x = held[signal]
            codes = None if probe_answer is None else np.array([probe_answer])
            hedged = None if probe_hedged is None else np.array([probe_hedged])
            here = Seen(_ROW, np.array([tokens]), np.array([float(self._seen)]), codes, hedged)
            self._values[column] = float(memory(np.array([float(x)]), here)[0])
        out = np.array(self._values).astype(np.float32)
        if self._logs:
            out[self._logs] = np.log1p([self._values[column] for column in self._logs])
        if self._odds:
            out[self._odds] = odds_of(np.array([self._values[column] for column in self._odds]))
        return out

    def _probe(self, tokens: float, answer: int | None, confidence: float | None) -> None:
        if answer is None or confidence is None:
            raise ValueError("these features need a trial answer at this checkpoint")
        self._trials.add(_ROW, [answer], [confidence], [tokens])
        shared = [confidence, *(float(one[0]) for one in self._trials.agreement(_ROW))]
        for name, value in zip(PROBE_SIGNALS, shared, strict=True):
            if name in self._held:
                self._held[name] = value

    def _turn(
        self, tokens: float, here: bool, answer: int | None, confidence: float | None
    ) -> None:
        self._trials.here[_ROW] = False
        if here:
            if answer is None or confidence is None:
                raise ValueError("these features need a trial answer at a turn of thought")
            self._trials.add(_ROW, [answer], [confidence], [tokens])
        shown = self._trials.features(_ROW, tokens)[0].tolist()
        for name, value in zip(TURN_SIGNALS, shown, strict=True):
            if name in self._held:
                self._held[name] = value

    def _transform(self, tokens: float) -> None:
        """The features before the logarithm of some: ``TRANSFORMS``, spelled out."""
        held, kept, values, columns = self._held, self._kept, self._values, self._columns
        seen, first = self._seen, self._seen == 1
        for name in ("", "log", "odds"):
            for column, signal in columns[name]:
                values[column] = held[signal]
        for column, signal in columns["sum"]:
            values[column] = kept[column] = kept[column] + held[signal]
        for column, signal in columns["mean"]:
            kept[column] += held[signal]
            values[column] = kept[column] / seen
        for column, signal in columns["delta"]:
            x = held[signal]
            values[column] = 0.0 if first else x - kept[column]
            kept[column] = x
        for column, signal in columns["age"]:
            if held[signal] > 0:
                kept[column] = tokens
            values[column] = tokens - kept[column]
        for column, signal in columns["max"]:
            x = held[signal]
            if first or x > kept[column]:
                kept[column] = x
            values[column] = kept[column]
        for column, signal in columns["min"]:
            x = held[signal]
            if first or x < kept[column]:
                kept[column] = x
            values[column] = kept[column]
        for column, signal in columns["ema"]:
            x = held[signal]
            if not first:
                x = EMA_WEIGHT * x + (1 - EMA_WEIGHT) * kept[column]
            values[column] = kept[column] = x
