"""What a plan does with one request at its checkpoints: asks, writes exits aside, corrects, audits.

``Request`` (``request.py``) says when; what is wanted of the shell meanwhile is yielded, and what
becomes of the thinking is the ``Verdict`` at the end of the steps. No fault of a policy or a
strategy leaves this: the decode goes on without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from rlbudget.decoding.aside import (
    Choose,
    Chosen,
    Wish,
    checkpoint_of,
    entropy_fork,
    exit_fork,
    exit_of,
    probe_fork,
    probe_of,
    tells_entropy,
    trial_of,
)
from rlbudget.decoding.core import Core, HandOver
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.transcript import Transcript
from rlbudget.models.reading import ExitResult, ProbeResult
from rlbudget.policy.cascade import CascadeDecision, CascadeRequest
from rlbudget.policy.controller import Controller, Reason
from rlbudget.policy.dial import Spot
from rlbudget.signals.repeats import TOKEN_REPEATS, TokenRepeats
from rlbudget.signals.text import TEXT_SIGNALS, TextWindow
from rlbudget.signals.tokens import SIGNALS, TOKEN_SIGNALS, TokenWindow
from rlbudget.strategies.correction.corrector import Corrector
from rlbudget.strategies.feedback.log import Stop
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.traces.trace import Checkpoint, Probe


@dataclass(frozen=True, slots=True)
class Kept:
    """The least doubted exit so far."""

    written: ExitResult
    at: int
    """thinking tokens before it"""
    doubt: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the thinking of a request ends."""

    reason: Literal["policy", "escalate"]
    kept: Kept | None = None
    """the exit that was written aside and is the answer; None where it is yet to be forced"""


Steps: TypeAlias = Generator[Wish, Any, Verdict | None]


class Decider:
    """The plan of one request, from its first token to its stop; not to be shared.

    Raises ``UserError`` for a price the policy does not know.
    """

    def __init__(
        self,
        core: Core,
        facts: RequestFacts,
        spot: Spot,
        transcript: Transcript,
        *,
        question: str | None,
        options: Sequence[Sequence[int]] = (),
    ) -> None:
        self.core = core
        self._options = tuple(map(tuple, options))
        self.facts = facts
        self.token_price = spot.token_price
        self.policy = core.policy_for(facts)
        self._stops = spot.stops
        if spot.stops == "policy" and spot.token_price < getattr(self.policy, "stops_from", 0.0):
            self._stops = "never"  # a frozen rule, which looks at nothing there
        self._transcript = transcript
        plan = core.plan
        self._controller: Controller | None = None
        self._cascade: CascadeRequest | None = None
        if plan.cascade is not None:
            self._cascade = CascadeRequest(
                plan.cascade, token_price=self.token_price, question=question
            )
        else:
            self._controller = Controller(
                self.policy, token_price=self.token_price, question=question, task=facts.task,
                on_failure=core.failures.add,
            )  # fmt: skip
        self._corrector: Corrector | None = None
        if plan.correction is not None and not plan.correction.off:
            self._corrector = Corrector(
                plan.correction, probe_tokens=core.probe_tokens, question=question
            )
        self.audited = False
        """whether the request runs to its natural end and is recorded"""
        self.shadowed = False
        """whether nothing is cut, and the exit is written aside where it would have been"""
        self.points: list[Checkpoint] = []
        """of an audited request"""
        self.would: Stop | None = None
        """where an audited or shadowed request would have stopped"""
        self.would_answer: str | None = None
        """the answer of that exit, of a shadowed request"""
        self.opening: Mapping[str, float] = {}
        """signals at its first checkpoint, which no price has anything to do with"""
        self.incomplete = False
        """whether an audit's record lacks an exit"""
        self.probability: float | None = None
        self.probe_tokens = 0
        self.paid = 0
        """tokens of exits that were taken back"""
        self.kept: Kept | None = None
        self.resumed = 0
        """how often an exit was taken back and the thinking went on"""
        self.second: Decoded | None = None
        """what a second model did, where it was asked"""
        self._resume_at: float | None = None
        self._thinking = 0  # tokens where the steps began that were taken last
        self._fault: str | None = None
        self._window = TokenWindow()
        features = plan.features if plan.cascade is None else plan.cascade.features
        needed = {feature.partition(".")[0] for feature in features}
        self._text = TextWindow() if needed & set(TEXT_SIGNALS) else None
        self._repeats = TokenRepeats()
        self._repeats_needed = TOKEN_REPEATS in needed
        self._read = 0  # tokens of the thinking, by both of these
        self._unmeasured = not needed & set(SIGNALS)
        self._markers = core.vocabulary.markers
        self._signals_fault = self._measured = False

    @property
    def failed(self) -> str | None:
        """Why the policy is off, if it is."""
        return self._fault or (None if self._controller is None else self._controller.failed)

    @property
    def observation(self) -> npt.NDArray[Any] | None:
        """What the policy saw last, (n_features,); None before, and under a cascade."""
        return None if self._controller is None else self._controller.observation

    @property
    def message(self) -> str | None:
        """What went wrong."""
        if self.failed is not None:
            what = "cascade" if self._cascade is not None else "policy"
            return f"the {what} failed: {self.failed}"
        if self._corrector is not None and self._corrector.failed is not None:
            return f"the correction failed: {self._corrector.failed}"
        return None

    @property
    def holds(self) -> bool:
        """Whether the thinking goes on where the plan would end it."""
        return self.audited or self.shadowed

    @property
    def forks_often(self) -> bool:
        """Whether something is done aside at every checkpoint."""
        controller = self._controller if self._stops == "policy" else None
        return self.audited or (controller is not None and controller.forks_often)

    @property
    def second_ratio(self) -> float:
        """What a token of a correction's second model costs, in those of the first."""
        correction = self.core.plan.correction
        refiner = None if correction is None else correction.second
        return 1.0 if refiner is None else refiner.ratio

    def take(self, token: int, signals: npt.ArrayLike | None) -> None:
        """Take the signals (6,) of a token of the thinking, float."""
        if self._signals_fault or (self.failed is not None and not self.audited):
            return
        if signals is None and self._unmeasured:
            return
        try:
            values = () if signals is None else _numbers(signals)
            if len(values) != len(TOKEN_SIGNALS):
                raise ValueError("a token came without log-probabilities")
            if not math.isfinite(sum(values)):
                name, value = next(
                    (n, v) for n, v in zip(TOKEN_SIGNALS, values, strict=True)
                    if not math.isfinite(v)
                )  # fmt: skip
                raise ValueError(f"{name} is {value}")
            self._window.push(values, self._markers[token].tolist())
            self._measured = True
        except Exception as error:  # whatever it is, the decode must go on
            self._signals_fault = True
            if self.failed is None:
                self._broke(error)

    def leave(self) -> None:
        """The request is left alone: there is no answer to compare with."""
        self.audited, self.would = False, None

    def thinking_ended(self) -> None:
        """The thinking ended otherwise than by a verdict or before its exit is written."""
        if self._resume_at is not None:
            self.resumed += 1
            self._resume_at = None

    def broke(self, error: Exception) -> Verdict | None:
        """What was wished could not be done, or a step failed."""
        self.incomplete = True
        if self.kept is not None and self._corrector is not None:
            self._corrector.fail(error)
            return self._keep(self.kept)
        self._broke(error)
        return None

    def _broke(self, error: Exception, what: str = "") -> None:
        """The plan is off for the rest of the request."""
        said = str(error) or type(error).__name__
        self._fault = f"{what} failed: {said}" if what else said
        self.core.failures.add(self._fault)

    # Steps ----------------------------------------------------------------------------------------

    def at_checkpoint(self, thinking: int) -> Steps:
        """What the plan does after ``thinking`` tokens of a thinking that goes on."""
        core, self._thinking = self.core, thinking
        signals: dict[str, float] = {}
        if not self._signals_fault and (self.failed is None or self.audited):
            signals = self._signals()
        self.opening = self.opening or signals
        if self._corrector is not None:
            self._corrector.take(signals, thinking)
        here: ExitResult | None = None
        trial: ProbeResult | None = None
        if self.audited:
            here = exit_of(core, (yield exit_fork(core)))
            trial = trial_of(core, here)
            if trial is None and core.probe_tokens:
                trial = probe_of(core, (yield probe_fork(core)))
            self.points.append(checkpoint_of(thinking, signals, here, trial))
        if self._resume_at is not None:
            return (yield from self._exit_again(here)) if thinking >= self._resume_at else None
        if self.would is not None or self.failed is not None or self._stops == "never":
            return None
        if self._cascade is not None:
            return (yield from self._ask_cascade(self._cascade, signals))
        controller = self._controller
        assert controller is not None
        probe = None
        entropy = None if here is None else here.entropy
        wanted = controller.wanted(signals)
        if controller.needs_probe(signals):
            if trial is None:
                found = yield probe_fork(core)
                trial = probe_of(core, found)
                entropy = found.entropy if tells_entropy(core) else entropy
            probe = self._charged(trial)
        if wanted:
            signals = signals | (yield from self._paid_for(wanted, trial, entropy))
        decision = controller.at_checkpoint(signals, thinking, probe)
        if controller.failed is None:
            self.probability = decision.stop_probability
        if not decision.stop:
            return None
        if self._corrector is not None and self._corrector.failed is None:
            return (yield from self._exit_checked(self._corrector, here))
        return (yield from self._stop(here))

    def _paid_for(
        self, names: Sequence[str], trial: ProbeResult | None, entropy: float | None
    ) -> Generator[Wish, Any, dict[str, float]]:
        """The ``PAID_SIGNALS`` of these names, charged as a replay charges them; the entropy of an
        exit may be known already."""  # fmt: skip
        found: dict[str, float] = {}
        if "probe_tail" in names and trial is not None:
            found["probe_tail"] = trial.tail
        if "exit_entropy" in names:
            if entropy is None:
                entropy = (yield entropy_fork(self.core)).entropy
            found["exit_entropy"] = entropy
            self.probe_tokens += 1
        if "answer_entropy" in names and self._options:
            cue = tuple(map(int, self.core.vocabulary.probe_ids))
            chosen: Chosen = yield Choose(cue, self._options)
            found["answer_entropy"] = chosen.entropy
            self.probe_tokens += chosen.tokens
        return found

    def _signals(self) -> dict[str, float]:
        signals = self._window.read() if self._measured else {}
        read, self._read = self._read, self._thinking
        if self._text is not None:
            self._text.push(self._transcript.added(read, self._thinking))
            signals |= self._text.read()
        if self._repeats_needed or self.audited:
            self._repeats.push(self._transcript.ids[read : self._thinking])
            signals[TOKEN_REPEATS] = self._repeats.read()
        return signals

    def at_end(self, thinking: int) -> Steps:
        """A cascade is asked once more where the small model ends its thinking."""
        self._thinking = thinking
        if self._cascade is None or self.failed is not None or self.would is not None:
            return None
        cascade = self._cascade
        decision = self._of_cascade(lambda: cascade.natural_end(thinking))
        return (yield from self._escalate()) if decision is not None and decision.escalate else None

    def at_loop(self, thinking: int) -> Steps:
        """Where an audited request would have been closed; it goes on."""
        self._thinking = thinking
        here = exit_of(self.core, (yield exit_fork(self.core)))
        self._note_stop("loop", None, here.answer_tokens + self.paid)
        self.thinking_ended()
        self.kept, self.paid = None, 0
        return None

    def _ask_cascade(self, cascade: CascadeRequest, signals: Mapping[str, float]) -> Steps:
        decision = self._of_cascade(lambda: cascade.checkpoint(signals, self._thinking))
        if decision is None:
            return None
        if decision.escalate:
            return (yield from self._escalate())
        return (yield from self._stop(None)) if decision.stop else None

    def _of_cascade(self, ask: Callable[[], CascadeDecision]) -> CascadeDecision | None:
        try:
            decision = ask()
            if not all(map(math.isfinite, decision.chances)):
                raise ValueError(f"its chances are {decision.chances}")
        except Exception as error:  # whatever it is, the decode must go on
            self._broke(error)
            return None
        return decision

    def _escalate(self) -> Steps:
        if self.holds:
            self._note_stop("escalate", self._thinking, 0)
            return None
        found = yield HandOver(self.facts.question, self.token_price, None)
        if isinstance(found, Exception):
            self._broke(found, "the large model")
            return None
        self.second = found
        return Verdict("escalate")

    def _stop(self, here: ExitResult | None) -> Steps:
        if not self.holds:
            return Verdict("policy")
        if self.shadowed:
            here = here or exit_of(self.core, (yield exit_fork(self.core)))
        if here is not None:
            self.would_answer = self.core.answer(here.ids)
        self._note_stop("policy", self._thinking, 0 if here is None else here.answer_tokens)
        return None

    def _exit_checked(self, corrector: Corrector, here: ExitResult | None) -> Steps:
        """Write the exit aside; where its answer is doubted, think on or ask a second model."""
        written = here or exit_of(self.core, (yield exit_fork(self.core)))
        self.paid += written.answer_tokens
        self.kept = Kept(written, self._thinking, math.inf)
        return (yield from self._judge(corrector, written, self.kept))

    def _exit_again(self, here: ExitResult | None) -> Steps:
        """The next exit of a correction."""
        written = here or exit_of(self.core, (yield exit_fork(self.core)))
        self.resumed += 1
        self.paid += written.answer_tokens
        assert self._corrector is not None
        assert self.kept is not None
        return (yield from self._judge(self._corrector, written, self.kept))

    def _judge(self, corrector: Corrector, written: ExitResult, kept: Kept) -> Steps:
        correction = corrector.correction
        try:
            trial = trial_of(self.core, written)
            thought = self._transcript.text(0, self._thinking)
            doubt = corrector.doubt(written, trial, thought)
        except Exception as error:  # whatever it is, there is an answer
            corrector.fail(error)
            return self._keep(kept)
        if doubt <= kept.doubt:
            self.kept = kept = Kept(written, self._thinking, doubt)
        if kept.doubt <= correction.threshold or self.resumed >= correction.rounds:
            return self._keep(kept)
        if correction.second is None:
            budget = correction.budget
            self._resume_at = math.inf if budget is None else self._thinking + budget
            return None
        if not self.holds:
            price = self.token_price / self.second_ratio
            first = self.core.answer(written.ids)
            found = yield HandOver(self.facts.question, price, first)
            if isinstance(found, Exception):
                corrector.fail(found)
            else:
                self.second = found
        return self._keep(kept)

    def _keep(self, kept: Kept) -> Verdict | None:
        """The least doubted exit is the answer."""
        self._resume_at = None
        if not self.holds:
            return Verdict("policy", kept)
        self.would_answer = self.core.answer(kept.written.ids)
        self._note_stop("policy", kept.at, self.paid)
        self.kept, self.paid = None, 0
        return None

    def _note_stop(self, reason: Reason, at: int | None, answer_tokens: int) -> None:
        self.would = Stop(
            reason, at, self.probability, self._thinking, self.probe_tokens, answer_tokens
        )

    def _charged(self, made: ProbeResult) -> Probe:
        self.probe_tokens += made.tokens
        return Probe(made.answer, made.confidence, made.tokens)


def _numbers(values: npt.ArrayLike) -> Sequence[float]:
    if isinstance(values, tuple):  # of a server's list: plain numbers already
        return values
    numbers: list[float] = np.asarray(values, dtype=np.float64).tolist()
    return numbers
