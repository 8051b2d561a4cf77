"""Decoding live with several models, one of whose answers a chooser uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlbudget.decoding.choice import Answered, Choice, check_members
from rlbudget.decoding.decode import decode
from rlbudget.decoding.decoded import Decoded
from rlbudget.strategies.chooser.chooser import Chooser
from rlbudget.strategies.feedback.log import Log

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel


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
    check_members(chooser, len(models))
    choice = Choice(chooser, question, token_price=token_price, task=task)
    while places := choice.next():
        for place in places:
            choice.take(place, _asked(choice, place, models[place], question, task, seed))
    assert choice.member is not None
    done = choice.asked[choice.member].decoded
    if log is not None:
        log.decision(choice.line(request_id))
    return Chosen(
        done.answer,
        done.text,
        choice.member,
        {place: one.decoded for place, one in choice.asked.items()},
        tuple(one.ratio for one in chooser.members),
        choice.message(),
    )


def _asked(
    choice: Choice, place: int, model: TransformersModel, question: str, task: str, seed: int
) -> Answered | Exception:
    """What a member does; its fault is an answer too, for another one can answer."""
    try:
        under = choice.watching(place)
        decoded = decode(
            model, question, under, task=task, seed=seed, token_price=choice.price_of(place)
        )
        return choice.ended(place, under, decoded, model.profile)
    except Exception as error:  # whatever it is, another member can answer
        return error
