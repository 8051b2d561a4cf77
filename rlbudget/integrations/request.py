"""One request inside an engine: it thinks, and then it answers.

The engine asks before every token (``forced``, ``may_end``) and tells of every token it added
(``push``). What it decodes is what ``decoding.record`` would have recorded up to the stop, and
the exit's answer after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy.typing as npt

from rlbudget.decoding.decode import Decoded
from rlbudget.errors import UserError
from rlbudget.integrations.plan import Plan
from rlbudget.policy.controller import Reason
from rlbudget.traces.trace import Probe


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
    """what went wrong with the policy"""


class Request:
    """The state of one request; O(1) a token. Not to be shared between threads.

    ``max_new_tokens`` is the engine's own cap on all tokens of the request: the thinking ends
    early enough to leave room for an answer. ``question`` is needed by a policy that looks at it,
    ``task`` by one that knows tasks.
    Raises ``UserError`` for a price the policy does not know and for a cap that leaves no room to
    think.
    """

    __slots__ = ("_answer_tokens", "_cap", "_controller", "_forced", "_plan",
                 "_probability", "_probe_tokens", "_reason", "_recent", "_thinking")  # fmt: skip

    def __init__(
        self,
        plan: Plan,
        *,
        token_price: float | None = None,
        max_new_tokens: int | None = None,
        question: str | None = None,
        task: str = "",
    ) -> None:
        self._plan = plan
        self._controller = plan.controller(token_price, question, task)
        self._cap = plan.max_thinking
        if max_new_tokens is not None:
            if max_new_tokens <= plan.reserve:
                raise UserError(
                    f"a limit of {max_new_tokens} new tokens leaves no room to think: the exit"
                    f" text and the answer take {plan.reserve} of them"
                )
            self._cap = min(self._cap, max_new_tokens - plan.reserve)
        self._thinking = 0
        self._probe_tokens = 0
        self._answer_tokens = 0
        self._recent: list[int] = []
        self._forced: list[int] = []
        self._reason: Reason | None = None
        self._probability: float | None = None

    @property
    def thinking(self) -> bool:
        """Whether it still thinks: only then are signals needed and is ending forbidden."""
        return self._reason is None

    @property
    def outcome(self) -> Ending:
        """Where it stands."""
        reason, failed = self._reason, self._controller.failed
        return Ending(
            thinking_tokens=self._thinking,
            probe_tokens=self._probe_tokens,
            answer_tokens=self._answer_tokens,
            reason="policy_failed" if failed and reason is not None else reason,
            stop_probability=self._probability,
            message=failed and f"the policy failed: {failed}",
        )

    def forced(self, likeliest: int) -> int | None:
        """The token that must come next, or None.

        ``likeliest`` is the engine's own first choice: where it would end everything while it
        still thinks, the exit begins instead. The other ends of sequence must not be sampled
        while ``thinking``.
        """
        if self._reason is None and likeliest in self._plan.eos:
            self._exit("natural")
        return self._forced[0] if self._forced else None

    def push(
        self,
        token: int,
        signals: npt.ArrayLike | None = None,
        *,
        probe: Callable[[], Probe] | None = None,
    ) -> None:
        """Take the token that was added.

        ``signals`` of shape (6,) are those of ``signals.tokens.TOKEN_SIGNALS``, float; needed
        while ``thinking``. ``probe`` makes a trial answer after this token; it is called where
        the policy needs one or asks for one, and its tokens are counted.
        """
        if self._reason is not None:
            self._answer_tokens += 1
            if self._forced and self._forced.pop(0) != token:
                self._forced.clear()  # the engine went its own way
            return
        self._thinking += 1
        self._recent = [*self._recent[1 - self._plan.vocabulary.end_window :], token]
        spelled = self._end_length(token)
        if spelled:
            # An end text may straddle a checkpoint; the thinking never ends before it.
            before = (self._thinking - 1) // self._plan.stride * self._plan.stride
            thinking = max(self._thinking - spelled, before)
            self._answer_tokens = self._thinking - thinking
            self._thinking = thinking
            self._reason = "natural"
        elif self._thinking >= self._cap:
            self._exit("max_tokens")
        else:
            vocabulary = self._plan.vocabulary
            on_grid = self._thinking % self._plan.stride == 0
            decision = self._controller.push(
                [] if signals is None else signals,
                vocabulary.markers[token],
                probe=None if probe is None else lambda: self._charged(probe()),
                inside_character=on_grid and vocabulary.inside_character(self._recent),
            )
            if decision is not None and self._controller.failed is None:
                self._probability = decision.stop_probability
            if decision is not None and decision.stop:
                self._exit("policy")

    def _charged(self, made: Probe) -> Probe:
        self._probe_tokens += made.tokens
        return made

    def _end_length(self, token: int) -> int:
        vocabulary = self._plan.vocabulary
        if vocabulary.end_id is not None:
            return int(token == vocabulary.end_id)
        return vocabulary.end_length(self._recent) if token in self._plan.closing else 0

    def _exit(self, reason: Reason) -> None:
        self._reason = reason
        self._forced = list(self._plan.vocabulary.exit_ids)


def decoded(
    outcome: Ending, *, answer: str, text: str, paid: int, forced: Reason | None = None
) -> Decoded:
    """What came of a request for whose thinking, exit and answer ``paid`` tokens were made.

    ``forced`` is why the thinking ended where the server cut it short.
    """
    reason = forced or outcome.reason or "natural"
    thinking = outcome.thinking_tokens
    return Decoded(
        answer=answer,
        text=text,
        thinking_tokens=thinking,
        probe_tokens=0,
        answer_tokens=max(paid - thinking, 0),
        stopped=reason == "policy",
        stopped_at=thinking if reason == "policy" else None,
        reason=reason,
        stop_probability=outcome.stop_probability,
        message=outcome.message,
    )
