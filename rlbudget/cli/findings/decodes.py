"""How a live decode ended, and whether the policy was made for what it serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Literal

from rlbudget.cli.findings.finding import Finding, fact, odd
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


_COMPARED = {
    "profile": "--profile",
    "stride": None,
    "temperature": "--temperature",
}
"""setting of a recording -> the option of ``decode`` that sets it"""


def of_serving(trained: Mapping[str, Any], serving: Mapping[str, Any]) -> Iterator[Finding]:
    """What a policy was trained on beside what it now serves: model, profile, stride, scorer and
    temperature, as far as both are known."""  # fmt: skip
    made, now = trained.get("model"), serving.get("model")
    if made is not None and now is not None and _name(made) != _name(now):
        yield odd(
            f"the policy was trained on traces of {made}, and now serves {now}",
            do="its decisions mean nothing there until measured: record this model and evaluate"
            " or train on that",
        )
    for name, option in _COMPARED.items():
        made, now = trained.get(name), serving.get(name)
        if made is None or now is None or made == now:
            continue
        yield odd(
            f"the policy was trained at {name} {made}, and now serves {name} {now}",
            do=f"decode with {option} {made}" if option else "train on traces of this one",
        )
    made, now = trained.get("scorer"), serving.get("scorer")
    if made is not None and now is not None and made != now:
        yield odd(
            f"the policy was trained on answers scored by {made}, those of this task are scored"
            f" by {now}",
            do="score the traces by one of them and train again",
        )


def _name(model: object) -> str:
    """A folder and a hub name of one last part are taken for one model."""
    return PurePath(str(model)).name


def of_profile(model: str, profile: str, chosen_by: ChosenBy | Literal["policy"]) -> list[Finding]:
    """The profile a model is asked with, and how it was chosen."""
    how = {
        "name": "as named",
        "model": "the model's own",
        "policy": "as in the policy's traces",
        "tokenizer": "chosen because its tokenizer knows </think>",
        "default": "chosen because its tokenizer knows no </think>",
    }[chosen_by]
    found = [fact(f"Model {model}, profile {profile} ({how})")]
    if chosen_by in ("tokenizer", "default"):
        found.append(
            odd(
                f"the profile {profile} was chosen by default",
                do=f"pass --profile {profile} if it is right; it decides how the model is asked, by"
                " which text its thinking ends and how an exit is forced",
            )
        )
    return found
