"""The controller: one request's way from tokens and signals to a decision.

A backend that has the logits of every token calls ``push``; one that sums them up itself (or a
replay) calls ``at_checkpoint``. Both cost O(1) a token. A fault (a policy that raises or says
NaN, a signal that is not a number) switches the controller off for the rest of the request: it
then always says continue, so that the decode ends as it would have ended without it. No fault
reaches the caller.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Float32s
from rlbudget.errors import UserError
from rlbudget.policy.network import Decision
from rlbudget.policy.prices import check_price
from rlbudget.policy.row_observer import RowObserver
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.policy.trials import PROBE_SIGNALS
from rlbudget.signals.questions import CONTEXT_SIGNALS, TASK_SIGNALS, context_signals, task_signals
from rlbudget.signals.repeats import TOKEN_REPEATS, TokenRepeats
from rlbudget.signals.text import TEXT_SIGNALS, TextWindow, of_text_alone
from rlbudget.signals.tokens import PAID_SIGNALS, SIGNALS, TOKEN_SIGNALS, Window, hedged
from rlbudget.signals.turns import TURN_SIGNALS
from rlbudget.tasks.scorers import vote_key
from rlbudget.traces.trace import Probe

CONTINUE = Decision(stop=False, stop_probability=0.0)
"""What a controller says after a fault."""

Reason = Literal[
    "policy", "natural", "max_tokens", "policy_failed", "loop", "tool_call", "escalate", "off"
]
"""Why a thinking ended. ``natural``: the model ended it by itself; ``max_tokens``: the cap;
``policy_failed``: the policy broke down, and the decode went on to its end without it; ``loop``:
the model repeated itself; ``tool_call``: it called a tool, and was left alone from there on;
``escalate``: a cascade handed the question to the large model; ``off``: there was no thinking to
end, or nobody wanted it ended."""

_log = logging.getLogger("rlbudget")
_ONE_REQUEST = "a controller decides for one request: make a new one for each"


class Controller:
    """Decides for one request; not to be shared between requests or threads.

    ``at_checkpoint`` raises ``ValueError`` where it is used for a second request: its checkpoints
    do not come one after the other. Of tokens that are pushed nothing tells whose they are.

    ``token_price`` is reward lost per token. ``stride`` is the number of tokens between the
    checkpoints of ``push``; without it only ``at_checkpoint`` may be called. ``question`` is needed
    by a policy with features of it (``signals.questions``), ``task`` by one with those of tasks.
    ``on_failure`` is told of a fault, which is logged if it is left out. Raises ``UserError`` for
    a price out of range, a missing question, a stride below 1 and, with a stride, for a policy
    whose signals ``push`` cannot make.
    """

    def __init__(
        self,
        policy: StopPolicy,
        *,
        token_price: float,
        stride: int | None = None,
        question: str | None = None,
        task: str = "",
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        check_price(token_price, policy.price_range)
        signals = {feature.partition(".")[0] for feature in policy.features}
        self._context: dict[str, float] = {}
        if signals & {*CONTEXT_SIGNALS, *TASK_SIGNALS}:
            known = context_signals(question or "") | task_signals(task)
            self._context = {name: value for name, value in known.items() if name in signals}
        if question is None and signals & set(CONTEXT_SIGNALS):
            raise UserError("the policy looks at the question: give it to the controller")
        self._needed = signals - {
            "thinking_tokens", *PROBE_SIGNALS, *TURN_SIGNALS, *CONTEXT_SIGNALS, *TASK_SIGNALS,
        }  # fmt: skip
        self.paid = tuple(name for name in PAID_SIGNALS if name in self._needed)
        """what it wants to know at every checkpoint beside the signals that are free"""
        unknown = sorted(self._needed - {*SIGNALS, *TEXT_SIGNALS, *PAID_SIGNALS, TOKEN_REPEATS})
        self._text = TextWindow() if self._needed & set(TEXT_SIGNALS) else None
        self._repeats = TokenRepeats() if TOKEN_REPEATS in self._needed else None
        self._text_alone = of_text_alone(policy.features)
        if stride is not None and stride < 1:
            raise UserError(f"stride {stride}: it must be at least 1 token")
        if stride is not None and unknown:
            raise UserError(
                f"the policy needs signals that are not made from tokens: {', '.join(unknown)}"
            )
        self._policy = policy
        self._token_price = token_price
        self._stride = stride
        self._on_failure = on_failure
        self._observer = RowObserver(policy.features)
        self._window: Window | None = None  # of ``push``
        self._answers: dict[object, int] = {}
        self._scorer = str(getattr(policy, "recorded", {}).get("scorer", "auto"))
        self.thinking_tokens = 0
        """tokens so far, or at the last checkpoint"""
        self.observation: Float32s | None = None
        """the last one that the policy was asked about, (n_features,)"""
        self.failed: str | None = None
        """why the controller is off, if it is"""

    @property
    def forks_often(self) -> bool:
        """Whether something is made aside that nobody asks for; False after a fault."""
        trials = self._observer.trials
        aside = bool(trials.every) or trials.at_turns or bool(self.paid)
        return aside and self.failed is None

    def needs_probe(self, signals: Mapping[str, float]) -> bool:
        """Whether the checkpoint with these signals needs a trial answer; False after a fault."""
        return self.failed is None and self._observer.needs_probe(signals)

    def wanted(self, signals: Mapping[str, float]) -> tuple[str, ...]:
        """Those of ``PAID_SIGNALS`` that the checkpoint with these signals needs; none after a
        fault."""  # fmt: skip
        off = self._observer.trials.at_turns and not self._observer.needs_probe(signals)
        return () if off or self.failed is not None else self.paid

    @property
    def _own_window(self) -> Window:
        if self._window is None:
            self._window = Window(1)
        return self._window

    def push(
        self,
        token_signals: npt.ArrayLike | None,
        token_markers: npt.ArrayLike,
        *,
        text: str | None = None,
        token: int | None = None,
        probe: Callable[[], Probe] | None = None,
        inside_character: bool = False,
    ) -> Decision | None:
        """Take one thinking token: a decision at a checkpoint, None between two.

        ``inside_character`` says that the token leaves a character without some of its bytes:
        there is no checkpoint then.

        ``token_signals`` has shape (6,), in the order of ``signals.TOKEN_SIGNALS``;
        ``token_markers`` are ``signals.markers`` of the token's text. ``text`` is what the token
        adds to the text: for a policy with signals of the text, which needs no ``token_signals``
        where it has no others. ``token`` is its id, for a policy with
        ``signals.repeats.TOKEN_REPEATS``. ``probe`` makes a trial
        answer and is called only at a checkpoint where the policy needs one.
        A policy with any of ``PAID_SIGNALS`` fails here: give them to ``at_checkpoint``.
        """
        if self._stride is None:
            raise ValueError("this controller was made without a stride: call at_checkpoint")
        self.thinking_tokens += 1
        if self.thinking_tokens % self._stride or inside_character:
            self._safely(lambda: self._take(token_signals, token_markers, text, token))
            return None

        def decide() -> Decision:
            if self.paid:
                raise ValueError(f"no token tells {', '.join(self.paid)}: call at_checkpoint")
            self._take(token_signals, token_markers, text, token)
            signals = {name: float(v[0]) for name, v in self._own_window.read().items()}
            if self._text is not None:
                signals |= self._text.read()
            if self._repeats is not None:
                signals[TOKEN_REPEATS] = self._repeats.read()
            answer = probe() if probe is not None and self.needs_probe(signals) else None
            return self._decide(signals, self.thinking_tokens, answer)

        return self._safely(decide)

    def at_checkpoint(
        self, signals: Mapping[str, float], thinking_tokens: int, probe: Probe | None = None
    ) -> Decision:
        """Decide at a checkpoint whose window is summed up already.

        ``signals`` are those of ``signals.SIGNALS`` or of the traces the policy was trained on;
        one that is left out keeps its last value. ``thinking_tokens`` counts from the start.
        Raises ``ValueError`` for a checkpoint that does not come after the last one.
        """
        if thinking_tokens <= self.thinking_tokens:
            raise ValueError(
                f"a checkpoint after {thinking_tokens} thinking tokens, and the last was after"
                f" {self.thinking_tokens}: {_ONE_REQUEST}"
            )
        self.thinking_tokens = thinking_tokens
        return self._safely(lambda: self._decide(signals, thinking_tokens, probe))

    def _safely(self, act: Callable[[], Decision | None]) -> Decision:
        """What ``act`` decides; to go on after a fault, and where it decides nothing."""
        if self.failed is None:
            try:
                return act() or CONTINUE
            except Exception as error:  # whatever it is, the decode must go on
                self._fail(error)
        return CONTINUE

    def _take(
        self,
        token_signals: npt.ArrayLike | None,
        token_markers: npt.ArrayLike,
        text: str | None,
        token: int | None,
    ) -> None:
        if self._repeats is not None:
            if token is None:
                raise ValueError("the policy follows repetition: a token came without its id")
            self._repeats.push((token,))
        if self._text is not None:
            if text is None:
                raise ValueError("the policy reads the text: a token came without its own")
            self._text.push(text)
        if token_signals is None and self._text_alone:
            return
        values = np.asarray([] if token_signals is None else token_signals, dtype=np.float64)
        if not values.size:
            raise ValueError("a token came without log-probabilities, and so without signals")
        if values.shape != (len(TOKEN_SIGNALS),):
            raise ValueError(
                f"token signals have shape {values.shape}, not ({len(TOKEN_SIGNALS)},)"
            )
        for name, value in zip(TOKEN_SIGNALS, values.tolist(), strict=True):
            _check_finite(name, value)
        self._own_window.push(values[None, :], np.asarray(token_markers, dtype=bool)[None, :])

    def _decide(
        self, signals: Mapping[str, float], thinking_tokens: int, probe: Probe | None
    ) -> Decision:
        given = {name: signals[name] for name in self._needed if name in signals}
        if self._needed.difference(PAID_SIGNALS) and not given:
            raise ValueError("no signal that the policy was trained on is given")
        for name, value in given.items():
            _check_finite(name, value)
        answer, confidence, hedges = None, None, None
        if self._observer.needs_probe(given):
            if probe is None:
                raise ValueError("the policy needs a trial answer at this checkpoint")
            answer, confidence = self._read(probe)
            hedges = hedged(probe.answer)
        observation = self._observer.update(
            thinking_tokens,
            self._context | given if self._context else given,
            answer,
            confidence,
            hedges,
        )
        return self._ask(observation)

    def _read(self, probe: Probe) -> tuple[int, float]:
        """The trial answer's code and its confidence."""
        _check_finite("probe_confidence", probe.confidence)
        vote = vote_key(probe.answer, self._scorer)
        return self._answers.setdefault(vote, len(self._answers)), probe.confidence

    def _ask(self, observation: Float32s) -> Decision:
        self.observation = observation
        decision = self._policy(observation, token_price=self._token_price)
        _check_finite("stop_probability", decision.stop_probability)
        return decision

    def _fail(self, error: Exception) -> None:
        self.failed = str(error) or type(error).__name__
        if self._on_failure is not None:
            self._on_failure(self.failed)
        else:
            _log.warning("the stop policy is off for this decode, which goes on: %s", self.failed)


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}")
