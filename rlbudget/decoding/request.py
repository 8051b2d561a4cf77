"""One request under a plan: the machine that every shell drives.

A shell decodes tokens and tells of each::

    forced = request.forced(likeliest)      # before a token: the one that must come, or None
    wish = request.push(token, signals)     # after it: None, or what the plan wants done aside
    while wish is not None:
        wish = request.forked(...)          # a Fork: the continuation that the shell decoded; or
                                            # a Choose, of an engine that reads options: a Chosen
        wish = request.handed_over(...)     # a HandOver: what Core.hand_over gave

until ``request.done``. Everything else is decided here: where there are checkpoints, the end of the
thinking and of the answer; and, by the plan's ``Decider`` (``deciding.py``), stops, trial answers,
corrections and audits. What a request decodes is what the recorder would have recorded up to the
stop, and the exit's answer after it. No fault of a policy or a strategy reaches the shell: the
decode goes on to its natural end, and ``message`` says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

import numpy.typing as npt

from rlbudget.decoding.aside import Chosen, Wish
from rlbudget.decoding.core import Core
from rlbudget.decoding.deciding import Decider, Kept, Steps, Verdict
from rlbudget.decoding.decoded import Decoded, Ending
from rlbudget.decoding.report import decoded_of, note
from rlbudget.decoding.transcript import Transcript
from rlbudget.errors import UserError
from rlbudget.models.reading import Continuation, ends_answer
from rlbudget.policy.controller import Reason
from rlbudget.policy.dial import Dial
from rlbudget.signals.loops import Loops
from rlbudget.strategies.feedback.audit import audited
from rlbudget.strategies.feedback.log import Stop
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.tasks.scorers import find_scorer, scorer_of_requests

_NO_CAP = 1 << 30
_OPENING = 16
"""tokens after which a model that has not opened its thinking is taken not to think"""


class State(Enum):
    """Where a request stands."""

    WAITING = "the model has yet to open its thinking"
    THINKING = "it thinks: it needs signals and may not end"
    ANSWERING = "the exit text is being forced, or the answer written"
    ALONE = "nothing is decided about it any more"
    DONE = "the answer is written"


class Request:
    """The state of one request; O(1) a token. Not to be shared between threads.

    ``prompt`` are the prompt's token ids: they say whether thinking is open; None where the shell
    itself made the prompt from the profile. ``question``, ``task`` and ``metadata`` are for
    policies and rules that look at them. ``dial`` is the request's own operating point,
    ``token_price`` short for one. ``max_new_tokens`` is the engine's own cap on all tokens of the
    request: the thinking ends early enough to leave room for an answer; ``max_thinking_tokens``
    is the request's own budget. ``off`` leaves the request alone; ``shadow`` cuts
    nothing and notes in ``shadowed`` what would have been. ``settings`` of the decode
    (temperature, seed) are for an audit's trace. ``options`` are the token ids of the answers that
    the question lets choose from, for a policy that looks at how sure the choice is.

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
        shadow: bool = False,
        request_id: str | None = None,
        settings: Mapping[str, Any] | None = None,
        options: Sequence[Sequence[int]] = (),
    ) -> None:
        self._core = core
        self._transcript = Transcript(core.vocabulary)
        spot = core.spot(dial, token_price)
        facts = RequestFacts(question or "", task, metadata or {})
        self._decider = Decider(
            core, facts, spot, self._transcript, question=question, options=options
        )
        self.token_price = spot.token_price
        """reward lost per token"""
        self.uncovered = None if off else core.beyond(spot, self._decider.policy)
        """what no certificate covers at this price; None where one does or nothing is certified"""
        own = token_price is not None or not (dial is None or dial.silent)
        self._effort = (dial.effort if dial else None) if own else core.plan.dial.effort
        self._cap = core.thinking_cap(
            spot, of_request=max_thinking_tokens, of_engine=None if off else max_new_tokens
        )
        if shadow:
            room = _NO_CAP if max_new_tokens is None else max_new_tokens - core.reserve
            self._cap = max(self._cap, room)
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
        self._decider.shadowed = shadow and self.state is not State.ALONE
        self._decider.audited = bool(
            audit is not None
            and not shadow
            and self._cap
            and self.request_id is not None
            and self.state is not State.ALONE
            and audited(self.request_id, audit.share)
        )
        self._steps: Steps | None = None
        self._tags, self._eos, self._stride = core.tags, core.eos, core.stride
        self._loops = Loops() if core.plan.loops else None
        self.problem: str | None = None
        """what the engine found wrong with the model itself, for ``message``"""
        self._reason: Reason | None = "off" if self.state is State.ALONE else None
        self._ids = self._transcript.ids
        self._before: list[int] = []  # tokens before the model opened its thinking
        self._thinking = 0
        self._answer_tokens = 0
        self._forced: list[int] = []
        self._kept: Kept | None = None  # an exit that stands in for the rest of the decode
        self._ask_end = False
        self._opened_itself = False
        self._logged = self._closed = False
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
    def settled(self) -> bool:
        """Whether an answer that was written aside, or a second model's, stands in for the
        rest."""  # fmt: skip
        return self._kept is not None or self._decider.second is not None

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
        return self.to_checkpoint if self._decider.forks_often else self.room

    @property
    def ids(self) -> Sequence[int]:
        """All tokens since the prompt."""
        return self._ids

    @property
    def failed(self) -> str | None:
        """Why the policy is off, if it is."""
        return self._decider.failed

    @property
    def audited(self) -> bool:
        """Whether it runs to its natural end and is recorded."""
        return self._decider.audited

    @property
    def shadowed(self) -> tuple[Stop, str] | None:
        """Where a request in ``shadow``, or an audited one, would have been cut, and the answer of
        that exit; None where it would not have been."""  # fmt: skip
        would, answer = self._decider.would, self._decider.would_answer
        return None if would is None or answer is None else (would, answer)

    @property
    def would(self) -> tuple[Stop, str | None] | None:
        """Where a request that is held, by an audit or in ``shadow``, would have been cut, and the
        answer of that exit where it was written; None where it would not have been."""  # fmt: skip
        decider = self._decider
        would, answer = decider.would, decider.would_answer
        if would is None:
            return None
        at = would.thinking_tokens
        recorded = (one.exit.answer for one in decider.points if one.thinking_tokens == at)
        return would, next(recorded, None) if answer is None else answer

    @property
    def confidence(self) -> float | None:
        """Chance, by the guard, that its stop loses no answer, also where it was only held: 1
        where nothing was to be stopped; None without a guard."""  # fmt: skip
        decider = self._decider
        found: float | None = getattr(decider.policy, "confidence", None)
        held = decider.would is not None and decider.would.reason == "policy"
        stopped = self._reason == "policy" or held
        return found if stopped or found is None else 1.0

    @property
    def observation(self) -> npt.NDArray[Any] | None:
        """What the policy saw last, at its stop where there was one, (n_features,)."""
        return self._decider.observation

    @property
    def opening(self) -> Mapping[str, float]:
        """Signals at its first checkpoint: no price has anything to do with them."""
        return self._decider.opening

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

    def ended_by(self, reason: Reason) -> None:
        """The engine decides by itself, and ended the thinking here: its exit text comes next."""
        if self.state is State.THINKING:
            self._exit(reason)
            self._ask_end = False

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
            self._transcript.texts.append(text)
        if self.state is State.THINKING:
            return self._think(token, signals)
        if self.state is State.WAITING:
            self._wait(token)
        else:
            self._answer(token)
            if self._ask_end:
                self._ask_end = False
                return self._run(self._decider.at_end(self._thinking))
        return None

    def forked(self, found: Continuation | Chosen | Exception) -> Wish | None:
        """Take what a ``Fork`` or a ``Choose`` gave, or why it could not be made; the next wish, if
        there is one."""  # fmt: skip
        return self._go_on(found, fails=isinstance(found, Exception))

    def handed_over(self, found: Decoded | Exception) -> Wish | None:
        """Take what a ``HandOver`` gave; the next wish, if there is one."""
        return self._go_on(found)

    @property
    def ending(self) -> Ending:
        """Where it stands."""
        decider, reason = self._decider, self._reason
        went_on = decider.failed is not None and reason in ("natural", "max_tokens")
        return Ending(
            thinking_tokens=self._thinking,
            probe_tokens=decider.probe_tokens,
            answer_tokens=self._answer_tokens + (0 if decider.audited else decider.paid),
            reason="policy_failed" if went_on else reason,
            stop_probability=decider.probability,
            message=decider.message if self.problem is None else self.problem,
        )

    def decoded(self) -> Decoded:
        """What came of it; for one that is ``done``."""
        done = decoded_of(
            self._decider, self._transcript, self.ending, self._kept, request_id=self.request_id
        )
        return replace(done, uncovered=self.uncovered)

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
        self._transcript.clear()
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
            self._reason, self._transcript.answer_from = "natural", len(ids)
            self._decider.thinking_ended()
            self.finish()
            return None
        if tags.begins_tool_call(token, ids):
            self._leave("tool_call")
            return None
        self._decider.take(token, signals)
        if self._loops is not None and self._loops.push(token):
            self._loops = None
            if not self._decider.holds:
                self._exit("loop")
                return None
            if self._decider.would is None:
                return self._run(self._decider.at_loop(self._thinking))
        on_grid = self._thinking % self._stride == 0
        over = self._thinking >= self._cap
        if (on_grid or over) and tags.may_begin_tool_call(ids):
            return None
        if over:
            self._exit("max_tokens")
        elif on_grid and not self._core.vocabulary.inside_character(ids):
            return self._run(self._decider.at_checkpoint(self._thinking))
        return None

    # The end of the thinking ----------------------------------------------------------------------

    def _exit(self, reason: Reason) -> None:
        """Force the exit text."""
        self._reason = reason
        self._ask_end = reason != "policy" and self._cap > 0
        self._decider.thinking_ended()
        self.state = State.ANSWERING
        self._forced = list(self._core.vocabulary.exit_ids)
        self._transcript.answer_from = len(self._ids) + len(self._forced)

    def _end(self, reason: Reason) -> Wish | None:
        """The model ended its thinking by itself."""
        self._reason = reason
        self._decider.thinking_ended()
        self.state = State.ANSWERING
        self._transcript.answer_from = len(self._ids)
        return self._run(self._decider.at_end(self._thinking))

    def _settle(self, verdict: Verdict | None) -> None:
        """The plan ends the thinking, or does not."""
        if verdict is None:
            return
        if verdict.reason == "escalate":
            self._reason = "escalate"
            self._answer_tokens = 0
            self._forced.clear()
            self.finish()
        elif verdict.kept is None:
            self._exit("policy")
        else:
            self._kept, self._reason = verdict.kept, "policy"
            self._forced = [*self._core.vocabulary.exit_ids, *verdict.kept.written.ids]
            self.finish()

    def _leave(self, reason: Reason) -> None:
        """Decide nothing about this request any more."""
        self.state = State.ALONE
        self._decider.leave()
        self._reason = reason
        self._transcript.answer_from = len(self._ids)

    # The answer -----------------------------------------------------------------------------------

    def _answer(self, token: int) -> None:
        if self._kept is None:
            self._answer_tokens += 1
        if self._forced:
            if self._forced.pop(0) == token:
                return
            self._forced.clear()  # the engine went its own way
            self._transcript.answer_from = len(self._ids) - 1
        if self.state is State.DONE:
            return
        if token in self._eos:
            self.finish()
        elif self.state is State.ANSWERING:
            profile = self._core.profile
            written = len(self._ids) - self._transcript.answer_from
            stops = profile.answer_stop
            if written >= profile.max_answer_tokens or (
                stops and ends_answer(self._transcript.answer_ids, self._core.vocabulary, stops)
            ):
                self.finish()

    @property
    def answer(self) -> str:
        """The answer that is found in what was written so far."""
        return self._core.answer(self._transcript.answer_ids)

    def same_answer(self, other: str) -> bool:
        """Whether another answer is the same as this one, as the traces' scorer has it; may take
        seconds."""  # fmt: skip
        return find_scorer(scorer_of_requests(self._core.scorer)).same(other, self.answer)

    # The way of the steps -------------------------------------------------------------------------

    def _run(self, steps: Steps) -> Wish | None:
        self._steps = steps
        return self._go_on(None)

    def _go_on(self, found: Any, *, fails: bool = False) -> Wish | None:
        if self._steps is None:
            return None
        try:
            return self._steps.throw(found) if fails else self._steps.send(found)
        except StopIteration as ended:
            self._steps = None
            self._settle(ended.value)
        except Exception as error:  # whatever it is, the decode must go on
            self._steps = None
            self._settle(self._decider.broke(error))
        return None

    def _note(self) -> None:
        """Once; no fault of the log reaches anybody. What is in shadow is no decision."""
        if self._core.log is None or self._logged or self.request_id is None:
            return
        if self._decider.shadowed:
            return
        self._logged = True
        try:
            note(
                self._core.log, self._decider, self._transcript, self.decoded(),
                effort=self._effort, natural=self._reason == "natural", max_tokens=self._cap,
                settings=self._settings,
            )  # fmt: skip
        except Exception as error:  # whatever it is, the answer is there
            self._core.failures.add(f"the log: {error}")
