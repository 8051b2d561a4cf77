"""What each method of an evaluation is, in one sentence of plain words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlbudget.agents.rules.about import ABOUT
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import Preset

PRESETS: Mapping[Preset, str] = {
    "free": "it sees only numbers that cost no extra token.",
    "probe": "it sees a trial answer at every checkpoint, whose tokens are counted.",
    "turns": 'it sees trial answers at turns of thought ("wait"), whose tokens are counted.',
}
"""preset -> what the policy sees, as the end of a sentence"""
LEARNERS: Mapping[str, str] = {
    "fitted-q": "Learned from your traces by fitted-Q, for comparison.",
    "exact-pg": "Learned from your traces by the exact policy gradient, for comparison.",
}
ORACLE = (
    "Stops every question at its best checkpoint because it knows the right answer: no method can"
    " do better."
)


def about(methods: Iterable[str], policies: Mapping[str, Policy]) -> dict[str, str]:
    """Method -> its sentence; ``policies`` are those among the methods that are policy folders."""
    return {name: _about(name, policies) for name in methods}


def _about(name: str, policies: Mapping[str, Policy]) -> str:
    if name in policies:
        return _policy(policies[name])
    if name == "oracle":
        return ORACLE
    learner = next((known for known in LEARNERS if name.startswith(known)), None)
    if learner is not None:
        return LEARNERS[learner]
    first, *parts = name.split("+")
    if parts:
        return f"The policy {first} under your plan: {' and '.join(parts)} may change its stops."
    return ABOUT.get(name, "The policies of your plan, combined.")


def _policy(policy: Policy) -> str:
    rule = (policy.config.get("trained") or {}).get("rule")
    if isinstance(rule, str) and rule in ABOUT:
        return f"The rule {rule} as a policy folder. {ABOUT[rule]}"
    return f"Learned from your traces: {PRESETS[policy.preset]}"
