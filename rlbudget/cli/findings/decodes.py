"""How a live decode ended, and whether the policy was made for what it serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Literal

from rlbudget.cli.findings.finding import odd
from rlbudget.models.profiles import ChosenBy
from rlbudget.policy.controller import Reason


def ended(reason: Reason, thinking_tokens: int, message: str | None = None) -> str:
    """One sentence: what ended the thinking after so many tokens."""
    match reason:
        case "policy":
            return f"Stopped by the policy at token {thinking_tokens}."
        case "natural":
            return f"Ended by itself after {thinking_tokens} tokens of thinking."
        case "max_tokens":
            return f"Cut at the cap of {thinking_tokens} tokens."
        case "policy_failed":
            why = (message or "").removeprefix("the policy failed: ") or "unknown fault"
            return f"The policy failed: {why}. The decode went on without it."
        case "loop":
            return f"Stopped at token {thinking_tokens}: the model repeated itself."
        case "tool_call":
            return f"Left alone after {thinking_tokens} tokens: the model called a tool."
        case "escalate":
            return f"Handed to the large model after {thinking_tokens} tokens of thinking."
        case "off":
            return "There was no thinking to end."


_COMPARED = {
    "model": "its decisions mean nothing there until measured: record this model and evaluate or"
    " train on that",
    "profile": "decode with --profile {made}",
    "stride": "train on traces of this one",
    "temperature": "decode with --temperature {made}",
    "scorer": "score the traces by one of them and train again",
}
"""setting of a recording -> what to do where a policy was trained at another"""
_WORDS = {
    "model": "the policy was trained on traces of {made}, and now serves {now}",
    "scorer": "the policy was trained on answers scored by {made}, those of this task are scored"
    " by {now}",
}


def of_serving(trained: Mapping[str, Any], serving: Mapping[str, Any]) -> Iterator[str]:
    """What a policy was trained on beside what it now serves, as far as both are known."""
    usual = "the policy was trained at {name} {made}, and now serves {name} {now}"
    for name, do in _COMPARED.items():
        made, now = trained.get(name), serving.get(name)
        if made is None or now is None or made == now:
            continue
        # A folder and a hub name of one last part are taken for one model.
        if name == "model" and PurePath(made).name == PurePath(now).name:
            continue
        what = _WORDS.get(name, usual)
        yield odd(what.format(name=name, made=made, now=now), do=do.format(made=made))


def of_profile(model: str, profile: str, chosen_by: ChosenBy | Literal["policy"]) -> Iterator[str]:
    """The profile a model is asked with, and how it was chosen."""
    how = {
        "name": "as named",
        "model": "the model's own",
        "policy": "as in the policy's traces",
        "tokenizer": "chosen because its tokenizer knows </think>",
        "default": "chosen because its tokenizer knows no </think>",
    }[chosen_by]
    yield f"Model {model}, profile {profile} ({how})"
    if chosen_by in ("tokenizer", "default"):
        yield odd(
            f"the profile {profile} was chosen by default",
            do=f"pass --profile {profile} if it is right; it decides how the model is asked, by"
            " which text its thinking ends and how an exit is forced",
        )
