"""Whose answer is used among several models: one request of a chooser, whoever decodes it.

A shell asks the members that it is told to ask, and says what came of each::

    choice = Choice(chooser, question, token_price=price)
    places = choice.next()                      # members to be asked now, at once or in turn
    while places:
        for place in places:
            choice.take(place, found)           # an ``Answered``, or the exception
        places = choice.next()
    choice.member                               # whose answer is used

``rlbudget.decoding.chosen`` and the gateway are such shells.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlbudget.arrays import Float32s, Floats
from rlbudget.decoding.decoded import Decoded
from rlbudget.errors import UserError
from rlbudget.policy.network import Decision
from rlbudget.policy.stop_policy import Full, StopPolicy
from rlbudget.signals.questions import CONTEXT_SIGNALS, context_signals
from rlbudget.strategies.chooser.chooser import Chooser, Way, paid_already
from rlbudget.strategies.chooser.folder import chooser_digest
from rlbudget.strategies.chooser.rows import Columns, agreement, known_before, named, tokens_of
from rlbudget.strategies.correction.recheck import THINKING_CHECKS, thinking_checks
from rlbudget.strategies.feedback.log import LoggedRequest, ModelTokens, Stop, now
from rlbudget.tasks.scorers import vote_key

if TYPE_CHECKING:
    from rlbudget.models.profiles import Profile

_log = logging.getLogger("rlbudget")


@dataclass(frozen=True, slots=True)
class Answered:
    """What a member did."""

    decoded: Decoded
    ending: Columns
    """how it ended, (1,) each"""


def check_members(chooser: Chooser, models: int) -> None:
    """``UserError`` for another number of models than the chooser's."""
    if models != len(chooser.members):
        raise UserError(
            f"the chooser is of {len(chooser.members)} models"
            f" ({', '.join(member.name for member in chooser.members)}), not {models}"
        )


class Choice:
    """One request of a chooser; not to be shared between threads.

    ``token_price`` is reward lost per token of the dearest member; ``task`` names the request's
    task, on which the members' record is known. Raises ``UserError`` for a price that is not above
    0.
    """

    def __init__(
        self, chooser: Chooser, question: str, *, token_price: float, task: str = ""
    ) -> None:
        try:
            self.way = chooser.ways[chooser.place(token_price)]
        except ValueError as error:
            raise UserError(str(error)) from None
        self.chooser, self.token_price = chooser, token_price
        self.asked: dict[int, Answered] = {}
        """what each member that was asked did, in the order in which they answered"""
        self.failed: list[str] = []
        """what went wrong, a line each"""
        self.member: int | None = None
        """whose answer is used; None until that is known"""
        self.likely: int | None = None
        """whose answer is used unless it fails: known before it is asked where nobody is compared
        with it any more"""
        self.worth: Floats | None = None
        """(k,) utility that was expected of each member's answer; None where nobody looked"""
        self.why: str | None = None
        """why this member, in a few words"""
        self._question, self._task = question, task
        self._broken: set[int] = set()
        self._steps = self._decide()

    def next(self) -> tuple[int, ...]:
        """The members to be asked now; none once ``member`` is known.

        Raises ``UserError`` where no member can answer.
        """
        return next(self._steps, ())

    def take(self, place: int, found: Answered | Exception) -> None:
        """What a member did, or why it could not answer."""
        if isinstance(found, Answered):
            self.asked[place] = found
            return
        self._broken.add(place)
        self._note(f"{self.chooser.members[place].name} failed", found)

    def price_of(self, place: int) -> float:
        """Reward lost per token of a member, in the range of its policy."""
        low, high = self._policy(place).price_range
        return min(max(self.token_price * self.chooser.members[place].ratio, low), high)

    def watching(self, place: int) -> Watching:
        """The policy that a member is to be decoded under, for one decode."""
        return watching(self.chooser, place)

    def ended(self, place: int, under: Watching, decoded: Decoded, profile: Profile) -> Answered:
        """What is seen of a member that has decoded ``under`` its policy with an exit profile."""
        ending = tokens_of([decoded.stopped], [decoded.thinking_tokens], [decoded.answer_tokens])
        if under.seen is not None:
            seen = zip(under.watched, under.seen.tolist(), strict=True)
            ending |= {name: np.array([value]) for name, value in seen}
        checks = thinking_checks(thinking_in(decoded.text, profile), decoded.answer)
        return Answered(decoded, ending | {name: np.array([v]) for name, v in checks.items()})

    def message(self) -> str | None:
        """What went wrong, in a line; None for nothing."""
        done = None if self.member is None else self.asked[self.member].decoded.message
        return "; ".join(self.failed) or done

    def line(self, request_id: str | None = None) -> LoggedRequest:
        """What a log is told of a choice that is made."""
        assert self.member is not None
        done, by = self.asked[self.member].decoded, self.chooser.members[self.member]
        return LoggedRequest(
            request_id=request_id or uuid.uuid4().hex,
            time=now(),
            policy="full" if by.policy is None else by.policy.digest,
            registry_version=None,
            strategy=chooser_digest(self.chooser),
            token_price=self.token_price,
            audited=False,
            stop=Stop(
                done.reason, done.stopped_at, done.stop_probability,
                done.thinking_tokens, done.probe_tokens, done.answer_tokens,
            ),
            question=self._question,
            answer=done.answer,
            answered_by=by.name,
            models=tuple(
                ModelTokens(
                    self.chooser.members[place].name, one.decoded.thinking_tokens,
                    one.decoded.probe_tokens, one.decoded.answer_tokens,
                    self.chooser.members[place].ratio,
                )
                for place, one in self.asked.items()
            ),
        )  # fmt: skip

    def _decide(self) -> Generator[tuple[int, ...], None, None]:
        way, k = self.way, len(self.chooser.members)
        if way.always is None and way.when != "before":
            yield tuple(range(k if way.when == "after_all" else 1))
        ranked = self._ranked(way)
        for member in ranked:
            self.likely = member
            if member not in self.asked and member not in self._broken:
                yield (member,)
            if member in self.asked:
                self.member = member
                self.why = self._reason(best=member == ranked[0])
                return
        raise UserError("no model of the chooser can answer: " + "; ".join(self.failed))

    def _reason(self, *, best: bool) -> str:
        if not best:
            return "others failed"
        if self.way.always is not None:
            return "always"
        return "the chooser failed" if self.worth is None else "worth most"

    def _policy(self, place: int) -> StopPolicy:
        own = self.chooser.members[place].policy
        return Full() if own is None else own

    def _ranked(self, way: Way) -> list[int]:
        """The members, best first; as they are numbered where the chooser fails."""
        members = range(len(self.chooser.members))
        if way.always is not None:
            return [way.always, *(place for place in members if place != way.always)]
        try:
            worth = self._worth(way)
        except Exception as error:  # whatever it is, somebody must answer
            self._note("the chooser failed", error)
            worth = np.zeros(len(self.chooser.members))
        else:
            self.worth = worth
        return [int(place) for place in np.argsort(-worth, kind="stable")]

    def _worth(self, way: Way) -> Floats:
        chooser, price = self.chooser, self.token_price
        context = np.array([list(context_signals(self._question).values())])
        assert context.shape[1] == len(CONTEXT_SIGNALS)
        columns = known_before(
            context, chooser.record.of(self._task)[:1, chooser.place(price)], price
        )
        for place, one in self.asked.items():
            columns |= named(place, one.ending)
        paid = paid_already(way.when, len(self.chooser.members))
        paid[sorted(self._broken)] = 0
        if way.when == "after_all":
            columns |= agreement(self._answers())
        worth = chooser.worth(columns, np.array([self._task]), price, way.when, paid)
        return np.asarray(worth[:, 0], dtype=np.float64)

    def _answers(self) -> Any:
        """(k, 1) equal numbers for equal answers; those that are missing agree with nobody."""
        codes: dict[object, int] = {}
        found = []
        for place in range(len(self.chooser.members)):
            key: object = ("missing", place)
            if place in self.asked:
                recorded = self.chooser.members[place].recorded
                answer = self.asked[place].decoded.answer
                key = vote_key(answer, str(recorded.get("scorer", "auto")))
            found.append([codes.setdefault(key, len(codes))])
        return np.array(found)

    def _note(self, said: str, error: Exception) -> None:
        self.failed.append(f"{said}: {str(error) or type(error).__name__}")
        _log.warning("%s", self.failed[-1])


class Watching:
    """A policy that keeps what was last seen of a decode, beside what it sees itself."""

    def __init__(
        self, policy: StopPolicy, watched: Sequence[str], recorded: Mapping[str, Any]
    ) -> None:
        self.watched = tuple(watched)
        self.seen: Float32s | None = None
        """(len(watched),) the last observation; None before the first checkpoint"""
        self.recorded = dict(recorded)
        self._policy, self._own = policy, len(policy.features)
        self.features = (*policy.features, *self.watched)
        self.price_range, self.preset = policy.price_range, policy.preset
        self.threshold = policy.threshold

    def stop_probabilities(self, observations: Any, token_price: Any) -> Floats:
        """As the policy's."""
        seen = np.asarray(observations)[:, : self._own]
        return self._policy.stop_probabilities(seen, token_price)

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        """As the policy does."""
        given = np.asarray(observation, dtype=np.float32)
        self.seen = given[self._own :].copy()
        return self._policy(given[: self._own], token_price=token_price)


def watching(chooser: Chooser, place: int) -> Watching:
    """The policy of a member, which keeps what the chooser looks at."""
    head, own = f"{place}.", {*THINKING_CHECKS, "stopped", "thinking", "answer", "agrees"}
    names = {
        feature.removeprefix(head)
        for models in chooser.wrong.values()
        for feature in models[0].features
        if feature.startswith(head)
    }
    member = chooser.members[place]
    policy: StopPolicy = Full() if member.policy is None else member.policy
    return Watching(policy, tuple(sorted(names - own)), member.recorded)


def thinking_in(text: str, profile: Profile) -> str:
    """The thinking at the beginning of what a model wrote after its prompt."""
    ends = [text.find(mark) for mark in (profile.exit_text, profile.end_of_thinking) if mark]
    return text[: min((end for end in ends if end >= 0), default=len(text))]
