"""The local shell: a model of transformers decodes under requests, a token each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from rlbudget.decoding.aside import Choose, Chosen, Fork, Wish
from rlbudget.decoding.core import Core, HandOver
from rlbudget.decoding.request import Request, State
from rlbudget.models.answers import continue_greedily, read_options
from rlbudget.models.decode_batch import NOT_NUMBERS
from rlbudget.models.reading import Continuation
from rlbudget.models.sampling import Uniforms, sample, token_signals
from rlbudget.models.sequences import Unfinished
from rlbudget.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel

Told: TypeAlias = Callable[[State, int, bool], None]


@torch.inference_mode()
def run(
    model: TransformersModel,
    core: Core,
    request: Request,
    question: str,
    *,
    seed: int,
    temperature: float,
    told: Told | None = None,
) -> None:
    """Decode one request to its end, as the recorder would have up to the stop.

    Thoughts are sampled at ``temperature``, the row and position naming each random number;
    answers are greedy. ``told`` hears of every token: where the request stood before it, the
    token, and whether it was forced; what it raises ends the decode.
    """
    sequences = model.read([question], core.max_thinking)
    uniforms = Uniforms([seed])
    end_ids = torch.from_numpy(core.vocabulary.end_first_ids).to(sequences.logits.device)
    # No engine caps this decode: a plan's small reserve must not cut an answer.
    answer = len(core.vocabulary.exit_ids) + core.profile.max_answer_tokens
    most = core.max_thinking + max(core.reserve, answer)
    _decode(sequences, core, request, uniforms, end_ids, most, temperature, told)
    request.close()


def _decode(
    sequences: Unfinished, core: Core, request: Request, uniforms: Uniforms, end_ids: torch.Tensor,
    most: int, temperature: float, told: Told | None,
) -> None:  # fmt: skip
    while not request.done:
        if len(request.ids) > most:  # left alone, and it does not end
            request.finish()
            break
        logits, signals = sequences.logits, None
        thinking = request.thinking
        if temperature == 0 or not thinking:
            chosen = logits.argmax(dim=-1)
        else:
            at = torch.from_numpy(uniforms.at(np.array([len(request.ids)]))).to(logits.device)
            chosen = sample(logits, temperature, at)
        token = int(chosen)
        if thinking:
            signals = token_signals(logits, chosen, end_ids)[0].double().numpy(force=True)
            if np.isnan(signals[0]):
                request.problem = NOT_NUMBERS
            if token in core.eos:
                request.gave_up()
        forced = request.forced()
        if forced is not None:
            token = forced
        before = request.state
        wish = request.push(token, signals)
        if told is not None:
            told(before, token, forced is not None)
        if request.done:
            break
        sequences.feed(torch.tensor([[token]], device=logits.device))
        while wish is not None:
            wish = settle(core, request, wish, sequences)


def settle(core: Core, request: Request, wish: Wish, sequences: Unfinished) -> Wish | None:
    """Do what a request of the only row wants done aside; its next wish."""
    if isinstance(wish, HandOver):
        return request.handed_over(core.hand_over(wish))
    found: Continuation | Chosen
    try:
        with sequences.fork() as ahead:
            if isinstance(wish, Choose):
                found = chosen(ahead, wish, core.vocabulary)
            else:
                found = forked(ahead, wish, np.ones(len(ahead), dtype=bool), core.vocabulary)[0]
    except Exception as error:  # whatever it is, the decode goes on without it
        return request.forked(error)
    return request.forked(found)


def chosen(ahead: Unfinished, wish: Choose, vocabulary: Vocabulary) -> Chosen:
    """Read the options of the only row of sequences that may run ahead."""
    ahead.feed(torch.tensor([wish.cue], device=ahead.logits.device))
    read = read_options(ahead, [wish.options], vocabulary)[0]
    return Chosen(read.entropy, read.tokens)


def forked(
    ahead: Unfinished, wish: Fork, wanted: np.ndarray[tuple[int], np.dtype[np.bool_]],
    vocabulary: Vocabulary,
) -> dict[int, Continuation]:  # fmt: skip
    """Continue the wanted rows (n,) of sequences that may run ahead."""
    return continue_greedily(
        ahead, wish.cue, wanted, cap=wish.cap, vocabulary=vocabulary, stops=wish.stops
    )
