"""One request under a plan: the machine that every shell drives.

A shell decodes tokens and tells of each::

    forced = request.forced(likeliest)      # before a token: the one that must come, or None
    wish = request.push(token, signals)     # after it: None, or what the plan wants done aside
    while wish is not None:
        wish = request.forked(...)          # a Fork: the continuation that the shell decoded
        wish = request.handed_over(...)     # a HandOver: what Core.hand_over gave

until ``request.done``. Everything else is decided here: checkpoints, stops, trial answers, the end
of the thinking, corrections, audits, the log. What a request decodes is what the recorder would
have recorded up to the stop, and the exit's answer after it. No fault of a policy or a strategy
reaches the shell: the decode goes on to its natural end, and ``message`` says so.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rlbudget.decoding.core import Core, HandOver
from rlbudget.decoding.decoded import Decoded
from rlbudget.errors import UserError
from rlbudget.models.profiles import trusted_ids
from rlbudget.models.reading import (
    Continuation,
    ExitResult,
    ProbeResult,
    ends_answer,
    make_probe,
    read_answer,
)
from rlbudget.policy.cascade import CascadeRequest
from rlbudget.policy.controller import Controller, Reason
from rlbudget.policy.dial import Dial
from rlbudget.signals.loops import Loops
from rlbudget.signals.tokens import TOKEN_SIGNALS, TokenWindow
from rlbudget.strategies.correction.corrector import Corrector
from rlbudget.strategies.feedback.audit import audited
from rlbudget.strategies.feedback.log import CorrectionEntry, LoggedRequest, ModelTokens, Stop, now
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace

_OPENING = 16
"""tokens after which a model that has not opened its thinking is taken not to think"""


class State(Enum):
    """Where a request stands."""

    WAITING = "the model has yet to open its thinking"
    THINKING = "it thinks: it needs signals and may not end"
    ANSWERING = "the exit text is being forced, or the answer written"
    ALONE = "nothing is decided about it any more"
    DONE = "the answer is written"


@dataclass(frozen=True, slots=True)
class Fork:
    """A wish of a request: decode greedily from here, aside; the decode itself goes on untouched.

    ``cue`` is fed first, then up to ``cap`` tokens until an end of sequence or one of ``stops``.
    """

    cue: tuple[int, ...]
    cap: int
    stops: tuple[str, ...]


Wish: TypeAlias = Fork | HandOver
Steps: TypeAlias = Generator[Wish, Any, None]


@dataclass(frozen=True, slots=True)
class Ending:
    """Where and why a thinking ended, so far."""

    thinking_tokens: int
    probe_tokens: int
    """tokens of all trial answers that were made"""
    answer_tokens: int
    """every token after the thinking"""
    reason: Reason | None
    """None while it thinks"""
    stop_probability: float | None
    """at the last checkpoint; None where there was none"""
    message: str | None
    """what went wrong"""


@dataclass(slots=True)
class _Kept:
    """The least doubted exit so far."""

    written: ExitResult
    at: int
    doubt: float


class Request:
    """The state of one request; O(1) a token. Not to be shared between threads.

    ``prompt`` are the prompt's token ids: they say whether thinking is open; None where the shell
    itself made the prompt from the profile. ``question``, ``task`` and ``metadata`` are for
    policies and rules that look at them. ``dial`` is the request's own operating point,
    ``token_price`` short for one. ``max_new_tokens`` is the engine's own cap on all tokens of the
    request: the thinking ends early enough to leave room for an answer; ``max_thinking_tokens``
    is the request's own budget. ``off`` leaves the request alone. ``settings`` of the decode
    (temperature, seed) are for an audit's trace.

    Raises ``UserError`` for a price the policy does not know and for a cap that leaves no room to
    think.
    """

    def __init__(
        self,
        core: Core,
        *,
        prompt: Sequence[int] | None = None,
        question: str | None = None,
        task: str = "",
        metadata: Mapping[str, Any] | None = None,
        dial: Dial | None = None,
        token_price: float | None = None,
        max_new_tokens: int | None = None,
        max_thinking_tokens: int | None = None,
        off: bool = False,
        request_id: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._core = core
        self._facts = RequestFacts(question or "", task, metadata or {})
        self._policy = core.policy_for(self._facts)
        spot = core.spot(dial, token_price)
        self.token_price = spot.token_price
        """reward lost per token"""
        self._stops = spot.stops
        own = token_price is not None or not (dial is None or dial.silent)
        self._effort = (dial.effort if dial else None) if own else core.plan.dial.effort
        self._controller: Controller | None = None
        self._cascade: CascadeRequest | None = None
        if core.plan.cascade is not None:
            self._cascade = CascadeRequest(
                core.plan.cascade, token_price=self.token_price, question=question
            )
        else:
            self._controller = Controller(
                self._policy, token_price=self.token_price, question=question, task=task,
                on_failure=core.failures.add,
            )  # fmt: skip
        correction = core.plan.correction
        self._corrector: Corrector | None = None
        if correction is not None and not correction.off:
            self._corrector = Corrector(
                correction, probe_tokens=core.probe_tokens, question=question
            )
        self._cap = core.max_thinking if spot.stops != "at once" else 0
        if max_thinking_tokens is not None:
            if max_thinking_tokens < 1:
                raise UserError(f"a budget of {max_thinking_tokens} thinking tokens: at least 1")
            self._cap = min(self._cap, max_thinking_tokens)
        if max_new_tokens is not None and not off:
            if max_new_tokens <= core.reserve:
                raise UserError(
                    f"a limit of {max_new_tokens} new tokens leaves no room to think: the exit"
                    f" text and the answer take {core.reserve} of them"
                )
            self._cap = min(self._cap, max_new_tokens - core.reserve)
        self._limit = max_new_tokens
        if request_id is not None and (not request_id.strip() or "\0" in request_id):
            raise UserError("the request id must not be blank or hold a NUL character")
        self.request_id = request_id or (uuid.uuid4().hex if core.log is not None else None)
        self._settings = dict(settings or {})
        opened = "open" if prompt is None else core.tags.opened(prompt)
        self.state = {"open": State.THINKING, "closed": State.ALONE}.get(opened, State.WAITING)
        if off:
            self.state = State.ALONE
        audit = core.plan.audit
        self.audited = bool(
            audit is not None
            and self._cap
            and self.request_id is not None
            and self.state is not State.ALONE
            and audited(self.request_id, audit.share)
        )
        """whether it runs to its natural end and is recorded"""
        self._steps: Steps | None = None
        self._window = TokenWindow()
        self._tags, self._eos, self._stride = core.tags, core.eos, core.stride
        self._markers = core.vocabulary.markers
        self._loops = Loops() if core.plan.loops else None
        self._fault: str | None = None
        self.problem: str | None = None
        """what the engine found wrong with the model itself, for ``message``"""
        self._reason: Reason | None = "off" if self.state is State.ALONE else None
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._before: list[int] = []  # tokens before the model opened its thinking
        self._thinking = 0
        self._answer_from = 0
        self._answer_tokens = 0
        self._paid = 0  # tokens of exits that were taken back
        self._probe_tokens = 0
        self._probability: float | None = None
        self._forced: list[int] = []
        self._points: list[Checkpoint] = []
        self._would: Stop | None = None  # where an audited request would have stopped
        self._written: ExitResult | None = None  # an exit that stands in for the rest of the decode
        self._kept: _Kept | None = None
        self._resume_at: float | None = None
        self._resumed = 0
        self._ask_end = False
        self._opened_itself = False
        self._second: Decoded | None = None
        self._logged = self._closed = False
        self._signals_fault = self._audit_fault = False
        if self.state is State.THINKING and not self._cap:
            self._exit("max_tokens")

    # What the shell asks ------------------------------------------------------------------------

    @property
    def thinking(self) -> bool:
        """Whether it still thinks: only then are signals needed and is ending forbidden."""
        return self.state is State.THINKING

    @property
    def answering(self) -> bool:
        """Whether the thinking was ended and the answer is being written, or is."""
        return self.state in (State.ANSWERING, State.DONE)

    @property
    def done(self) -> bool:
        """Whether the answer is written, by the profile's own rules."""
        return self.state is State.DONE

    @property
    def idle(self) -> bool:
        """Whether nothing will be forced or decided any more."""
        return self.state in (State.ALONE, State.DONE) or (
            self.state is State.ANSWERING and not self._forced
        )

    @property
    def room(self) -> int:
        """Thinking tokens left before the cap."""
        return self._cap - self._thinking

    @property
    def to_checkpoint(self) -> int:
        """Tokens up to the next checkpoint or the cap."""
        stride = self._core.stride
        return max(min(stride - self._thinking % stride, self.room), 1)

    @property
    def ahead(self) -> int:
        """Thinking tokens that can be asked for at once: a request that wants something done aside
        at every checkpoint goes no further than the next."""
        controller = self._controller if self._stops == "policy" else None
        often = self.audited or (controller is not None and controller.needs_probe)
        return self.to_checkpoint if often else self.room

    @property
    def ids(self) -> Sequence[int]:
        """All tokens since the prompt."""
        return self._ids

    @property
    def failed(self) -> str | None:
        """Why the policy is off, if it is."""
        return self._fault or (None if self._controller is None else self._controller.failed)

    def forced(self, likeliest: int = -1) -> int | None:
        """The token that must come next, or None.

        ``likeliest`` is the engine's own first choice: where it would end everything while it
        still thinks, the exit begins instead. The other ends of sequence must not be sampled
        while ``thinking``.
        """
        if self.state is State.THINKING and likeliest in self._core.eos:
            self._exit("natural")
        return self._forced[0] if self._forced else None

    def gave_up(self) -> None:
        """The engine sampled an end of sequence while it thought, which was paid for: the exit
        takes its place."""  # fmt: skip
        self._answer_tokens += 1
        if self.state is State.THINKING:
            self._exit("natural")

    def cut(self) -> None:
        """The engine's own limit ended the thinking."""
        if self.state is State.THINKING:
            self._exit("max_tokens")

    def paid_unseen(self, tokens: int) -> None:
        """Tokens after the thinking that were paid for but never shown."""
        self._answer_tokens += tokens

    def finish(self) -> None:
        """The engine ended the request; what is written is the answer."""
        if self.state is not State.DONE:
            self.state = State.DONE
            if not self._core.engine.forks:
                self.close()

    def close(self, *, paid: int | None = None) -> None:
        """Note the request in the log, if there is one: the last call of a shell that forks.

        ``paid`` are all tokens that the engine says it made for the request, forks left out, with
        the exit text: more than were pushed, where some were never shown.
        """
        if self._closed:
            return
        self._closed = self._core.engine.forks
        if paid is not None:
            self._answer_tokens = max(paid - self._thinking, 0)
        self._note()

    def push(
        self, token: int, signals: npt.ArrayLike | None = None, text: str | None = None
    ) -> Wish | None:
        """Take the token that was added; what the plan wants done aside before the next one.

        ``signals`` of shape (6,) are those of ``signals.tokens.TOKEN_SIGNALS``, float; needed
        while ``thinking``, None where there are none. ``text`` is what the token adds to the text,
        for engines that give no ids.
        """
        if self._closed:
            raise ValueError("this request is closed: make a new one for each decode")
        if self._steps is not None:  # a shell that goes on without doing what was wished
            self._go_on(RuntimeError("what the plan wanted done aside was left undone"), fails=True)
        self._ids.append(token)
        if text is not None:
            self._texts.append(text)
        if self.state is State.THINKING:
            return self._think(token, signals)
        if self.state is State.WAITING:
            self._wait(token)
        else:
            self._answer(token)
            if self._ask_end:
                self._ask_end = False
                return self._run(self._at_end())
        return None

    def forked(self, found: Continuation | Exception) -> Wish | None:
        """Take what a ``Fork`` gave, or why it could not be made; the next wish, if there is
        one."""  # fmt: skip
        return self._go_on(found, fails=isinstance(found, Exception))

    def handed_over(self, found: Decoded | Exception) -> Wish | None:
        """Take what a ``HandOver`` gave; the next wish, if there is one."""
        return self._go_on(found)

    @property
    def ending(self) -> Ending:
        """Where it stands."""
        reason: Reason | None = self._reason
        went_on = self.failed is not None and reason in ("natural", "max_tokens")
        return Ending(
            thinking_tokens=self._thinking,
            probe_tokens=self._probe_tokens,
            answer_tokens=self._answer_tokens + (0 if self.audited else self._paid),
            reason="policy_failed" if went_on else reason,
            stop_probability=self._probability,
            message=self._message,
        )

    def decoded(self) -> Decoded:
        """What came of it; for one that is ``done``."""
        ending, core = self.ending, self._core
        written, second = self._written, self._second
        at = self._kept.at if written is not None and self._kept is not None else self._thinking
        if written is not None:
            answer = core.answer(written.ids)
            rest = core.profile.exit_text + core.vocabulary.text(written.ids, special=True)
        else:
            answer = self.answer
            rest = self._text(self._thinking, len(self._ids))
        stopped = self._reason == "policy"
        reason = ending.reason or "natural"
        return Decoded(
            answer=answer if second is None else second.answer,
            text=self._text(0, at) + (rest if second is None else "") + (
                "" if second is None else second.text),
            thinking_tokens=ending.thinking_tokens,
            probe_tokens=0 if self.audited else ending.probe_tokens,
            answer_tokens=ending.answer_tokens,
            stopped=stopped,
            stopped_at=at if stopped else None,
            reason=reason,
            stop_probability=ending.stop_probability,
            message=ending.message,
            resumed=self._resumed,
            confidence=getattr(self._policy, "confidence", None) if stopped else None,
            second=second,
            ratio=1.0 if core.plan.cascade is None else core.plan.cascade.ratio,
            second_ratio=self._second_ratio,
            request_id=self.request_id,
            audited=self.audited,
        )  # fmt: skip

    # The thinking ---------------------------------------------------------------------------------

    def _wait(self, token: int) -> None:
        """A token of a model that opens its thinking by itself, if it does."""
        self._before.append(token)
        self._answer_tokens += 1
        opened = self._tags.opens(self._before)
        if opened == "open":
            self.state = State.THINKING
            # Recorded prompts hold the line break after the start of the thinking, if any does.
            self._opened_itself = self._tags.breaks and not self._ends_line(token)
            self._begin()
            if not self._cap:
                self._exit("max_tokens")
        elif opened == "closed" or len(self._before) > _OPENING or token in self._eos:
            self._leave("off")
            if token in self._eos:
                self.finish()

    def _begin(self) -> None:
        """Thoughts are counted from here on; what was written before them is paid for."""
        self._ids.clear()
        self._texts.clear()
        if self._limit is not None:
            room = self._limit - self._core.reserve - self._answer_tokens
            self._cap = max(min(self._cap, room), 0)

    def _ends_line(self, token: int) -> bool:
        return self._core.vocabulary.text([token], special=True).endswith("\n")

    def _think(self, token: int, signals: npt.ArrayLike | None) -> Wish | None:
        tags, ids = self._tags, self._ids
        if self._opened_itself:
            self._opened_itself = False
            if token not in self._eos and not self._core.vocabulary.text([token]).strip():
                self._answer_tokens += 1
                self._begin()
                return None
        self._thinking += 1
        spelled = tags.end_length(token, ids)
        if spelled:
            # An end text may straddle a checkpoint; the thinking never ends before it.
            before = (self._thinking - 1) // self._stride * self._stride
            self._thinking = max(self._thinking - spelled, before)
            self._answer_tokens += len(ids) - self._thinking
            return self._end("natural")
        if token in self._eos:  # the engine ended everything: no thought, and no answer
            self._thinking -= 1
            self._answer_tokens += 1
            self._reason, self._answer_from = "natural", len(ids)
            self._ended_resumed()
            self.finish()
            return None
        if tags.begins_tool_call(token, ids):
            self._leave("tool_call")
            return None
        self._take(token, signals)
        if self._loops is not None and self._loops.push(token):
            self._loops = None
            if not self.audited:
                self._exit("loop")
                return None
            if self._would is None:
                return self._run(self._note_loop())
        on_grid = self._thinking % self._stride == 0
        over = self._thinking >= self._cap
        if (on_grid or over) and tags.may_begin_tool_call(ids):
            return None
        if over:
            self._exit("max_tokens")
        elif on_grid and not self._core.vocabulary.inside_character(ids):
            return self._run(self._at_checkpoint())
        return None

    def _note_loop(self) -> Steps:
        """Where an audited request would have been closed; it goes on."""
        here = self._exit_of((yield self._exit_fork()))
        self._note_stop("loop", None, here.answer_tokens + self._paid)
        self._ended_resumed()
        self._kept, self._paid = None, 0

    def _take(self, token: int, signals: npt.ArrayLike | None) -> None:
        if self._signals_fault or (self.failed is not None and not self.audited):
            return
        try:
            values = [] if signals is None else _numbers(signals)
            if len(values) != len(TOKEN_SIGNALS):
                raise ValueError("a token came without log-probabilities")
            if not math.isfinite(sum(values)):
                name, value = next(
                    (n, v) for n, v in zip(TOKEN_SIGNALS, values, strict=True)
                    if not math.isfinite(v)
                )  # fmt: skip
                raise ValueError(f"{name} is {value}")
            self._window.push(values, self._markers[token].tolist())
        except Exception as error:  # whatever it is, the decode must go on
            self._signals_fault = True
            if self.failed is None:
                self._broke(error)

    def _at_checkpoint(self) -> Steps:
        """What the plan does at a checkpoint."""
        core, thinking = self._core, self._thinking
        signals: dict[str, float] = {}
        if not self._signals_fault and (self.failed is None or self.audited):
            signals = self._window.read()
        if self._corrector is not None:
            self._corrector.take(signals, thinking)
        here: ExitResult | None = None
        trial: ProbeResult | None = None
        if self.audited:
            here = self._exit_of((yield self._exit_fork()))
            trial = self._trial_of(here)
            if trial is None and core.probe_tokens:
                trial = self._probe_of((yield self._probe_fork()))
            self._points.append(_point(thinking, signals, here, trial))
        if self._resume_at is not None:
            if thinking >= self._resume_at:
                yield from self._exit_again(here)
            return
        if self._would is not None or self.failed is not None or self._stops == "never":
            return
        if self._cascade is not None:
            yield from self._ask_cascade(signals)
            return
        controller = self._controller
        assert controller is not None
        probe = None
        if controller.needs_probe:
            trial = trial or self._probe_of((yield self._probe_fork()))
            probe = self._charged(trial)
        decision = controller.at_checkpoint(signals, thinking, probe)
        if decision.probe:
            trial = trial or self._probe_of((yield self._probe_fork()))
            decision = controller.looked(self._charged(trial))
        if controller.failed is None:
            self._probability = decision.stop_probability
        if decision.stop:
            if self._corrector is not None and self._corrector.failed is None:
                yield from self._exit_checked(here)
            else:
                self._stop(here)

    def _ask_cascade(self, signals: Mapping[str, float]) -> Steps:
        assert self._cascade is not None
        try:
            decision = self._cascade.checkpoint(signals, self._thinking)
            if not all(map(math.isfinite, decision.chances)):
                raise ValueError(f"its chances are {decision.chances}")
        except Exception as error:  # whatever it is, the decode must go on
            self._broke(error)
            return
        if decision.escalate:
            yield from self._escalate()
        elif decision.stop:
            self._stop(None)

    def _at_end(self) -> Steps:
        """A cascade is asked once more where the small model ends its thinking."""
        assert self._cascade is not None
        if self.failed is not None or self._would is not None:
            return
        try:
            decision = self._cascade.natural_end(self._thinking)
            if not all(map(math.isfinite, decision.chances)):
                raise ValueError(f"its chances are {decision.chances}")
        except Exception as error:  # whatever it is, the decode must go on
            self._broke(error)
            return
        if decision.escalate:
            yield from self._escalate()

    def _escalate(self) -> Steps:
        if self.audited:
            self._note_stop("escalate", self._thinking, 0)
            return
        found = yield HandOver(self._facts.question, self.token_price, None)
        if isinstance(found, Exception):
            self._broke(found, "the large model")
            return
        self._second = found
        self._reason = "escalate"
        self._answer_tokens = 0
        self._forced.clear()
        self.finish()

    # Exits ----------------------------------------------------------------------------------------

    def _stop(self, here: ExitResult | None) -> None:
        if self.audited:
            self._note_stop("policy", self._thinking, 0 if here is None else here.answer_tokens)
        else:
            self._exit("policy")

    def _exit_checked(self, here: ExitResult | None) -> Steps:
        """Write the exit aside; where its answer is doubted, think on or ask a second model."""
        written = here or self._exit_of((yield self._exit_fork()))
        self._paid += written.answer_tokens
        self._kept = _Kept(written, self._thinking, math.inf)
        yield from self._judge(written)

    def _exit_again(self, here: ExitResult | None) -> Steps:
        """The next exit of a correction."""
        written = here or self._exit_of((yield self._exit_fork()))
        self._resumed += 1
        self._paid += written.answer_tokens
        yield from self._judge(written)

    def _judge(self, written: ExitResult) -> Steps:
        corrector, kept = self._corrector, self._kept
        assert corrector is not None
        assert kept is not None
        correction = corrector.correction
        try:
            trial = self._trial_of(written)
            doubt = corrector.doubt(written, trial, self._text(0, self._thinking))
        except Exception as error:  # whatever it is, there is an answer
            corrector.fail(error)
            self._keep()
            return
        if doubt <= kept.doubt:
            self._kept = kept = _Kept(written, self._thinking, doubt)
        if kept.doubt <= correction.threshold or self._resumed >= correction.rounds:
            self._keep()
        elif correction.second is not None:
            if self.audited:
                self._keep()
                return
            price = self.token_price / self._second_ratio
            found = yield HandOver(self._facts.question, price, self._core.answer(written.ids))
            if isinstance(found, Exception):
                corrector.fail(found)
            else:
                self._second = found
            self._keep()
        else:
            budget = correction.budget
            self._resume_at = math.inf if budget is None else self._thinking + budget

    def _keep(self) -> None:
        """The least doubted exit is the answer."""
        assert self._kept is not None
        self._resume_at = None
        if self.audited:
            self._note_stop("policy", self._kept.at, self._paid)
            self._paid = 0
            self._kept = None
            return
        self._written = self._kept.written
        self._reason = "policy"
        self._forced = [*self._core.vocabulary.exit_ids, *self._written.ids]
        self.finish()

    def _note_stop(self, reason: Reason, at: int | None, answer_tokens: int) -> None:
        self._would = Stop(reason, at, self._probability, self._thinking, self._probe_tokens,
                           answer_tokens)  # fmt: skip

    def _exit(self, reason: Reason) -> None:
        """Force the exit text."""
        self._reason = reason
        self._ask_end = self._cascade is not None and reason != "policy" and self._cap > 0
        self._ended_resumed()
        self.state = State.ANSWERING
        self._forced = list(self._core.vocabulary.exit_ids)
        self._answer_from = len(self._ids) + len(self._forced)

    def _end(self, reason: Reason) -> Wish | None:
        """The model ended its thinking by itself."""
        self._reason = reason
        self._ended_resumed()
        self.state = State.ANSWERING
        self._answer_from = len(self._ids)
        return self._run(self._at_end()) if self._cascade is not None else None

    def _ended_resumed(self) -> None:
        if self._resume_at is not None:
            self._resumed += 1
            self._resume_at = None

    def _leave(self, reason: Reason) -> None:
        """Decide nothing about this request any more."""
        self.state = State.ALONE
        self.audited, self._would = False, None  # there is no answer to compare with
        self._reason = reason
        self._answer_from = len(self._ids)

    # The answer -----------------------------------------------------------------------------------

    def _answer(self, token: int) -> None:
        if self._written is None:
            self._answer_tokens += 1
        if self._forced:
            if self._forced.pop(0) == token:
                return
            self._forced.clear()  # the engine went its own way
            self._answer_from = len(self._ids) - 1
        if self.state is State.DONE:
            return
        if token in self._eos:
            self.finish()
        elif self.state is State.ANSWERING:
            profile = self._core.profile
            written = len(self._ids) - self._answer_from
            stops = profile.answer_stop
            if written >= profile.max_answer_tokens or (
                stops and ends_answer(self._answer_ids, self._core.vocabulary, stops)
            ):
                self.finish()

    @property
    def _answer_ids(self) -> list[int]:
        if self._texts:
            spelled = "".join(self._texts[self._answer_from :])
            return list(trusted_ids(self._core.vocabulary.tokenizer, spelled))
        return self._ids[self._answer_from :]

    @property
    def answer(self) -> str:
        """The answer that is found in what was written so far."""
        return self._core.answer(self._answer_ids)

    def _text(self, start: int, stop: int) -> str:
        if self._texts:
            return "".join(self._texts[start:stop])
        return self._core.vocabulary.text(self._ids[start:stop], special=True)

    # Forks ----------------------------------------------------------------------------------------

    def _exit_fork(self) -> Fork:
        profile = self._core.profile
        exit_ids = self._core.vocabulary.exit_ids
        return Fork(exit_ids, profile.max_answer_tokens, profile.answer_stop)

    def _probe_fork(self) -> Fork:
        core = self._core
        return Fork(core.vocabulary.probe_ids, core.probe_tokens, core.profile.probe_stop)

    def _exit_of(self, found: Continuation) -> ExitResult:
        core = self._core
        return ExitResult(
            answer=read_answer(found.ids, core.vocabulary, core.profile, core.profile.answer_stop),
            answer_tokens=len(core.vocabulary.exit_ids) + len(found.ids),
            ids=found.ids,
            logprobs=found.logprobs,
            entropy=found.entropy,
        )

    def _probe_of(self, found: Continuation) -> ProbeResult:
        core = self._core
        return make_probe(found, core.probe_tokens, core.vocabulary, core.profile)

    def _trial_of(self, exit: ExitResult) -> ProbeResult | None:
        """The trial answer that an exit begins with; None where a probe has a cue of its own."""
        core = self._core
        profile, most = core.profile, core.probe_tokens
        same = (profile.probe_cue, profile.probe_stop) == (profile.exit_text, profile.answer_stop)
        if not same or not 0 < most <= profile.max_answer_tokens:
            return None
        return make_probe(exit, most, core.vocabulary, profile)

    def _charged(self, made: ProbeResult) -> Probe:
        self._probe_tokens += made.tokens
        return Probe(made.answer, made.confidence, made.tokens)

    # The way of the steps -------------------------------------------------------------------------

    def _run(self, steps: Steps) -> Wish | None:
        self._steps = steps
        return self._go_on(None)

    def _go_on(self, found: Any, *, fails: bool = False) -> Wish | None:
        if self._steps is None:
            return None
        try:
            return self._steps.throw(found) if fails else self._steps.send(found)
        except StopIteration:
            self._steps = None
        except Exception as error:  # whatever it is, the decode must go on
            self._steps = None
            self._audit_fault = True  # its record would lack an exit
            if self._kept is not None and self._corrector is not None:
                self._corrector.fail(error)
                self._keep()
            else:
                self._broke(error)
        return None

    def _broke(self, error: Exception, what: str = "") -> None:
        """The plan is off for the rest of the request."""
        said = str(error) or type(error).__name__
        self._fault = f"{what} failed: {said}" if what else said
        self._core.failures.add(self._fault)

    @property
    def _message(self) -> str | None:
        if self.problem is not None:
            return self.problem
        if self.failed is not None:
            what = "cascade" if self._cascade is not None else "policy"
            return f"the {what} failed: {self.failed}"
        if self._corrector is not None and self._corrector.failed is not None:
            return f"the correction failed: {self._corrector.failed}"
        return None

    # The log --------------------------------------------------------------------------------------

    def _note(self) -> None:
        """Once, and no fault of the log reaches anybody."""
        log, core = self._core.log, self._core
        if log is None or self._logged or self.request_id is None:
            return
        self._logged = True
        try:
            decoded = self.decoded()
            stop = self._would or Stop(
                decoded.reason, decoded.stopped_at, decoded.stop_probability,
                decoded.thinking_tokens, self._probe_tokens, self._answer_tokens + self._paid,
            )  # fmt: skip
            versions = core.plan.versions
            log.decision(
                LoggedRequest(
                    request_id=self.request_id,
                    time=now(),
                    policy=core.plan.fingerprint,
                    registry_version=next(iter(versions.values())) if len(versions) == 1 else None,
                    strategy=None if core.plan.plain else core.plan.digest,
                    token_price=self.token_price,
                    audited=self.audited,
                    stop=stop,
                    question=self._facts.question,
                    answer=decoded.answer,
                    engine=core.engine.name,
                    effort=self._effort,
                    correction=self._corrected,
                    answered_by=None if self._second is None else self._second_name,
                    escalated=self._reason == "escalate",
                    models=self._models(decoded),
                )
            )
            if self.audited and not self._audit_fault:
                log.audit(self._trace(decoded))
        except Exception as error:  # whatever it is, the answer is there
            core.failures.add(f"the log: {error}")

    @property
    def _second_name(self) -> str:
        return str(self._core.plan.second_model or self._core.plan.large_model)

    @property
    def _second_ratio(self) -> float:
        correction = self._core.plan.correction
        refiner = None if correction is None else correction.second
        return 1.0 if refiner is None else refiner.ratio

    @property
    def _corrected(self) -> CorrectionEntry | None:
        if self._kept is None and not self._resumed:
            return None
        doubt = None if self._kept is None or math.isinf(self._kept.doubt) else self._kept.doubt
        return CorrectionEntry(self._resumed, doubt, self._second_name if self._second else None)

    def _models(self, decoded: Decoded) -> tuple[ModelTokens, ...]:
        """What each model spent, where there were two."""
        second = decoded.second
        if second is None:
            return ()
        return (
            ModelTokens(self._core.model, decoded.thinking_tokens, decoded.probe_tokens,
                        decoded.answer_tokens, decoded.ratio),
            ModelTokens(self._second_name, second.thinking_tokens, second.probe_tokens,
                        second.answer_tokens, decoded.second_ratio),
        )  # fmt: skip

    def _trace(self, decoded: Decoded) -> Trace:
        """The full decode of an audited request."""
        core, facts = self._core, self._facts
        meta = {
            **facts.metadata,
            "stride": core.stride,
            "max_tokens": self._cap,
            "probe_tokens": core.probe_tokens,
            "profile": core.profile.name,
            "exit_text": core.profile.exit_text,
            "scorer": core.scorer,
            "natural": self._reason == "natural",
            **self._settings,
        }
        if core.log is not None and core.log.store_text:
            meta["thinking"] = self._text(0, self._thinking)
            meta["cuts"] = [len(self._text(0, p.thinking_tokens)) for p in self._points]
        return Trace(
            trace_id=str(self.request_id),
            question_id=question_id(facts.task, facts.question),
            task=facts.task,
            question=facts.question,
            target="",
            model=core.model,
            seed=int(self._settings.get("row_seed", 0)),
            final=Final(
                answer=read_answer(self._answer_ids, core.vocabulary, core.profile,
                                   core.profile.answer_stop),
                exact_match=0,
                thinking_tokens=decoded.thinking_tokens,
                answer_tokens=decoded.answer_tokens,
            ),
            checkpoints=tuple(self._points),
            meta=meta,
        )  # fmt: skip


def question_id(task: str, question: str) -> str:
    """The same for the same question, however often it is asked."""
    return f"{task or 'request'}-{sha256(question.encode()).hexdigest()[:16]}"


def _point(
    thinking: int, signals: Mapping[str, float], here: ExitResult, trial: ProbeResult | None
) -> Checkpoint:
    looks = {"exit_entropy": here.entropy} if math.isfinite(here.entropy) else {}
    if trial is not None:
        looks["probe_tail"] = trial.tail
    return Checkpoint(
        thinking_tokens=thinking,
        signals={**signals, **looks},
        exit=Exit(here.answer, 0, here.answer_tokens),
        probe=None if trial is None else Probe(trial.answer, trial.confidence, trial.tokens),
    )


def _numbers(values: npt.ArrayLike) -> list[float]:
    numbers: list[float] = np.asarray(values, dtype=np.float64).tolist()
    return numbers
