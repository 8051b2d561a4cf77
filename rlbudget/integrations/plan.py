"""What all requests of an engine share, checked before the first of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.profiles import Profile, find_profile, trusted_ids
from rlbudget.models.reading import read_answer
from rlbudget.models.vocabulary import Vocabulary, build_vocabulary
from rlbudget.policy.controller import Controller
from rlbudget.policy.observation import PROBE_SIGNALS
from rlbudget.policy.prices import middle_price
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.looks import LOOK_SIGNALS
from rlbudget.signals.questions import CONTEXT_SIGNALS
from rlbudget.tasks.scorers import extracted

_log = logging.getLogger("rlbudget")


@dataclass(slots=True)
class Failures:
    """Requests whose policy broke down: all counted, the first one logged."""

    count: int = 0

    def add(self, message: str) -> None:
        """Count one."""
        self.count += 1
        if self.count == 1:
            _log.warning(
                "a stop policy broke down; the decode goes on to its natural end without it (said"
                " once, later ones are only counted): %s",
                message,
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """Policy, tokens and limits."""

    policy: StopPolicy
    vocabulary: Vocabulary
    profile: Profile
    token_price: float
    """reward lost per token, where a request names no other"""
    stride: int
    """tokens between checkpoints"""
    max_thinking: int
    """hard cap on thinking tokens"""
    closing: frozenset[int]
    """tokens that can be the last one of the end of the thinking"""
    eos: frozenset[int]
    """tokens that end a sequence"""
    failures: Failures = field(default_factory=Failures)

    def answer(self, ids: Sequence[int]) -> str:
        """The answer that is found in the tokens after the thinking."""
        recorded: Mapping[str, Any] = getattr(self.policy, "recorded", {})
        written = read_answer(ids, self.vocabulary, self.profile, self.profile.answer_stop)
        return extracted(written, str(recorded.get("scorer", "auto")))

    @property
    def reserve(self) -> int:
        """Tokens kept for the exit text and the answer."""
        return len(self.vocabulary.exit_ids) + self.profile.max_answer_tokens

    def controller(
        self, token_price: float | None, question: str | None = None, task: str = ""
    ) -> Controller:
        """A fresh controller; ``UserError`` for a price the policy does not know, and for a policy
        that looks at the question where there is none."""  # fmt: skip
        return Controller(
            self.policy,
            token_price=self.token_price if token_price is None else token_price,
            stride=self.stride,
            question=question,
            task=task,
            on_failure=self.failures.add,
        )


def make_plan(
    policy: StopPolicy,
    tokenizer: Any,
    *,
    vocabulary_size: int,
    eos_ids: Sequence[int],
    profile: str | None = None,
    token_price: float | None = None,
    stride: int | None = None,
    max_thinking_tokens: int | None = None,
    probes: bool = False,
    questions: bool = False,
) -> Plan:
    """Check a policy against an engine and look its texts up in the tokenizer.

    ``vocabulary_size`` is the number of logits, ``eos_ids`` the tokens that end a sequence.
    ``profile``, ``stride`` and ``max_thinking_tokens`` left out are those of the traces the policy
    was trained on, ``token_price`` is the policy's default. ``probes`` says whether the engine can
    make trial answers, ``questions`` whether it knows the question, beside the prompt's tokens.

    Raises ``UserError`` for a policy that needs what the engine cannot give, an unknown profile,
    a tokenizer that spells the exit text differently in context, and a price or cap out of range.
    """
    recorded: Mapping[str, Any] = getattr(policy, "recorded", {})
    name = recorded.get("profile") if profile is None else profile
    if name is None:
        raise UserError("the policy does not say how its model was asked: name an exit profile")
    found = find_profile(str(name))
    every = recorded.get("stride", found.stride) if stride is None else stride
    cap = max_thinking_tokens
    if cap is None:
        cap = int(recorded.get("max_tokens", found.max_tokens))
    if cap < 1:
        raise UserError(f"max_thinking_tokens must be at least 1, not {cap}")
    needed = {feature.partition(".")[0] for feature in policy.features}
    if not probes and needed & {*PROBE_SIGNALS, *LOOK_SIGNALS}:
        raise UserError(
            "the policy looks at trial answers, which this engine cannot make: train one with"
            " --preset free, or decode with rlbudget.integrations.hf_generate"
        )
    if not questions and needed & set(CONTEXT_SIGNALS):
        raise UserError(
            "the policy looks at the question, which this engine does not tell from the rest of"
            " the prompt: train one without --context, or decode with rlbudget.decode or a client"
        )
    _check_context(tokenizer, found)
    plan = Plan(
        policy=policy,
        vocabulary=build_vocabulary(tokenizer, found, vocabulary_size, eos_ids),
        profile=found,
        token_price=_default_price(policy) if token_price is None else token_price,
        stride=int(every),
        max_thinking=cap,
        closing=_closing(tokenizer, found.end_of_thinking),
        eos=frozenset(eos_ids),
    )
    plan.controller(None, "" if questions else None)  # fails here rather than in the first request
    return plan


def _default_price(policy: StopPolicy) -> float:
    return float(getattr(policy, "default_price", middle_price(policy.price_range)))


def _check_context(tokenizer: Any, profile: Profile) -> None:
    """The tokens that are forced must spell the exit text after any other text.

    They need not be those the tokenizer would choose for the whole: many merge a full stop and
    the line break after it, and the model reads them apart just as the recorder wrote them.
    """
    ids = trusted_ids(tokenizer, profile.exit_text)
    for before in ("Done.", "so 12", "it is x", "(a)"):
        there = trusted_ids(tokenizer, before)
        spelled = _decoded(tokenizer, there + ids)
        if spelled != _decoded(tokenizer, there) + profile.exit_text:
            raise UserError(
                f"this tokenizer spells the exit text {profile.exit_text!r} of the profile"
                f" {profile.name!r} differently after {before!r}, as {spelled!r}: choose another"
                " profile"
            )


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _closing(tokenizer: Any, end: str) -> frozenset[int]:
    last = end.strip()[-1]
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # Byte-level pieces spell only ASCII as it is; any token may hold a part of another character.
    # Fallback pieces are bytes in hexadecimal.
    return frozenset(
        token
        for token, piece in enumerate(pieces)
        if not last.isascii() or last in (piece or "") or (piece or "").startswith("<0x")
    )
