"""What a recommendation reads of ``evaluation.json``."""

from __future__ import annotations

from typing import Any


def summary(method: str, kind: str, gap: float, **changes: Any) -> dict[str, Any]:
    return {
        "method": method,
        "kind": kind,
        "mean_oracle_gap_closed": gap,
        "savings_at_em_loss": {"0.01": 0.3},
        "held_out_em_loss": {"0.01": 0.005},
        "held_out_em_loss_ci95": {"0.01": (0.0, 0.02)},
        "to_halve": 240,
        "to_a_point": 900,
        "versus": {},
    } | changes


def against(verdict: str, margin: float = 0.02, half: float = 0.04) -> dict[str, Any]:
    return {"verdict": verdict, "margin": margin, "margin_ci95": (margin - half, margin + half)}


def evaluation(
    verdict: str = "worse", rule: str = "deer", from_full: str = "better", **changes: Any
) -> dict[str, Any]:
    """A policy with an effort, and a rule that is ``verdict`` against it."""
    effort = {
        "method": "policy", "effort": "medium", "max_em_loss": 0.01, "token_price": 1e-3,
        "held_out_em_loss": 0.007, "held_out_em_loss_ci95": (0.002, 0.013),
        "held_out_savings": 0.41, "to_halve": 170, "to_a_point": 60,
    } | changes  # fmt: skip
    versus = {"policy": against(verdict), "full": against(from_full)}
    return {
        "held_out_questions": 60,
        "folds": 1,
        "efforts": [effort],
        "results": [
            {"method": "policy", "tokens": {"probe": 0.0}},
            {"method": "deer", "tokens": {"probe": 3.0}},
        ],
        "summary": [
            summary("fixed", "rule", 0.0),
            summary(rule, "rule", 0.1, versus=versus),
            summary("policy", "learned", 0.2, versus={"full": against(from_full)}),
        ],
    }
