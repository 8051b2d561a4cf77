"""What to do, in words: the sentences that an evaluation begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlbudget.agents.tuned_rule import can_freeze, why_not
from rlbudget.evaluate.needed import MATTERS, about, to_tell_apart
from rlbudget.policy.dial import EFFORTS

POINT = EFFORTS["medium"]
"""exact match that what is recommended may lose"""
_TUNED = f"{POINT:g}"
"""of a summary, the operating point that was tuned to lose no more"""
_HELD_OUT = 0.3
"""share of recorded questions that an evaluation without folds holds out"""


@dataclass(frozen=True, slots=True)
class Way:
    """A way of serving, on the held-out questions."""

    method: str
    effort: str | None
    """of a policy with operating points; None for what was tuned to lose at most a point"""
    token_price: float | None
    """of the effort"""
    savings: float
    em_loss: float
    em_loss_ci95: tuple[float, float]
    to_halve: int | None
    """questions in all that would halve the interval"""
    to_a_point: int | None
    """questions in all for an interval of a point to each side"""
    probes: bool
    """whether it makes trial answers"""

    @property
    def kept(self) -> bool:
        """Whether it saves something and loses no more than it may."""
        return self.savings > 0 and self.em_loss <= POINT


@dataclass(frozen=True, slots=True)
class Pick:
    """What an evaluation recommends to serve."""

    serve: Literal["policy", "rule", "full"]
    """``full``: every answer decoded in full"""
    policy: Way | None
    """the best effort of a policy that may lose a point; None where none was measured"""
    rule: Way | None
    """the rule of the highest mean; None where that is never stopping"""
    verdict: str | None
    """of the rule against the policy; None where they were not compared"""
    told: bool
    """whether anything could be told: of the two apart, or of either from the full decode"""

    @property
    def way(self) -> Way | None:
        """What to serve; None for the full decode."""
        return {"policy": self.policy, "rule": self.rule, "full": None}[self.serve]


def pick(evaluation: Mapping[str, Any]) -> Pick:
    """Of what ``evaluation.json`` holds: what is better, where nothing tells policy and rule apart
    the simpler of both, and the full decode where neither kept what it may lose and saved."""
    policy, rule = _policy(evaluation), _rule(evaluation)
    if policy is not None and rule is not None and _frozen(evaluation, policy) == rule.method:
        rule = None  # it is the policy
    versus = None if policy is None else _versus(evaluation, rule, policy)
    verdict = None if versus is None else str(versus["verdict"])
    from_full = [_versus(evaluation, way, None) for way in (policy, rule)]
    verdicts = [found["verdict"] for found in (versus, *from_full) if found is not None]
    told = not verdicts or any(found != "cannot tell" for found in verdicts)
    return Pick(_choice(policy, rule, verdict), policy, rule, verdict, told)


def _choice(
    policy: Way | None, rule: Way | None, verdict: str | None
) -> Literal["policy", "rule", "full"]:
    served = policy is not None and policy.kept
    if rule is None or not rule.kept or not can_freeze(rule.method):
        return "policy" if served else "full"
    if policy is None or not served or verdict == "better":
        return "rule"
    simpler = policy.probes or not rule.probes
    return "rule" if verdict == "cannot tell" and simpler else "policy"


def recommended(evaluation: Mapping[str, Any]) -> list[str]:
    """What was picked, in sentences: what to serve and with which command, what it saves and may
    lose, whether the questions can tell policy and rule apart, and how many more would help."""
    picked = pick(evaluation)
    policy, rule, verdict = picked.policy, picked.rule, picked.verdict
    questions, said = int(evaluation["held_out_questions"]), []
    way = picked.way
    if not picked.told:
        said.append(_too_few(evaluation, way or policy or rule, questions))
    if way is None:
        until = "Decode in full" if picked.told else "Until then decode in full"
        said.append(f"{until}: {_why_full(policy or rule, questions)}.")
    else:
        until = "" if picked.told else "Until then decode in full or, unproven: "
        serve = _serve(way, picked, evaluation)
        said.append(f"{until}{serve if until else serve[0].upper() + serve[1:]}.")
        said.append(_gains(way, evaluation, questions, more=picked.told))
    if policy is not None and rule is not None and (picked.serve != "full" or verdict == "better"):
        said.append(_against(policy, rule, picked, evaluation, questions))
    if policy is None and not _policies(evaluation):
        said.append("A trained policy may do better: rlbudget train TRACES --out RUN.")
    return said


def _serve(way: Way, picked: Pick, evaluation: Mapping[str, Any]) -> str:
    name = way.method
    if picked.serve == "rule":
        command = f"rlbudget freeze RUN --rule {name} --out {name}-policy"
        if picked.policy is None:
            command = f"rlbudget train TRACES --out RUN, then {command}"
        return f"serve the rule {name}: {command}"
    if way.effort is not None and any(row["method"] == "fixed-n" for row in evaluation["summary"]):
        return (
            f"serve {name} at effort {way.effort}, token price {way.token_price:.3g}, in the loop"
            " that draws the samples"
        )
    if way.effort is not None:
        return (
            f"serve {name} at effort {way.effort}: rlbudget decode --model MODEL --policy {name}"
            f' --effort {way.effort}, or effort = "{way.effort}" in a plan'
        )
    if evaluation.get("folds", 1) > 1:
        return (
            f"serve {name}, trained on all of these questions, at effort medium:"
            f" rlbudget train TRACES --out RUN, then rlbudget freeze RUN --out POLICY"
        )
    return (
        f"serve {name} at the price that may lose a point, which its folder does not name:"
        f" rlbudget calibrate {name} TRACES --out POLICY finds it"
    )


def _gains(way: Way, evaluation: Mapping[str, Any], questions: int, *, more: bool) -> str:
    """What a way saves and may lose."""
    low, high = way.em_loss_ci95
    said = (
        f"{way.savings:.0%} fewer tokens; {between(low, high)}"
        f" (95% interval, {questions:,} held-out questions)"
    )
    if high > POINT:
        said += "; a loss of more than a point is not ruled out"
    if more and way.to_halve is not None and (high - low) / 2 >= MATTERS:
        extra = _recorded(evaluation, way.to_halve - questions)
        said += f"; about {extra} would halve the interval"
    return said + "."


def _against(
    policy: Way, rule: Way, picked: Pick, evaluation: Mapping[str, Any], questions: int
) -> str:
    """The policy and the best rule beside each other."""
    name, best = policy.method, rule.method
    if picked.verdict == "worse":
        return f"{name} is better than the best rule, {best}, over all prices."
    if picked.verdict == "better":
        said = f"The rule {best} is better than {name} over all prices"
        if not can_freeze(best):
            return f"{said}, but cannot be frozen: {why_not(best)}."
        where = "where a point may be lost"
        lost = f", but {where} it lost {_lost(rule.em_loss)} here and saved {rule.savings:.0%}"
        return said + ("" if rule.kept else lost) + "."
    versus = _versus(evaluation, rule, policy)
    if versus is None:
        return f"The best rule is {best}."
    said = f"These questions cannot tell {name} from the best rule, {best}"
    if not rule.kept:
        return (
            f"{said}, over all prices; tuned to lose at most a point, {best} lost"
            f" {_lost(rule.em_loss)} and saved {rule.savings:.0%} here."
        )
    other = policy if picked.serve == "rule" else rule
    if picked.serve == "rule":
        said += ", which is the simpler of both"
    elif rule.probes and not policy.probes:
        said += f", which makes trial answers, as {name} does not"
    elif not can_freeze(best):
        said += f", and that cannot be frozen: {why_not(best)}"
    effort = f" at effort {other.effort}" if other.effort else ""
    saves = f"{other.savings:.0%}" if other.savings > 0 else "nothing"
    said += f"; {other.method}{effort} saves {saves}"
    apart = to_tell_apart(versus, questions)
    if apart is not None and picked.told:
        extra = _recorded(evaluation, apart - questions)
        said += f"; about {extra} may tell them apart"
    return said + "."


def _too_few(evaluation: Mapping[str, Any], way: Way | None, questions: int) -> str:
    said = (
        f"Too few questions: {questions:,} held-out ones cannot tell whether it pays to stop early"
    )
    enough = None if way is None else way.to_a_point
    if enough is None or enough <= questions:
        enough = 4 * questions
        return f"{said}; take about {_recorded(evaluation, enough - questions)}."
    extra = _recorded(evaluation, enough - questions)
    return f"{said}; about {extra} would say what is lost to a point."


def _why_full(way: Way | None, questions: int) -> str:
    on = f"on {questions:,} held-out questions"
    if way is None:
        return f"no rule is better {on}"
    if way.em_loss > POINT:
        return (
            f"{way.method}, which may lose a point, lost {_lost(way.em_loss)} {on} and saved"
            f" {max(way.savings, 0):.0%}"
        )
    return f"{way.method} saves nothing {on} where it may lose a point"


def _recorded(evaluation: Mapping[str, Any], more: int) -> str:
    """So many more held-out questions, in questions to record."""
    if evaluation.get("folds", 1) > 1:
        return f"{about(more)} more questions"
    return f"{about(more / _HELD_OUT)} more recorded questions ({about(more)} held out)"


def _lost(em_loss: float) -> str:
    return f"{100 * em_loss:.1f}"


def between(low: float, high: float) -> str:
    """An interval of exact match that is lost, in words."""
    low, high = round(100 * low, 1) + 0.0, round(100 * high, 1) + 0.0
    if high <= 0 and low < 0:
        return f"between {-high + 0.0:.1f} and {-low:.1f} points of exact match gained"
    if low < 0:
        return f"between {-low:.1f} points of exact match gained and {high:.1f} lost"
    return f"between {low:.1f} and {high:.1f} points of exact match lost"


def _policies(evaluation: Mapping[str, Any]) -> list[str]:
    """The methods that are policies: those that others are compared with."""
    return list(
        dict.fromkeys(
            reference
            for row in evaluation["summary"]
            for reference in row.get("versus", {})
            if reference != "full"
        )
    )


def _policy(evaluation: Mapping[str, Any]) -> Way | None:
    """Of the policies' efforts that may lose at most a point, or of what they were tuned to where
    they have none, that which saves most of those that kept it; else the first."""
    rows = [
        row for row in evaluation.get("efforts") or ()
        if row["max_em_loss"] <= POINT
    ]  # fmt: skip
    ways = []
    for row in sorted(rows, key=lambda row: -row["max_em_loss"]):
        lost, ends = row["held_out_em_loss"], tuple(row["held_out_em_loss_ci95"])
        ways.append(
            Way(
                row["method"], row["effort"], row["token_price"], row["held_out_savings"], lost,
                ends, row.get("to_halve"), row.get("to_a_point"),
                _probes(evaluation, row["method"]),
            )
        )  # fmt: skip
    with_efforts = {way.method for way in ways}
    tuned = (_tuned(evaluation, n) for n in _policies(evaluation) if n not in with_efforts)
    ways += [way for way in tuned if way is not None]
    kept = [way for way in ways if way.kept]
    return max(kept, key=lambda way: way.savings, default=ways[0] if ways else None)


def _rule(evaluation: Mapping[str, Any]) -> Way | None:
    """The rule of the highest mean, tuned to lose at most a point; where a constant budget is as
    good as the oracle at every price, so that no mean is defined, that which saves most of those
    that kept the point."""
    rules = [row for row in evaluation["summary"] if row["kind"] == "rule"]
    known = [row for row in rules if row["mean_oracle_gap_closed"] is not None]
    best = max(known, key=lambda row: float(row["mean_oracle_gap_closed"]), default=None)
    if best is not None:
        return None if best["method"] == "full" else _tuned(evaluation, best["method"])
    tuned = [_tuned(evaluation, row["method"]) for row in rules]
    kept = [way for way in tuned if way is not None and way.kept and can_freeze(way.method)]
    return max(kept, key=lambda way: way.savings, default=None)


def _tuned(evaluation: Mapping[str, Any], method: str) -> Way | None:
    row = next((row for row in evaluation["summary"] if row["method"] == method), None)
    if row is None or row.get("held_out_em_loss_ci95") is None:
        return None
    return Way(
        method, None, None, row["savings_at_em_loss"][_TUNED], row["held_out_em_loss"][_TUNED],
        tuple(row["held_out_em_loss_ci95"][_TUNED]), row.get("to_halve"), row.get("to_a_point"),
        _probes(evaluation, method),
    )  # fmt: skip


def _frozen(evaluation: Mapping[str, Any], policy: Way) -> str | None:
    """The rule that a policy was frozen from."""
    found: str | None = (evaluation.get("frozen_rules") or {}).get(policy.method)
    return found


def _probes(evaluation: Mapping[str, Any], method: str) -> bool:
    return any(
        row["tokens"]["probe"] > 0
        for row in evaluation.get("results") or ()
        if row["method"] == method
    )


def _versus(
    evaluation: Mapping[str, Any], way: Way | None, other: Way | None
) -> Mapping[str, Any] | None:
    """One way against another's method, or against the full decode."""
    if way is None:
        return None
    reference = "full" if other is None else other.method
    versus = [row["versus"] for row in evaluation["summary"] if row["method"] == way.method]
    found: Mapping[str, Any] | None = versus[0].get(reference) if versus else None
    return found
