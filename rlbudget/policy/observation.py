"""Observations: the one place where features are made.

A feature is named ``signal`` or ``signal.transform``. The transforms look back only, and
none of them knows how long the trace will be:

=======  ================================================================
ema      exponential moving average, weight 0.3 on the newest checkpoint
max      largest value so far
min      smallest value so far
mean     mean over the checkpoints so far
sum      total so far
delta    change since the checkpoint before (0 at the first)
age      log(1 + tokens since the value was last above 0, or since the start)
log      log(1 + value)
odds     log(value / (1 - value)) of a chance, within ±14
=======  ================================================================

Frozen rules have transforms besides that say numbers (``rlbudget.policy.own_memory``).

Besides the recorded signals there are ``thinking_tokens``, the question's own numbers
(``rlbudget.signals.questions``) where a policy asks for them and, in the ``probe`` preset,
four of the trial answers: ``probe_confidence``, ``probe_streak`` (equal answers in a row),
``probe_distinct`` (different answers so far), ``probe_share`` (share of the trial answers so
far that equal this one). In the ``turns`` preset there are trial answers at turns of thought alone;
``rlbudget.signals.turns`` lists what is remembered of them. Policies of ``probe`` and ``turns`` may
see ``signals.tokens.PAID_SIGNALS`` as well, where there are trial answers.

A signal that is missing at a checkpoint keeps its last value, 0 before its first; an entropy that
is paid for 1 nat, as what is not known is not sure.
``Observer`` steps ``n`` decodes in lockstep; a live request is ``n = 1``, a replay is all
traces at once, so both see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Float32s, Floats, Ints
from rlbudget.errors import UserError
from rlbudget.policy.own_memory import Seen, is_own, own_memories
from rlbudget.policy.trials import PROBE_SIGNALS, trials_of
from rlbudget.signals.questions import CONTEXT_SIGNALS, TASK_SIGNALS
from rlbudget.signals.repeats import TOKEN_REPEATS
from rlbudget.signals.text import TEXT_SIGNALS
from rlbudget.signals.tokens import CHOICE, EXIT_SIGNALS, MARKER_SIGNALS, PAID_SIGNALS
from rlbudget.signals.turns import TURN_SIGNALS, TURNS, TrialMemory

if TYPE_CHECKING:
    from rlbudget.traces.table import TraceTable

Preset = Literal["free", "probe", "turns"]
PRESETS: tuple[Preset, ...] = ("free", "probe", "turns")

OBSERVATION_VERSION = 1
EMA_WEIGHT = 0.3

BEFORE_FIRST = {"exit_entropy": 1.0, "answer_entropy": 1.0}
"""what a signal is taken for before its first value, where that is not 0"""

_TRANSFORMS_OF: dict[str, tuple[str, ...]] = {
    "logprob_mean": ("", "ema", "mean"),
    "logprob_min": ("", "ema", "min"),
    "entropy_mean": ("", "ema", "delta", "mean"),
    "entropy_max": ("", "ema", "max"),
    "entropy_last": ("",),
    "margin_min": ("", "ema", "min"),
    "p_end_max": ("", "ema", "max", "sum"),
    "p_end_last": ("",),
    "hedges": ("", "sum", "age"),
    "conclusions": ("", "sum", "age"),
    "end_gap_min": ("", "min"),
    **dict.fromkeys(
        ("text_hedges", "text_conclusions", "text_checks", "text_claims"), ("", "sum", "age")
    ),
    "text_claim_streak": ("", "log"),
    "text_claim_again": ("log",),
    **dict.fromkeys(("text_claim_kinds", "text_claim_share"), ("",)),
    "probe_confidence": ("", "ema", "max"),
    "probe_streak": ("", "log"),
    "probe_distinct": ("",),
    "probe_share": ("",),
    "probe_tail": ("", "ema", "max"),
    **dict.fromkeys(("exit_entropy", CHOICE), ("", "ema", "min")),
    # Votes: what counts is decided by the first few samples, which lie apart in the log only.
    **dict.fromkeys(("samples", "vote_kinds", "vote_streak"), ("log",)),
    **{f"votes_{place}": ("log",) for place in range(1, 6)},
    **{f"vote_{name}": ("",) for name in ("share", "margin", "entropy")},
    "vote_lead": ("", "odds"),  # thresholds worth having lie between 0.9 and 0.9999
    **dict.fromkeys((*CONTEXT_SIGNALS, *TASK_SIGNALS, *TURN_SIGNALS), ("",)),
}
_OTHER = ("", "ema")
"""transforms of a signal that is not listed"""


def feature_names(
    signals: Iterable[str],
    preset: Preset,
    *,
    context: bool = False,
    tasks: bool = False,
    choices: bool = False,
    exits: bool = False,
    repeats: bool = False,
) -> tuple[str, ...]:
    """The features of a preset for traces that hold these signals.

    ``free`` needs no token beyond the decode's own; ``probe`` adds a trial answer at every
    checkpoint, ``turns`` those at turns of thought. Their tokens are charged.
    ``context`` adds what is known of the question (``signals.questions``),
    ``tasks`` the request's task. To ``probe`` and ``turns`` ``choices`` adds the entropy of the
    choice among a question's answer options, ``exits`` the other ``PAID_SIGNALS`` that there are;
    ``repeats`` adds ``signals.repeats.TOKEN_REPEATS`` to any.
    Signals of the text are features where there are no others: they are less than those of
    log-probabilities, and a server that gives these need not be read twice.
    """
    given = set(signals)
    held = given - {*EXIT_SIGNALS, *CONTEXT_SIGNALS, *TASK_SIGNALS, TOKEN_REPEATS}
    of_text = held & set(TEXT_SIGNALS)
    if of_text:
        others = held - of_text
        held = others if others - set(MARKER_SIGNALS) else of_text
    paid = [s for s in PAID_SIGNALS if s in given and (choices if s == CHOICE else exits)]
    names = ["thinking_tokens.log", "thinking_tokens"]
    present = [
        *sorted(held),
        *((TOKEN_REPEATS,) if repeats and TOKEN_REPEATS in given else ()),
        *(PROBE_SIGNALS if preset == "probe" else ()),
        *(TURN_SIGNALS if preset == "turns" else ()),
        *(paid if preset in ("probe", "turns") else ()),
        *(CONTEXT_SIGNALS if context else ()),
        *(TASK_SIGNALS if tasks else ()),
    ]
    for signal in present:
        names += [
            f"{signal}.{transform}" if transform else signal
            for transform in _TRANSFORMS_OF.get(signal, _OTHER)
        ]
    return tuple(names)


def features_of(table: TraceTable, preset: Preset) -> tuple[str, ...]:
    """The features of a preset for a table; ``UserError`` if it lacks the trial answers."""
    if preset != "free" and not table.has_probes:
        raise UserError(f"the {preset} preset needs a trial answer at every checkpoint: record with"
                        " probes or use the free preset")  # fmt: skip
    names = feature_names(table.signals, preset)
    if preset == "turns" and not {*TURNS} & {*names}:
        raise UserError(f"the turns preset needs a signal of {' or '.join(TURNS)}, which the traces"
                        " do not hold: use the free or the probe preset")  # fmt: skip
    return names


@dataclass(frozen=True, slots=True)
class _Now:
    """What the transforms know of the checkpoints of ``r`` decodes beside their signals."""

    tokens: Floats
    """(r, 1) of thinking so far"""
    again: Bools
    """(r, 1) whether it is not the first checkpoint"""
    seen: Floats
    """(r, 1) checkpoints so far, this one among them"""


Transform = Callable[[Floats, Floats, _Now], tuple[Floats, Floats]]
"""signals (r, k), memory of each (r, k), now -> what is shown, what is remembered"""


def _age(x: Floats, memory: Floats, now: _Now) -> tuple[Floats, Floats]:
    last = np.where(x > 0, now.tokens, memory)
    return np.log1p(now.tokens - last), last


def odds_of(x: Floats) -> Floats:
    """The logarithm of the odds of chances, of any shape, held where float32 can tell them."""
    inside = np.clip(x, 1e-6, 1 - 1e-6)
    odds: Floats = np.log(inside) - np.log1p(-inside)
    return odds


def _blend(combine: Callable[[Floats, Floats], Floats]) -> Transform:
    def transform(x: Floats, memory: Floats, now: _Now) -> tuple[Floats, Floats]:
        blended = np.where(now.again, combine(memory, x), x)
        return blended, blended

    return transform


TRANSFORMS: Mapping[str, Transform] = {
    "": lambda x, memory, now: (x, memory),
    "log": lambda x, memory, now: (np.log1p(x), memory),
    "odds": lambda x, memory, now: (odds_of(x), memory),
    "sum": lambda x, memory, now: (memory + x, memory + x),
    "mean": lambda x, memory, now: ((memory + x) / now.seen, memory + x),
    "delta": lambda x, memory, now: (np.where(now.again, x - memory, 0.0), x),
    "age": _age,
    "max": _blend(np.maximum),
    "min": _blend(np.minimum),
    "ema": _blend(lambda old, x: EMA_WEIGHT * x + (1 - EMA_WEIGHT) * old),
}
"""The part of a feature's name behind the dot."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The columns of one transform."""

    transform: Transform
    signals: Ints
    """(k,) places of their signals"""
    columns: Ints
    """(k,) their places in the observation"""
    memory: Floats
    """(n, k) float64"""


class Observer:
    """Observations of ``n`` decodes, kept incrementally: O(features) per checkpoint."""

    def __init__(self, features: Sequence[str], n: int = 1) -> None:
        self.features = tuple(features)
        self.trials = trials_of(self.features)
        """where they need trial answers"""
        self._own = own_memories(self.features, n)
        self._trials = TrialMemory(n)
        signals = [f.partition(".")[0] for f in self.features]
        self._signals = tuple(dict.fromkeys(signals))
        place = {signal: number for number, signal in enumerate(self._signals)}
        self._held = np.tile([BEFORE_FIRST.get(s, 0.0) for s in self._signals], (n, 1))
        self._seen = np.zeros((n, 1))
        # Columns of one transform are made together: a single decode pays for calls, not numbers.
        by_name: dict[str, list[int]] = {}
        for column, feature in enumerate(self.features):
            if is_own(feature):
                continue
            name = feature.partition(".")[2]
            if name not in TRANSFORMS:
                raise ValueError(
                    f"feature {feature!r}: no transform {name!r}; one of {sorted(TRANSFORMS)}"
                )
            by_name.setdefault(name, []).append(column)
        self._groups = [
            _Group(
                TRANSFORMS[name],
                np.array([place[signals[c]] for c in columns]),
                np.array(columns),
                np.zeros((n, len(columns))),
            )
            for name, columns in by_name.items()
        ]

    def needs_probe(self, signals: Mapping[str, npt.ArrayLike]) -> bool:
        """Whether a checkpoint with these signals needs a trial answer, of any of its decodes."""
        due = self.trials.periodic(self._seen + 1).any()
        at_turns = self.trials.at_turns
        return bool(due or (at_turns and self.trials.at_turn(signals, self._trials.count).any()))

    def update(
        self,
        rows: Ints,
        thinking_tokens: npt.ArrayLike,
        signals: Mapping[str, npt.ArrayLike],
        probe_answer: npt.ArrayLike | None = None,
        probe_confidence: npt.ArrayLike | None = None,
        probe_hedged: npt.ArrayLike | None = None,
    ) -> Float32s:
        """Take the next checkpoint of the decodes ``rows`` and return their observations.

        Every argument beside ``signals`` has shape (len(rows),), so has each value of
        ``signals``; NaN counts as missing. ``probe_answer`` codes equal answers of a decode
        by equal numbers from 0; it is read where ``trials`` say alone. ``probe_hedged`` says
        whether it doubts itself. Returns float32, shape (len(rows), n_features).
        """
        tokens = np.asarray(thinking_tokens, dtype=np.float64)
        values = {name: np.asarray(column, dtype=np.float64) for name, column in signals.items()}
        due = self.trials.periodic(self._seen[rows, 0] + 1)
        if due.any():
            if probe_answer is None or probe_confidence is None:
                raise ValueError("these features need a trial answer at this checkpoint")
            answers, sure = np.asarray(probe_answer), np.asarray(probe_confidence)
            self._trials.add(rows[due], answers[due], sure[due], tokens[due])
            shared = (sure, *self._trials.agreement(rows))
            values |= {
                name: np.where(due, np.asarray(column, dtype=np.float64), np.nan)
                for name, column in zip(PROBE_SIGNALS, shared, strict=True)
            }
        if self.trials.at_turns:
            self._trials.here[rows] = False
            here = self.trials.at_turn(values, self._trials.count[rows])
            if here.any():
                if probe_answer is None or probe_confidence is None:
                    raise ValueError("these features need a trial answer at a turn of thought")
                answers, sure = np.asarray(probe_answer), np.asarray(probe_confidence)
                self._trials.add(rows[here], answers[here], sure[here], tokens[here])
            for name in {*PAID_SIGNALS} & set(values):
                values[name] = np.where(here, values[name], np.nan)
            seen = self._trials.features(rows, tokens).astype(np.float64)
            values |= dict(zip(TURN_SIGNALS, seen.T, strict=True))
        values["thinking_tokens"] = tokens
        self._seen[rows] += 1
        new = np.full((len(rows), len(self._signals)), np.nan)
        for place, signal in enumerate(self._signals):
            if signal in values:
                new[:, place] = values[signal]
        held = np.where(np.isnan(new), self._held[rows], new)
        self._held[rows] = held
        out = np.empty((len(rows), len(self.features)), dtype=np.float32)
        now = _Now(tokens[:, None], self._seen[rows] > 1, self._seen[rows])
        for group in self._groups:
            shown, kept = group.transform(held[:, group.signals], group.memory[rows], now)
            out[:, group.columns] = shown
            group.memory[rows] = kept
        if self._own:
            codes = None if probe_answer is None else np.asarray(probe_answer)
            hedged = None if probe_hedged is None else np.asarray(probe_hedged, dtype=np.bool_)
            seen_here = Seen(rows, tokens, self._seen[rows, 0], codes, hedged)
            for column, signal, memory in self._own:
                out[:, column] = memory(new[:, self._signals.index(signal)], seen_here)
        return out


def preset_of(features: Iterable[str]) -> Preset:
    """The preset of these features."""
    signals = {name.partition(".")[0] for name in features}
    kinds: dict[Preset, tuple[str, ...]] = {"turns": TURN_SIGNALS, "probe": PROBE_SIGNALS}
    return next((preset for preset, own in kinds.items() if signals & set(own)), "free")


def observe(table: TraceTable, features: Sequence[str]) -> Float32s:
    """The observation at every checkpoint of a table: float32, shape (m, n_features).

    Raises ``UserError`` for features that the traces cannot give.
    """
    known = {*table.signals, *PROBE_SIGNALS, *TURN_SIGNALS, "thinking_tokens"}
    missing = sorted({f.partition(".")[0] for f in features} - known)
    if missing:
        raise UserError(
            f"the traces hold no signal {', '.join(missing)}, which the observation needs;"
            f" they hold: {', '.join(sorted(table.signals)) or 'none'}"
        )
    observer = Observer(features, len(table))
    trials = observer.trials
    if (trials.every or trials.at_turns) and not table.has_probes:
        raise UserError("the observation needs a trial answer at every checkpoint; these traces"
                        " hold none: record with probes or use a free policy")  # fmt: skip
    used = {f.partition(".")[0] for f in features} & set(table.signals)
    out = np.empty((len(table.thinking_tokens), len(features)), dtype=np.float32)
    for rows, flat in table.lockstep():
        out[flat] = observer.update(
            rows,
            table.thinking_tokens[flat],
            {name: table.signals[name][flat] for name in used},
            table.probe_answer[flat],
            table.probe_confidence[flat],
            table.probe_hedged[flat],
        )
    return out
