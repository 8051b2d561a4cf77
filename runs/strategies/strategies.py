"""Every strategy that is measured on recorded traces: with it and without it, paired, held out.

    python -m runs.strategies.strategies [--traces FOLDER] [--n 3600]

Everything is fitted and chosen on training and validation questions; utilities are means over the
held-out questions and three seeds, verdicts are those of ``rlbudget.evaluate.verdicts``. Where
there are kept traces of the SmolLM2 reasoner, they are measured as well. Writes
``runs/results/strategies.json``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.arrays import Floats
from rlbudget.evaluate.report import groups_of
from rlbudget.evaluate.verdicts import extremes, most_utility, paired
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import Outcome, token_price_of, utility
from rlbudget.policy.replay import replay
from rlbudget.strategies.correction.correct import Aim, Corrected, correct, tune
from rlbudget.strategies.correction.doubt import exit_table
from rlbudget.strategies.correction.fit import Doubts, fit_doubts
from rlbudget.strategies.ensemble import ensemble
from rlbudget.strategies.hybrid import Comparison, HybridRule, HybridRules, RequestFacts
from rlbudget.strategies.impact import fit_impact, guarded
from rlbudget.tasks.patterns import Pattern
from rlbudget.traces.store import digest, iter_traces
from rlbudget.traces.table import Split, TraceTable, split_questions
from runs.common import parser_of, row, sources, write_result

SEEDS = (0, 1, 2)
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
OFF = 1.0
RISKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, OFF)
GOLD = 8.0
"""how many usual answers one of a gold customer is worth"""


@dataclass(frozen=True, slots=True)
class Case:
    """One recording, split, and the policies trained on it."""

    name: str
    split: Split
    families: dict[str, str]
    """question id -> family"""
    policies: tuple[Policy, ...]
    with_context: tuple[Policy, ...]
    doubts: tuple[Doubts, ...]
    """of each policy's exits"""

    def price(self, relative: float) -> float:
        """Reward per token."""
        return token_price_of(relative, self.split.train)


@dataclass(frozen=True, slots=True)
class Compared:
    """A strategy at the relative price it is meant for."""

    strategy: str
    relative_price: float
    without: Outcome
    given: Outcome
    note: str = ""
    """what else there is to say, or why it does not help"""
    worth: Floats | float = 1.0
    """of a right answer: of all, or (n,) of each trace's"""


def main() -> None:
    """Train, compare, write."""
    args = parser_of(__doc__).parse_args()
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name, traces in sources(args, scratch).items():
            case = prepared(name, traces, scratch)
            found = [
                context(case), guard(case), together(case), by_family(case), by_customer(case),
                *correction(case),
            ]  # fmt: skip
            measured = [as_row(case, compared) for compared in found]
            rows += measured
            later, contexts = later_on_harder(case)
            rows += [later, recovered(case), rule_engine(case)]
            details[name] = {
                "traces_digest": digest(traces),
                "held_out_questions": len(np.unique(case.split.held_out.question_ids)),
                "contexts": contexts,
            }
            print(name, file=sys.stderr, flush=True)
    write_result(
        "strategies",
        rows,
        reproduce="bash runs/strategies/strategies.sh",
        seeds=list(SEEDS),
        **details,
    )


def prepared(name: str, traces: Path, scratch: Path) -> Case:
    """Load, split, train with and without the question's own numbers."""
    split = split_questions(exit_table(traces), seed=0)
    kinds: dict[str, dict[str, Any]] = {
        "free": {},
        "context": {"context": True, "tasks": True},
    }
    policies: dict[str, list[Policy]] = {kind: [] for kind in kinds}
    for seed in SEEDS:
        for kind, settings in kinds.items():
            run = scratch / f"{name}-{kind}-{seed}"
            train_on(traces, run, seed=seed, **settings)
            policies[kind].append(policy_of_run(run))
            print(f"{name}: {kind}, seed {seed}", file=sys.stderr, flush=True)
    families = {t.question_id: str(t.meta.get("family", t.task)) for t in iter_traces(traces)}
    doubts = []
    for seed, policy in zip(SEEDS, policies["free"], strict=True):
        doubts.append(fit_doubts(split, policy, seed=seed))
        print(f"{name}: doubts, seed {seed}", file=sys.stderr, flush=True)
    return Case(
        name,
        split,
        families,
        policies=tuple(policies["free"]),
        with_context=tuple(policies["context"]),
        doubts=tuple(doubts),
    )


def mean_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Of the seeds, trace by trace."""
    return Outcome(
        *(
            np.mean([getattr(one, part) for one in outcomes], axis=0)
            for part in ("exact_match", "thinking", "probe", "answer")
        )
    )


def replayed(policies: Sequence[Any], table: TraceTable, price: float) -> Outcome:
    """Mean of the policies' outcomes."""
    return mean_of([replay(policy, table, price).outcome for policy in policies])


def context(case: Case) -> Compared:
    """The question's own numbers in the observation."""
    relative = 0.1
    held_out, price = case.split.held_out, case.price(relative)
    return Compared(
        "context: the policy looks at the question and its task as well",
        relative,
        replayed(case.policies, held_out, price),
        replayed(case.with_context, held_out, price),
    )


def guard(case: Case) -> Compared:
    """The impact model before a policy that is served at too high a price.

    The risk that is let pass is the best on the validation questions; 1 is no guard at all.
    """
    relative, served = 0.02, 0.2
    split, price, worth = case.split, case.price(0.2), case.price(0.02)
    given, chosen = [], []
    for seed, policy in zip(SEEDS, case.policies, strict=True):
        impact = fit_impact(split.train, split.validation, policy.features, seed=seed)

        def under(risk: float, table: TraceTable, one: Policy = policy, m: Any = impact) -> Outcome:
            return replay(guarded(one, m, max_risk=risk), table, price).outcome

        earned = [utility(under(r, split.validation), worth).mean() for r in RISKS]
        chosen.append(RISKS[int(np.argmax(earned))])
        given.append(under(chosen[-1], split.held_out))
    off = sum(risk == OFF for risk in chosen)
    note = "risks let pass " + ", ".join("any" if r == OFF else f"{r:g}" for r in chosen)
    if off:
        note += (
            f"; switched off by itself in {off} of {len(SEEDS)} seeds: where stops mend more"
            " answers than they lose, a guard takes back both"
        )
    return Compared(
        f"impact guard over a policy served at relative price {served:g} where answers are worth"
        " more",
        relative,
        replayed(case.policies, split.held_out, price),
        mean_of(given),
        note,
    )


def together(case: Case) -> Compared:
    """The mean of three seeds against one of them."""
    relative = 0.1
    held_out, price = case.split.held_out, case.price(relative)
    return Compared(
        "ensemble: mean of three policies against one",
        relative,
        replayed(case.policies, held_out, price),
        replay(ensemble(case.policies), held_out, price).outcome,
    )


def by_family(case: Case) -> Compared:
    """A hybrid rule for each family: the price factor that is best on the validation questions.

    Where none is ahead of 1 there by more than its standard error, the rule changes nothing.
    """
    relative = 0.1
    split, price = case.split, case.price(relative)

    def requests(table: TraceTable) -> list[RequestFacts]:
        return [RequestFacts("", task=case.families[str(q)]) for q in table.question_ids]

    validation = requests(split.validation)

    def earned(rules: Sequence[HybridRule]) -> Floats:
        done = (
            HybridRules(tuple(rules), {"policy": policy}).replay(
                split.validation, validation, price
            )
            for policy in case.policies
        )
        mean: Floats = np.mean([utility(one.outcome, price) for one in done], axis=0)
        return mean

    usual = earned([])
    rules = []
    for number, family in enumerate(sorted(set(case.families.values())), 1):
        own = np.array([request.task == family for request in validation])
        best, ahead = 1.0, 0.0
        for factor in FACTORS:
            rule = HybridRule(name=family, line=number, task=family, price=factor)
            gain = (earned([rule]) - usual)[own]
            if gain.mean() > max(ahead, gain.std(ddof=1) / len(gain) ** 0.5):
                best, ahead = factor, float(gain.mean())
        rules.append(HybridRule(name=family, line=number, task=family, price=best))
    return Compared(
        "hybrid rules: a price factor for each family",
        relative,
        replayed(case.policies, split.held_out, price),
        under_rules(case, rules, requests(split.held_out), price),
        "factors " + ", ".join(f"{rule.name} {rule.price:g}" for rule in rules),
    )


def by_customer(case: Case) -> Compared:
    """A hybrid rule for what a policy cannot see: half of the customers pay for certainty.

    An answer of theirs is worth ``GOLD`` usual ones. Without the rule all are served at the price
    for the mean worth of an answer.
    """
    relative = 0.3
    held_out, price = case.split.held_out, case.price(relative)
    gold = np.random.default_rng(0).random(len(held_out)) < 0.5
    worth = np.where(gold, GOLD, 1.0)
    asked = [RequestFacts("", metadata={"tier": "gold" if one else "usual"}) for one in gold]
    rules = [HybridRule(name="gold", line=1, metadata={"tier": "gold"}, price=1 / GOLD)]
    return Compared(
        f"hybrid rules: the answers of half of the customers are worth {GOLD:g} times as much",
        relative,
        replayed(case.policies, held_out, price / float(worth.mean())),
        under_rules(case, rules, asked, price),
        worth=worth,
    )


def under_rules(
    case: Case, rules: Sequence[HybridRule], asked: Sequence[RequestFacts], price: float
) -> Outcome:
    """Mean of the policies' outcomes under the rules, held out."""
    return mean_of(
        [
            HybridRules(tuple(rules), {"policy": policy})
            .replay(case.split.held_out, asked, price)
            .outcome
            for policy in case.policies
        ]
    )


def correction(case: Case) -> list[Compared]:
    """Taking doubted exits back, for every token charged, where that earns most."""
    found = []
    for relative in (0.05, 0.2):
        done = corrected(case, relative, "utility")
        off = sum(not one.resumed.any() for one in done)
        note = f"nothing is taken back in {off} of {len(SEEDS)} seeds" if off else ""
        name = "correction: exits that look wrong are thought on"
        before, after = (
            mean_of([getattr(one, when) for one in done]) for when in ("before", "outcome")
        )
        found.append(Compared(name, relative, before, after, note))
    return found


def corrected(case: Case, relative: float, aim: Aim) -> list[Corrected]:
    """Held out, one a seed; tuned on the other questions to cost at most 8% of the saved tokens."""
    price, held_out, found = case.price(relative), case.split.held_out, []
    for policy, own in zip(case.policies, case.doubts, strict=True):
        done = replay(policy, own.tuning, price)
        best = tune(own.model, done, own.of_tuning, price, most_extra=0.08, aim=aim)
        found.append(correct(best, replay(policy, held_out, price)))
    return found


def recovered(case: Case) -> dict[str, Any]:
    """How many of the lost answers come back, and at what share of the saved tokens."""
    relative = 0.2
    price = case.price(relative)
    done = corrected(case, relative, "answers")
    share = float(np.mean([one.share_recovered for one in done]))
    cost = float(np.mean([one.share_of_saved for one in done]))
    gained = np.mean([one.gained_per_100_tokens for one in done])
    worth = np.mean([utility(one.outcome, price) - utility(one.before, price) for one in done])
    counts = ", ".join(
        f"{one.recovered.sum()} of {one.lost.sum()} back, {one.broken.sum()} broken" for one in done
    )
    text = f"{share:.1%} at {cost:.1%} ({counts}); utility {worth:+.4f}"
    return row(
        f"{case.name}: answers lost by early exits that thinking on recovers, by doubt and the"
        f" re-check of the thinking, relative price {relative:g}, mean of {len(SEEDS)} seeds",
        ">= 25% at <= 10% of the saved tokens",
        text + (f"; {gained:+.2f} EM per 100 extra tokens" if cost else ""),
        share >= 0.25 and cost <= 0.10,
    )


def rule_engine(case: Case) -> dict[str, Any]:
    """Microseconds of a decision under 100 rules, half of which look at each checkpoint."""
    policy, price = case.policies[0], case.price(0.1)
    rules = [
        HybridRule(name=f"r{n}", line=n, question=Pattern(f"{n}|why"), metadata={"n": n}, price=0.9)
        for n in range(50)
    ] + [
        HybridRule(
            name=f"r{n}",
            line=n,
            live=(
                Comparison("thinking_tokens", "<", float(n)),
                Comparison(policy.features[n % len(policy.features)], ">", 1e9),
            ),
            then="go on",
        )
        for n in range(50)
    ]
    engine = HybridRules(tuple(rules), {"policy": policy})
    request = RequestFacts("Why is 7 * 6 not 43?", metadata={"n": 7})
    seen = observe(case.split.held_out, policy.features)[:1000]
    ruled = engine.for_request(request)

    def microseconds(decide: Any) -> float:
        begun = time.perf_counter()
        for observation in seen:
            decide(observation, token_price=price)
        return 1e6 * (time.perf_counter() - begun) / len(seen)

    turns = [(microseconds(policy), microseconds(ruled)) for _ in range(9)]
    alone, under = (float(np.median(column)) for column in zip(*turns, strict=True))
    begun = time.perf_counter()
    for _ in range(100):
        engine.for_request(request)
    once = 1e4 * (time.perf_counter() - begun)
    return row(
        f"{case.name}: a decision under 100 rules, half of them looking at every checkpoint, in"
        " microseconds, the policy's own time included",
        "<= 20",
        f"{under:.1f} (the policy alone {alone:.1f}; once for each request {once:.0f})",
        under <= 20,
    )


def later_on_harder(case: Case) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Where the policy with context stops: by family, and by length and complexity.

    A question is harder where its full decode thinks longer, a family where its full decodes do.
    """
    relative = 0.1
    held_out, price = case.split.held_out, case.price(relative)
    done = replayed(case.with_context, held_out, price)
    contexts = groups_of(done, held_out, [case.families[str(q)] for q in held_out.question_ids])
    families = [context for context in contexts if context.by == "family"]
    hard = rank([context.full_tokens for context in families])
    late = rank([context.tokens for context in families])
    over_families = float(np.corrcoef(hard, late)[0, 1]) if len(families) > 2 else float("nan")
    thinking = held_out.final_thinking_tokens.astype(np.float64)
    over_questions = float(np.corrcoef(rank(thinking), rank(done.thinking))[0, 1])
    return (
        row(
            f"{case.name}: stops come later on harder questions (rank correlation of stop and full"
            " thinking: over questions, over families)",
            "> 0",
            f"{over_questions:.2f}, {over_families:.2f}",
            over_questions > 0 and not over_families < 0,
        ),
        [asdict(context) for context in contexts],
    )


def rank(values: Sequence[float] | Floats) -> Floats:
    """Places in order, ties by their mean."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Floats = (ends - (counts - 1) / 2)[inverse]
    return means


def as_row(case: Case, compared: Compared) -> dict[str, Any]:
    """With against without, as a row of the table."""
    price = case.price(compared.relative_price)
    held_out = case.split.held_out
    given, without = compared.given, compared.without
    difference = compared.worth * (given.exact_match - without.exact_match) - price * (
        given.tokens - without.tokens
    )
    dearest = float(np.max(compared.worth)) - 1
    most = dearest + most_utility(price, given, without, *extremes(held_out))
    found = paired(difference, held_out.question_ids, most=most)
    result = row(
        f"{case.name}: {compared.strategy}, relative price {compared.relative_price:g}",
        "utility with it above that without, with the whole 95% interval",
        f"{found}; EM"
        f" {without.exact_match.mean():.4f} -> {given.exact_match.mean():.4f},"
        f" tokens {without.tokens.mean():.1f} -> {given.tokens.mean():.1f}"
        + (f"; {compared.note}" if compared.note else ""),
        found.verdict == "better",
    )
    return result


if __name__ == "__main__":
    main()
