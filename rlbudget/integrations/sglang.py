"""A custom logit processor for SGLang: the stop policy inside its decode loop.

SGLang hands a processor the logits of the requests that asked for it, once a token, and with each
row the request's ``custom_params`` and, under ``__req__``, the request itself. This one keeps a
``Request`` in those parameters, so that it lives exactly as long as SGLang's does. It was tested
against that interface (0.5.23) with stand-ins, not in a running server; ``docs/sglang.md`` says
how to start one.

A server loads it by name, so rlbudget must be installed there; the policy is the folder in the
environment variable ``RLBUDGET_POLICY``. No fault reaches SGLang, whose scheduler would not
survive it: the request then goes on to its natural end.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rlbudget.decoding.core import SGLANG, Core, Failures, bind
from rlbudget.decoding.request import Ending, Request
from rlbudget.errors import UserError
from rlbudget.models.sampling import token_signals
from rlbudget.policy.folder import load_policy
from rlbudget.policy.stop_policy import StopPolicy

POLICY = "RLBUDGET_POLICY"
_STATE = "__rlbudget__"
_FORCED_LOGIT = 0.0


@dataclass(slots=True)
class _State:
    """One request between two calls."""

    request: Request | None
    """None where it is served without the policy"""
    row: torch.Tensor | None = None
    """(vocabulary,) float32: the logits from which the next token is being sampled"""
    asked: int = 0
    """tokens that were sampled behind this processor"""
    forced: int | None = None
    """the token that was forced last, until it is seen"""


@dataclass(slots=True)
class Engine:
    """The plan of all requests of this process, made at the first of them."""

    policy: StopPolicy | None = None
    """by default the one that the environment names"""
    plan: Core | None = None
    end_ids: torch.Tensor | None = None
    broken: bool = False
    failures: Failures = field(default_factory=Failures)


ENGINE = Engine()


class StopProcessor:
    """Give SGLang ``StopProcessor.to_str()`` as a request's ``custom_logit_processor``.

    ``custom_params`` of the request must be an object: ``token_price`` (reward per token) in it
    is optional. SGLang makes a new processor for every batch, so it holds nothing.
    """

    def __call__(
        self, logits: torch.Tensor, custom_param_list: Sequence[dict[str, Any] | None] | None = None
    ) -> torch.Tensor:
        """``logits`` (n, vocabulary), one row a request, are changed in place and returned."""
        try:
            _step(ENGINE, logits, custom_param_list or ())
        except Exception as error:  # SGLang's scheduler would die of it
            ENGINE.failures.add(str(error) or type(error).__name__)
        return logits

    @classmethod
    def to_str(cls) -> str:
        """What SGLang loads: the name of this class, no code."""
        return json.dumps({"callable": pickle.dumps(cls).hex()})


def outcome(custom_params: Mapping[str, Any]) -> Ending | None:
    """Where the request with these parameters stands; None where no policy is on."""
    state: _State | None = custom_params.get(_STATE)
    return None if state is None or state.request is None else state.request.ending


@torch.inference_mode()
def _step(engine: Engine, logits: torch.Tensor, params: Sequence[dict[str, Any] | None]) -> None:
    rows = [
        (row, given)
        for row, given in enumerate(params)
        if given and "__req__" in given and not _unfinished_prompt(given["__req__"])
    ]
    if not rows:
        return
    if len({id(given) for _, given in rows}) < len(rows):
        raise UserError("speculative decoding is on: rlbudget needs one row a request")
    if engine.plan is None:
        if engine.broken:
            return
        _prepare(engine, logits.shape[-1], rows[0][1]["__req__"])
    states = [_state(engine, given) for _, given in rows]
    _tell(engine, [(s, g["__req__"]) for s, (_, g) in zip(states, rows, strict=True)])
    likeliest = logits[[row for row, _ in rows]].argmax(dim=-1).tolist()
    for (row, _), state, best in zip(rows, states, likeliest, strict=True):
        _shape(engine, logits, row, state, best)


def _unfinished_prompt(req: Any) -> bool:
    """Whether the logits follow a part of a long prompt: nothing is sampled from them."""
    return bool(getattr(req, "inflight_middle_chunks", 0))


def _prepare(engine: Engine, size: int, req: Any) -> None:
    """Make the plan; without one no request of this process is stopped."""
    engine.broken = True  # until the last line
    folder = os.environ.get(POLICY)
    policy = engine.policy
    if policy is None:
        if not folder:
            raise UserError(f"set {POLICY} to a policy folder before the server starts")
        policy = load_policy(folder)
    if req.tokenizer is None:
        raise UserError("the server runs without a tokenizer, which rlbudget needs")
    eos = {int(token) for token in getattr(req, "eos_token_ids", None) or ()}
    if req.tokenizer.eos_token_id is not None:
        eos.add(int(req.tokenizer.eos_token_id))
    plan = bind(policy, req.tokenizer, SGLANG, vocabulary_size=size, eos_ids=sorted(eos))
    engine.end_ids = torch.from_numpy(plan.vocabulary.end_first_ids)
    engine.plan = replace(plan, failures=engine.failures)
    engine.broken = False


def _state(engine: Engine, params: dict[str, Any]) -> _State:
    """The request's state, kept where the request's own life ends it."""
    known: _State | None = params.get(_STATE)
    if known is not None:
        return known
    assert engine.plan is not None
    state = params[_STATE] = _State(None)
    if params["__req__"].output_ids:
        engine.failures.add("a request was met in the middle of its decode")
        return state
    try:
        limits = getattr(params["__req__"], "sampling_params", None)
        state.request = Request(
            engine.plan,
            token_price=params.get("token_price"),
            max_new_tokens=getattr(limits, "max_new_tokens", None),
        )
    except (UserError, TypeError) as error:
        engine.failures.add(str(error))
    return state


def _tell(engine: Engine, pairs: Sequence[tuple[_State, Any]]) -> None:
    """Tell the requests of the tokens that were sampled since the last call."""
    fresh: list[tuple[_State, int]] = []
    for state, req in pairs:
        if state.request is None:
            continue
        if len(req.output_ids) != state.asked:
            _off(engine, state)
            continue
        state.asked += 1
        if state.asked == 1:
            continue
        token = int(req.output_ids[-1])
        if state.forced not in (None, token):
            _off(engine, state)
            continue
        state.forced = None
        fresh.append((state, token))
    thinking = [
        (state, token, state.row)
        for state, token in fresh
        if state.request is not None and state.request.thinking and state.row is not None
    ]
    measured: list[Any] = []
    if thinking:
        assert engine.end_ids is not None
        stacked = torch.stack([row for _, _, row in thinking])
        tokens = torch.tensor([token for _, token, _ in thinking], device=stacked.device)
        values = token_signals(stacked, tokens, engine.end_ids.to(stacked.device))
        measured = list(values.double().cpu().numpy())
    signals = {id(state): own for (state, _, _), own in zip(thinking, measured, strict=True)}
    for state, token in fresh:
        if state.request is not None:
            state.request.push(token, signals.get(id(state)))
        state.row = None


def _shape(engine: Engine, logits: torch.Tensor, row: int, state: _State, best: int) -> None:
    """Force the next token of a row, or keep it from ending while it thinks."""
    request = state.request
    if request is None:
        return
    forced = request.forced(best)
    if forced is not None:
        logits[row] = -torch.inf
        logits[row, forced] = _FORCED_LOGIT
        state.forced = forced
    elif request.thinking:
        assert engine.plan is not None
        state.row = logits[row].float().clone()
        ends = torch.from_numpy(engine.plan.vocabulary.eos_ids).to(logits.device)
        logits[row, ends] = -torch.inf


def _off(engine: Engine, state: _State) -> None:
    state.request = state.row = None
    engine.failures.add(
        "SGLang sampled ahead of its processors: start it with --disable-overlap-schedule and"
        " without speculative decoding"
    )
