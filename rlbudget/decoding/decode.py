"""Decoding live under a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlbudget.decoding.core import LOCAL, Core, HandOver, bind
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.request import Request, State
from rlbudget.errors import UserError
from rlbudget.policy.dial import Dial
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.stop_policy import Full, StopPolicy
from rlbudget.strategies.plan import Plan

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel


def decode(
    model: TransformersModel,
    question: str,
    policy: Plan | StopPolicy,
    *,
    token_price: float | None = None,
    dial: Dial | None = None,
    task: str = "",
    metadata: Mapping[str, Any] | None = None,
    seed: int = 0,
    temperature: float | None = None,
    max_tokens: int | None = None,
    stride: int | None = None,
    probe_tokens: int | None = None,
    request_id: str | None = None,
    second: Callable[[HandOver], Decoded] | None = None,
    options: Sequence[str] | None = None,
) -> Decoded:
    """Answer ``question``, thinking as long as a plan (or a bare policy) finds it worth the price.

    ``token_price`` is reward lost per token and must lie in the policy's range; ``dial`` says it
    in other ways, and left out it is the plan's. ``task`` and ``metadata`` are the request's, for
    policies and rules that look at them. ``max_tokens`` caps the thinking. ``stride``,
    ``max_tokens``, ``temperature`` and ``probe_tokens`` left out are those of the traces the policy
    was trained on, else the profile's. With the
    ``row_seed`` of a recorded trace and its settings the decode is that trace's, up to the stop.
    ``second`` answers for a cascade or a correction by a second model (``second_model``).
    ``options`` are the answers to choose from, for a policy that looks at how likely each is; an
    empty list says that the question has none.

    A policy that raises or says NaN does not cost the answer: the decode goes on to its natural
    end, and ``reason`` and ``message`` say so. Raises ``UserError`` for a price outside the range,
    settings out of range, a plan that needs a second model where there is none, and a policy that
    looks at options where they are left out.
    """
    core = core_of(model, policy, stride=stride, probe_tokens=probe_tokens,
                   max_tokens=max_tokens, second=second, options=options is not None)  # fmt: skip
    return decode_with(core, model, question, token_price=token_price, dial=dial, task=task,
                       metadata=metadata, seed=seed, temperature=temperature,
                       request_id=request_id, options=options or ())  # fmt: skip


def core_of(
    model: TransformersModel,
    policy: Plan | StopPolicy,
    *,
    stride: int | None = None,
    probe_tokens: int | None = None,
    max_tokens: int | None = None,
    second: Callable[[HandOver], Decoded] | None = None,
    options: bool = False,
) -> Core:
    """A plan bound to a local model, for many calls of ``decode_with``; raises as ``decode``.

    ``options`` says whether every call tells the answer options of its question.
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens must be at least 1, not {max_tokens}")
    return bind(
        policy,
        model.tokenizer,
        LOCAL,
        vocabulary=model.vocabulary,
        eos_ids=model.vocabulary.eos_ids.tolist(),
        profile=model.profile,
        stride=stride,
        probe_tokens=probe_tokens,
        max_thinking_tokens=max_tokens,
        model=model.name,
        second=second,
        options=options,
    )


def decode_with(
    core: Core,
    model: TransformersModel,
    question: str,
    *,
    token_price: float | None = None,
    dial: Dial | None = None,
    task: str = "",
    metadata: Mapping[str, Any] | None = None,
    seed: int = 0,
    temperature: float | None = None,
    request_id: str | None = None,
    options: Sequence[str] = (),
) -> Decoded:
    """``decode`` under a plan that is bound already."""
    if temperature is None:
        temperature = float(core.plan.recorded.get("temperature", model.profile.temperature))
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, not {temperature}")
    request = Request(
        core, question=question, task=task, metadata=metadata, dial=dial, token_price=token_price,
        request_id=request_id, settings={"temperature": temperature, "row_seed": seed},
        options=model.option_ids(options),
    )  # fmt: skip
    run_request(core, model, request, question, seed=seed, temperature=temperature)
    return request.decoded()


def run_request(
    core: Core,
    model: TransformersModel,
    request: Request,
    question: str,
    *,
    seed: int = 0,
    temperature: float,
    told: Callable[[State, int, bool], None] | None = None,
) -> None:
    """Decode a request that is made already to its end, as ``decode_with`` does.

    ``told`` hears of every token: where the request stood before it, the token, and whether it
    was forced; what it raises ends the decode.
    """
    from rlbudget.decoding.local import run  # needs torch

    run(model, core, request, question, seed=seed, temperature=temperature, told=told)


def second_model(
    model: TransformersModel, plan: Plan, *, seed: int = 0
) -> Callable[[HandOver], Decoded]:
    """What answers for a plan's cascade or correction: ``model``, in full or under the policy that
    the plan has for it, at the nearest price that it knows, as it was recorded."""
    own = plan.large_policy or plan.second_policy
    asked: StopPolicy = Full() if own is None else own
    known = ("temperature", "max_tokens", "stride", "probe_tokens")
    settings = {k: v for k, v in plan.recorded_second.items() if k in known}

    def answer(wish: HandOver) -> Decoded:
        return decode(
            model, wish.question, asked,
            token_price=nearest_price(wish.token_price, asked.price_range), seed=seed, **settings,
        )  # fmt: skip

    return answer
