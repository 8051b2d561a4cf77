"""A custom logit processor for SGLang: the plan inside its decode loop.

SGLang hands a processor the logits of the requests that asked for it, once a token, and with each
row the request's ``custom_params`` and, under ``__req__``, the request itself. This one keeps a
``Request`` in those parameters, so that it lives exactly as long as SGLang's does. It was tested
against that interface (0.5.23) with stand-ins, not in a running server; ``docs/sglang.md`` says
how to start one.

A server loads it by name, so rlbudget must be installed there; plans and policies are those of the
environment, as for vLLM (``engine_settings``). No fault reaches SGLang, whose scheduler would not
survive it: the request then goes on to its natural end.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rlbudget.decoding.core import SGLANG, Core, Failures
from rlbudget.decoding.decoded import Ending
from rlbudget.errors import UserError
from rlbudget.integrations.engine_rows import EngineRows, Row
from rlbudget.integrations.engine_settings import Settings, settings_of, wish_of

_STATE = "__rlbudget__"
_AHEAD = (
    "SGLang sampled ahead of its processors: start it with --disable-overlap-schedule and without"
    " speculative decoding"
)


@dataclass(slots=True)
class _State:
    """One request between two calls."""

    row: Row
    name: str = ""
    """of its plan"""
    asked: int = 0
    """tokens that were sampled behind this processor"""


@dataclass(slots=True)
class Engine:
    """The plans of all requests of this process, bound at the first of them."""

    settings: Settings | None = None
    """by default those of the environment"""
    cores: dict[str, Core] = field(default_factory=dict)
    rows: dict[str, EngineRows] = field(default_factory=dict)
    broken: bool = False
    failures: Failures = field(default_factory=Failures)


ENGINE = Engine()


class StopProcessor:
    """Give SGLang ``StopProcessor.to_str()`` as a request's ``custom_logit_processor``.

    ``custom_params`` of the request must be an object; ``token_price``, ``effort`` and whatever
    else ``docs/sglang.md`` lists are optional in it. SGLang makes a new processor for every batch,
    so it holds nothing.
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
    """Where the request with these parameters stands; None where no plan is on."""
    state: _State | None = custom_params.get(_STATE)
    return None if state is None or state.row.request is None else state.row.request.ending


@torch.inference_mode()
def _step(engine: Engine, logits: torch.Tensor, params: Sequence[dict[str, Any] | None]) -> None:
    # Nothing is sampled from the logits after a part of a long prompt.
    given = [
        (i, own)
        for i, own in enumerate(params)
        if own and "__req__" in own and not getattr(own["__req__"], "inflight_middle_chunks", 0)
    ]
    if len({id(own) for _, own in given}) < len(given):
        raise UserError("speculative decoding is on: rlbudget needs one row a request")
    if not given or (engine.broken and not engine.cores):
        return
    if not engine.cores:
        _prepare(engine, logits.shape[-1], given[0][1]["__req__"])
    states = [(i, own["__req__"], own.get(_STATE) or _begin(engine, own)) for i, own in given]
    for name, rows in engine.rows.items():
        mine = [(i, req, state) for i, req, state in states if state.name == name]
        rows.take([told for _, req, state in mine for told in _told(engine, req, state)])
        rows.constrain(logits, [(i, state.row) for i, _, state in mine])


def _prepare(engine: Engine, size: int, req: Any) -> None:
    """Bind the plans; without them no request of this process is stopped."""
    engine.broken = True  # until the last line
    settings = engine.settings = engine.settings or settings_of()
    if req.tokenizer is None:
        raise UserError("the server runs without a tokenizer, which rlbudget needs")
    eos = {int(token) for token in getattr(req, "eos_token_ids", None) or ()}
    if req.tokenizer.eos_token_id is not None:
        eos.add(int(req.tokenizer.eos_token_id))
    for name, core in settings.bind(req.tokenizer, SGLANG, size, sorted(eos)).items():
        engine.cores[name] = replace(core, failures=engine.failures)
        engine.rows[name] = EngineRows(engine.cores[name])
    engine.broken = False


def _begin(engine: Engine, params: dict[str, Any]) -> _State:
    """The request's state, kept where the request's own life ends it."""
    state = params[_STATE] = _State(Row(None))
    req, settings = params["__req__"], engine.settings
    try:
        if req.output_ids:
            raise UserError("a request was met in the middle of its decode")
        assert settings is not None
        wish = wish_of(params, settings)
        limits = getattr(req, "sampling_params", None)
        core, prompt = engine.cores[wish.name], getattr(req, "origin_input_ids", None)
        request = wish.request(core, prompt, getattr(limits, "max_new_tokens", None))
        ends = set(getattr(limits, "stop_token_ids", None) or ()) - core.eos
        state.name, state.row = wish.name, Row(request, tuple(ends))
    except UserError as error:
        engine.failures.add(str(error))
    return state


def _told(engine: Engine, req: Any, state: _State) -> list[tuple[Row, int]]:
    """The token that was sampled since the last call."""
    if state.row.request is None:
        return []
    if len(req.output_ids) != state.asked:
        state.row.leave(engine.cores[state.name], _AHEAD)
        return []
    state.asked += 1
    return [(state.row, int(req.output_ids[-1]))] if state.asked > 1 else []
