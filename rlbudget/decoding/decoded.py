"""What came of a request."""

from __future__ import annotations

from dataclasses import dataclass

from rlbudget.policy.controller import Reason


@dataclass(frozen=True, slots=True)
class Ending:
    """Where and why a thinking ended, so far."""

    thinking_tokens: int
    probe_tokens: int
    """tokens of all trial answers that were made"""
    answer_tokens: int
    """every token after the thinking"""
    reason: Reason | None
    """None while it thinks"""
    stop_probability: float | None
    """at the last checkpoint; None where there was none"""
    message: str | None
    """what went wrong"""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer, what it cost, and where and why its thinking ended."""

    answer: str
    """the answer that was found in what the model wrote, as the traces' scorer finds it"""
    text: str
    """everything after the prompt: thinking, end of thinking, answer"""
    thinking_tokens: int
    probe_tokens: int
    """tokens of all trial answers that were made"""
    answer_tokens: int
    """every token after the thinking"""
    stopped: bool
    """whether the plan ended the thinking"""
    stopped_at: int | None
    """thinking tokens at the stop"""
    reason: Reason
    stop_probability: float | None
    """at the last checkpoint; None where there was none"""
    message: str | None
    """what went wrong with the policy, or with a part of the plan"""
    resumed: int = 0
    """how often a correction took an exit back and went on thinking"""
    confidence: float | None = None
    """chance that the exit loses no answer, by the guard; None without a guard or a stop"""
    second: Decoded | None = None
    """what a second model did, where it was asked: its answer is the one that is given"""
    ratio: float = 1.0
    """what a token of the first model costs, in those that ``total_tokens`` counts"""
    second_ratio: float = 1.0
    """what a token of the second model costs, in the same"""
    request_id: str | None = None
    """in the log, where there is one"""
    audited: bool = False
    uncovered: str | None = None
    """what no certificate covers at the price it was served at; None where one does, and where
    nothing is certified"""

    @property
    def own_tokens(self) -> int:
        """Tokens of the first model, the prompt's left out."""
        return self.thinking_tokens + self.probe_tokens + self.answer_tokens

    @property
    def total_tokens(self) -> float:
        """All tokens that were paid for, the prompt's left out: those of the large model under a
        cascade, else those of the first."""
        second = 0 if self.second is None else self.second_ratio * self.second.total_tokens
        return (self.own_tokens if self.ratio == 1 else self.ratio * self.own_tokens) + second
