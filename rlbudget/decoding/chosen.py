"""Decoding live with several models, one of whose answers a chooser uses."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rlbudget.arrays import Float32s, Floats
from rlbudget.decoding.decode import decode
from rlbudget.decoding.decoded import Decoded
from rlbudget.errors import UserError
from rlbudget.policy.network import Decision
from rlbudget.policy.stop_policy import Full, StopPolicy
from rlbudget.signals.questions import CONTEXT_SIGNALS, context_signals
from rlbudget.strategies.chooser.chooser import Chooser, Way, paid_already
from rlbudget.strategies.chooser.folder import chooser_digest
from rlbudget.strategies.chooser.rows import Columns, agreement, known_before, named, tokens_of
from rlbudget.strategies.correction.recheck import THINKING_CHECKS, thinking_checks
from rlbudget.strategies.feedback.log import Log, LoggedRequest, ModelTokens, Stop, now
from rlbudget.tasks.scorers import vote_key

if TYPE_CHECKING:
    from rlbudget.models.profiles import Profile
    from rlbudget.models.transformers_model import TransformersModel

_log = logging.getLogger("rlbudget")


@dataclass(frozen=True, slots=True)
class Chosen:
    """An answer, whose it is, and what all models that were asked spent."""

    answer: str
    text: str
    """what the chosen member wrote"""
    member: int
    """whose answer it is"""
    asked: Mapping[int, Decoded]
    """what each member that was asked did, in the order in which they were"""
    ratios: tuple[float, ...]
    """what a token of each member costs, in tokens of the dearest"""
    message: str | None
    """what went wrong"""

    @property
    def total_tokens(self) -> float:
        """All tokens that were paid for, as those of the dearest member; the prompts' left out."""
        return float(sum(self.ratios[one] * done.total_tokens for one, done in self.asked.items()))


def decode_chosen(
    models: Sequence[TransformersModel],
    question: str,
    chooser: Chooser,
    *,
    token_price: float,
    task: str = "",
    seed: int = 0,
    log: Log | None = None,
    request_id: str | None = None,
) -> Chosen:
    """Answer ``question`` by the member of ``chooser`` that is worth most.

    ``models`` are those of its members, in their order; each decodes under its policy, with the
    settings of its recording. ``token_price`` is reward lost per token of the dearest member;
    ``task`` names the request's task, on which the members' record is known. ``log`` gets a line:
    the chosen member's policy and end, and what each model that was asked spent. A member that
    fails is left out, a chooser that fails takes the first one; ``message`` says so. Raises
    ``UserError`` for another number of models, for a price that is not above 0 and where no member
    can answer.
    """
    if len(models) != len(chooser.members):
        raise UserError(
            f"the chooser is of {len(chooser.members)} models"
            f" ({', '.join(member.name for member in chooser.members)}), not {len(models)}"
        )
    try:
        way = chooser.ways[chooser.place(token_price)]
    except ValueError as error:
        raise UserError(str(error)) from None
    request = _Request(models, question, chooser, token_price, task, seed)
    member = request.decide(way)
    done = request.asked[member].decoded
    chosen = Chosen(
        done.answer,
        done.text,
        member,
        {place: one.decoded for place, one in request.asked.items()},
        tuple(one.ratio for one in chooser.members),
        "; ".join(request.failed) or done.message,
    )
    if log is not None:
        log.decision(_line(chosen, chooser, question, token_price, request_id))
    return chosen


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a member did."""

    decoded: Decoded
    ending: Columns
    """how it ended, (1,) each"""


@dataclass(slots=True)
class _Request:
    models: Sequence[TransformersModel]
    question: str
    chooser: Chooser
    token_price: float
    task: str
    seed: int
    asked: dict[int, _Asked] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)

    def decide(self, way: Way) -> int:
        """The member whose answer is used, after asking whom it takes."""
        if way.always is None and way.when != "before":
            for place in range(len(self.models) if way.when == "after_all" else 1):
                self._ask(place)
        for member in self._ranked(way):
            self._ask(member)
            if member in self.asked:
                return member
        raise UserError("no model of the chooser can answer: " + "; ".join(self.failed))

    def _ask(self, place: int) -> None:
        if place in self.asked or place in self.broken:
            return
        try:
            self.asked[place] = self._decoded(place)
        except Exception as error:  # whatever it is, another member can answer
            self.broken.add(place)
            self._note(f"{self.chooser.members[place].name} failed", error)

    def _ranked(self, way: Way) -> list[int]:
        """The members, best first; as they are numbered where the chooser fails."""
        members = range(len(self.models))
        if way.always is not None:
            return [way.always, *(place for place in members if place != way.always)]
        try:
            worth = self._worth(way)
        except Exception as error:  # whatever it is, somebody must answer
            self._note("the chooser failed", error)
            worth = np.zeros(len(self.models))
        return [int(place) for place in np.argsort(-worth, kind="stable")]

    def _worth(self, way: Way) -> Floats:
        chooser, price = self.chooser, self.token_price
        context = np.array([list(context_signals(self.question).values())])
        assert context.shape[1] == len(CONTEXT_SIGNALS)
        columns = known_before(
            context, chooser.record.of(self.task)[:1, chooser.place(price)], price
        )
        for place, one in self.asked.items():
            columns |= named(place, one.ending)
        paid = paid_already(way.when, len(self.models))
        paid[sorted(self.broken)] = 0
        if way.when == "after_all":
            columns |= agreement(self._answers())
        worth = chooser.worth(columns, np.array([self.task]), price, way.when, paid)
        return np.asarray(worth[:, 0], dtype=np.float64)

    def _answers(self) -> Any:
        """(k, 1) equal numbers for equal answers; those that are missing agree with nobody."""
        codes: dict[object, int] = {}
        found = []
        for place in range(len(self.models)):
            key: object = ("missing", place)
            if place in self.asked:
                recorded = self.chooser.members[place].recorded
                answer = self.asked[place].decoded.answer
                key = vote_key(answer, str(recorded.get("scorer", "auto")))
            found.append([codes.setdefault(key, len(codes))])
        return np.array(found)

    def _decoded(self, place: int) -> _Asked:
        member, model = self.chooser.members[place], self.models[place]
        policy: StopPolicy = Full() if member.policy is None else member.policy
        low, high = policy.price_range
        watching = Watching(policy, self._watched(place), member.recorded)
        decoded = decode(
            model, self.question, watching, task=self.task, seed=self.seed,
            token_price=min(max(self.token_price * member.ratio, low), high),
        )  # fmt: skip
        ending = tokens_of([decoded.stopped], [decoded.thinking_tokens], [decoded.answer_tokens])
        if watching.seen is not None:
            seen = zip(watching.watched, watching.seen.tolist(), strict=True)
            ending |= {name: np.array([value]) for name, value in seen}
        checks = thinking_checks(thinking_in(decoded.text, model.profile), decoded.answer)
        return _Asked(decoded, ending | {name: np.array([v]) for name, v in checks.items()})

    def _watched(self, place: int) -> tuple[str, ...]:
        """The observation that the chooser looks at of a member."""
        head, own = f"{place}.", {*THINKING_CHECKS, "stopped", "thinking", "answer", "agrees"}
        names = {
            feature.removeprefix(head)
            for models in self.chooser.wrong.values()
            for feature in models[0].features
            if feature.startswith(head)
        }
        return tuple(sorted(names - own))

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


def thinking_in(text: str, profile: Profile) -> str:
    """The thinking at the beginning of what a model wrote after its prompt."""
    ends = [text.find(mark) for mark in (profile.exit_text, profile.end_of_thinking) if mark]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _line(
    chosen: Chosen, chooser: Chooser, question: str, token_price: float, request_id: str | None
) -> LoggedRequest:
    done, by = chosen.asked[chosen.member], chooser.members[chosen.member]
    return LoggedRequest(
        request_id=request_id or uuid.uuid4().hex,
        time=now(),
        policy="full" if by.policy is None else by.policy.digest,
        registry_version=None,
        strategy=chooser_digest(chooser),
        token_price=token_price,
        audited=False,
        stop=Stop(
            done.reason, done.stopped_at, done.stop_probability,
            done.thinking_tokens, done.probe_tokens, done.answer_tokens,
        ),
        question=question,
        answer=chosen.answer,
        answered_by=by.name,
        models=tuple(
            ModelTokens(
                chooser.members[place].name, one.thinking_tokens, one.probe_tokens,
                one.answer_tokens, chosen.ratios[place],
            )
            for place, one in chosen.asked.items()
        ),
    )  # fmt: skip
