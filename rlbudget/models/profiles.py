"""Profiles: how a family of models is asked, told to stop thinking, and read.

A profile is text, not code for one model: the recorder names it in every trace, because the
way an answer is forced changes the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rlbudget.errors import UserError
from rlbudget.models.chat import chat_ids, has_template, thinking_ids
from rlbudget.models.spelling import literal_ids as literal_ids
from rlbudget.models.spelling import trusted_ids as trusted_ids

Prompt = Callable[[str, Any], list[int]]
"""(question, tokenizer) -> token ids, up to and including the start of the thinking."""


ChosenBy = Literal["name", "model", "tokenizer", "default"]
"""How a model's profile was chosen: the caller named it; it is the model's own (the two that come
with rlbudget); the tokenizer knows ``</think>``; nothing else was left."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a backend needs to know beyond the weights."""

    name: str
    prompt: Prompt
    start_of_thinking: str
    """the text that opens the thinking; empty where all that comes before the end is thinking"""
    end_of_thinking: str
    """the text by which the model itself ends its thinking: one special token or plain text"""
    exit_text: str
    """the text that is forced at an exit; the answer follows it"""
    probe_cue: str
    """the text before a trial answer; equal to ``exit_text`` where a probe is the beginning of
    the exit's answer"""
    temperature: float
    """default sampling temperature of the thinking"""
    stride: int
    """default tokens between checkpoints"""
    max_tokens: int
    """default cap on thinking tokens"""
    max_answer_tokens: int
    """cap on the tokens of an answer after the end of the thinking"""
    answer_stop: tuple[str, ...] = ()
    """texts that end an answer, beside the model's end-of-sequence tokens"""
    probe_stop: tuple[str, ...] = ()
    """texts that end a trial answer"""
    answer_lead: str = ""
    """what the model writes between the cue of a trial answer and the answer itself"""
    strip: str = ""
    """characters cut from both sides of an answer, beside white space"""
    asks: str | None = None
    """what stands after the question in a user's turn of the model's own chat template; None where
    the prompt is the profile's own whatever the model"""


def _embedded_prompt(question: str, tokenizer: Any) -> list[int]:
    return [
        *trusted_ids(tokenizer, "<bos>"),
        *literal_ids(tokenizer, question + "\n"),
        *trusted_ids(tokenizer, "<think>"),
    ]


def _smollm2_prompt(question: str, tokenizer: Any) -> list[int]:
    return [
        *trusted_ids(tokenizer, "<|im_start|>user\n"),
        *literal_ids(tokenizer, question),
        *trusted_ids(tokenizer, "<|im_end|>\n<|im_start|>assistant\n<think>"),
    ]


def _begin(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def _think_prompt(question: str, tokenizer: Any) -> list[int]:
    if has_template(tokenizer):
        return thinking_ids(tokenizer, question)
    ids = [*_begin(tokenizer), *literal_ids(tokenizer, question + "\n")]
    return ids + trusted_ids(tokenizer, "<think>\n")


_STEP_BY_STEP = "\nThink step by step, then finish with one line: The answer is ..."


def _plain_prompt(question: str, tokenizer: Any) -> list[int]:
    if has_template(tokenizer):
        return chat_ids(tokenizer, question, after=_STEP_BY_STEP)
    text = f"Question: {question}\nReasoning, step by step, up to the line 'The answer is':\n"
    return [*_begin(tokenizer), *literal_ids(tokenizer, text)]


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="embedded",
            prompt=_embedded_prompt,
            start_of_thinking="<think>",
            end_of_thinking="</think>",
            exit_text="</think>",
            probe_cue="</think>",
            temperature=1.0,
            stride=8,
            max_tokens=400,
            max_answer_tokens=32,
        ),
        Profile(
            name="smollm2",
            prompt=_smollm2_prompt,
            start_of_thinking="<think>",
            end_of_thinking="</think>",
            exit_text="</think>",
            probe_cue="</think>",
            answer_lead=" ",
            temperature=0.7,
            stride=16,
            max_tokens=448,
            max_answer_tokens=16,
        ),
        Profile(
            name="think",
            prompt=_think_prompt,
            start_of_thinking="<think>",
            end_of_thinking="</think>",
            exit_text="\n</think>\n\n",
            probe_cue="\n</think>\n\nThe final answer is \\boxed{",
            probe_stop=("}",),
            asks="",
            temperature=0.6,
            stride=64,
            max_tokens=4096,
            max_answer_tokens=512,
        ),
        Profile(
            name="plain",
            prompt=_plain_prompt,
            start_of_thinking="",
            end_of_thinking="The answer is",
            exit_text="\nThe answer is",
            answer_stop=("\n",),
            probe_cue="\nThe answer is",
            probe_stop=("\n",),
            answer_lead=" ",
            strip=".:*",
            asks=_STEP_BY_STEP,
            temperature=0.7,
            stride=16,
            max_tokens=512,
            max_answer_tokens=48,
        ),
    )
}


def find_profile(name: str) -> Profile:
    """The profile of this name; ``UserError`` listing the names there are."""
    if name not in PROFILES:
        raise UserError(f"no profile {name!r}; there are: {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def default_profile(tokenizer: Any) -> tuple[Profile, ChosenBy]:
    """``think`` where the tokenizer knows ``</think>``, else ``plain``; and why."""
    known = tokenizer.convert_tokens_to_ids("</think>")
    if known is not None and known != tokenizer.unk_token_id:
        think = find_profile("think")
        try:
            think.prompt("", tokenizer)
        except UserError:
            pass  # its template never lets it think
        else:
            return think, "tokenizer"
    return find_profile("plain"), "default"
