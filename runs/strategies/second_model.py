"""Two models on the same questions: a chooser, a cascade, and correction by the other model.

    python -m runs.strategies.second_model [--small FOLDER] [--large FOLDER --ratio R]

By default the small model is the embedded one, recorded once on SmolLM2's questions into
``out/second_model``, and the large one SmolLM2. A token of the small model costs ``--ratio`` of one
of the large one, by default what its parameters are of the other's: 1.4 of 135 million. Utilities,
prices and tokens are in tokens of the large one. Each model is served by a free PPO policy of its
own. Everything is trained on training questions and chosen on validation questions; utilities are
means over the held-out questions and three seeds, intervals come from a paired bootstrap over the
questions. Writes ``runs/results/second_model.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.cascade import train_cascade
from rlbudget.agents.config import RELATIVE_PRICE_RANGE, PPOConfig
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.arrays import Floats
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.evaluate.verdicts import Paired, mean_interval, most_utility, paired_by
from rlbudget.models import load_model
from rlbudget.policy.bootstrap import Resampling, resample
from rlbudget.policy.folder import Policy
from rlbudget.policy.handover import in_large_tokens
from rlbudget.policy.outcomes import RELATIVE_PRICES, Outcome, utility
from rlbudget.policy.replay_cascade import replay_cascade
from rlbudget.strategies.chooser.chooser import MemberOf
from rlbudget.strategies.chooser.fit import fit, load_together, token_prices_of
from rlbudget.strategies.chooser.members import best_by_task, chosen, oracle_choice, play
from rlbudget.strategies.chooser.together import Together, TogetherSplit, split_together
from rlbudget.strategies.correction.fit import Fitted
from rlbudget.strategies.correction.fit_second import fit_second
from rlbudget.tasks import load_task
from rlbudget.traces.pairs import PairSplit, load_pair, side_by_side, split_pair
from rlbudget.traces.store import TraceWriter, digest, iter_traces, load_table
from runs.common import KEPT_TRACES, OUT, row, write_result

SEEDS = (0, 1, 2)
DRAWS = 2000
RATIO = 0.0104
MEMBERS = ("small", "large")
ALONE = (*MEMBERS, "small, full", "large, full")
WANTED_PRICES = 4
CORRECTED_AT = (0.05, 0.2)
"""relative prices at which corrections are fitted"""
WAYS = (("small", "large"), ("large", "small"))
"""who stops, who refines"""


@dataclass(slots=True)
class Measured:
    """Held-out outcomes of every method: one a price, one a seed."""

    outcomes: dict[tuple[str, int], list[Outcome]] = field(default_factory=dict)
    ways: dict[int, Counter[str]] = field(default_factory=dict)
    """when the chooser chooses, by the place of the price"""
    escalated: dict[int, list[float]] = field(default_factory=dict)
    corrections: dict[tuple[str, int], list[Fitted]] = field(default_factory=dict)
    """one a seed, by who stops and the place of the price"""

    def keep(self, method: str, place: int, outcome: Outcome) -> None:
        """One seed's."""
        self.outcomes.setdefault((method, place), []).append(outcome)

    def methods(self) -> list[str]:
        """In the order they came."""
        return list(dict.fromkeys(method for method, _ in self.outcomes))

    def most(self, place: int, price: float) -> float:
        """The largest difference in utility between two methods at a price."""
        return most_utility(
            price, *(one for (_, at), of in self.outcomes.items() if at == place for one in of)
        )

    def utilities(self, method: str, prices: Sequence[float]) -> Floats:
        """(prices, n) means of the seeds."""
        return np.array(
            [
                np.mean([utility(one, price) for one in self.outcomes[method, place]], axis=0)
                for place, price in enumerate(prices)
            ]
        )


def main() -> None:
    """Train, choose, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", type=Path, help="traces of the small model")
    parser.add_argument("--large", type=Path, default=KEPT_TRACES, help="those of the large one")
    parser.add_argument(
        "--ratio", type=float, default=RATIO, help="cost of a small model's token, in (0, 1]"
    )
    parser.add_argument(
        "--total-timesteps", type=int, help="of each training; by default as many as suit"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        try:
            small = args.small or recorded(args.large)
            folders = of_common_questions(small, args.large, scratch)
            pairs = split_pair(load_pair(*folders, ratio=args.ratio), seed=0)
            split = split_together(load_together(folders, ratios=(args.ratio, 1.0)), seed=0)
        except UserError as error:
            parser.error(str(error))
        prices = token_prices_of(split.train)
        measured = Measured()
        for seed in SEEDS:
            policies = trained(folders, split.train, scratch, seed, args.total_timesteps)
            measure(measured, split, pairs, policies, seed, args.total_timesteps)
            print(f"seed {seed}: chooser and cascade", file=sys.stderr, flush=True)
            correct(measured, folders, policies, args.ratio, prices, seed)
            print(f"seed {seed}", file=sys.stderr, flush=True)
        rows, details = compared(measured, split.held_out, prices, args.ratio)
        write_result(
            "second_model", rows,
            seeds=list(SEEDS), ratio=args.ratio,
            traces_digest={name: digest(own) for name, own in zip(MEMBERS, folders, strict=True)},
            held_out_questions=len(np.unique(split.held_out.question_ids)), **details,
        )  # fmt: skip


def recorded(large: Path) -> Path:
    """The embedded model on the questions of SmolLM2's task, recorded once."""
    folder = OUT / "second_model" / "embedded"
    n = len(set(load_table(large).question_ids.tolist()))
    record(
        load_model("embedded"), load_task("smollm2", n=n, seed=0), folder, store_text=True,
        resume=folder.is_dir(),
    )  # fmt: skip
    return folder


def of_common_questions(small: Path, large: Path, scratch: Path) -> tuple[Path, Path]:
    """The folders themselves, or copies without the questions that only one of them holds: then
    each is split as the pair is."""  # fmt: skip
    tables = [load_table(folder) for folder in (small, large)]
    common = set(tables[0].take(side_by_side(tables)[0]).question_ids.tolist())
    found = []
    for name, folder, table in zip(MEMBERS, (small, large), tables, strict=True):
        if set(table.question_ids.tolist()) == common:
            found.append(folder)
            continue
        found.append(scratch / f"{name}-common")
        with TraceWriter(found[-1]) as writer:
            for trace in iter_traces(folder):
                if trace.question_id in common:
                    writer.add(trace)
    return found[0], found[1]


def trained(
    folders: tuple[Path, Path], train: Together, scratch: Path, seed: int, steps: int | None
) -> tuple[Policy, Policy]:
    """A free policy for each member.

    That of the small one is trained for its own relative prices and for those that the large one's
    are for it: what it is served at here.
    """
    small, large = train.members
    low, high = (relative / float(large.table.full_tokens.mean())
                 for relative in RELATIVE_PRICE_RANGE)  # fmt: skip
    own_low, own_high = (relative / float(small.table.full_tokens.mean())
                         for relative in RELATIVE_PRICE_RANGE)  # fmt: skip
    ranges = (
        (min(own_low, small.ratio * low), max(own_high, small.ratio * high)),
        (low, high),
    )
    policies = []
    for name, folder, prices in zip(MEMBERS, folders, ranges, strict=True):
        run = scratch / f"{name}-{seed}"
        train_on(folder, run, token_price=prices, seed=seed, total_timesteps=steps)
        policies.append(policy_of_run(run))
    return policies[0], policies[1]


def measure(
    into: Measured,
    split: TogetherSplit,
    pairs: PairSplit,
    policies: tuple[Policy, Policy],
    seed: int,
    steps: int | None,
) -> None:
    """One seed: fit what chooses, replay everything on the held-out questions."""
    cascade = train_cascade(
        pairs.train,
        pairs.validation,
        PPOConfig(seed=seed, total_timesteps=steps),
        large=policies[1],
    ).cascade
    members = [
        MemberOf(name, one.ratio, policy, {})
        for name, one, policy in zip(MEMBERS, split.train.members, policies, strict=True)
    ]
    chooser = fit(split.train, split.validation, members, seed=seed)
    prices = chooser.token_prices.tolist()
    train, validation, held_out = (
        play(part, prices, policies) for part in (split.train, split.validation, split.held_out)
    )
    full = play(split.held_out, prices, (None, None))
    for place, price in enumerate(prices):
        here = held_out[place]
        for names, played in ((MEMBERS, here), (ALONE[2:], full[place])):
            for name, outcome in zip(names, played.alone, strict=True):
                into.keep(name, place, outcome)
        by_task = best_by_task([train[place], validation[place]], here.together.tasks.tolist())
        into.keep("best by family", place, chosen(here, by_task, "before"))
        into.ways.setdefault(place, Counter())[str(chooser.ways[place])] += 1
        into.keep("chooser", place, chooser.replay(here))
        done = replay_cascade(cascade, pairs.held_out, price, here.replays[1].outcome)
        into.escalated.setdefault(place, []).append(float(done.escalated.mean()))
        into.keep("cascade", place, done.outcome)
        into.keep("oracle chooser", place, chosen(here, oracle_choice(here), "before"))


def correct(
    into: Measured,
    folders: tuple[Path, Path],
    policies: tuple[Policy, Policy],
    ratio: float,
    prices: Sequence[float],
    seed: int,
) -> None:
    """One seed: corrections both ways, each model under its policy."""
    costs = (ratio, 1.0)
    for stops, refines in WAYS:
        one, other = MEMBERS.index(stops), MEMBERS.index(refines)
        for relative in CORRECTED_AT:
            place = RELATIVE_PRICES.index(relative)
            fitted = fit_second(
                policies[one], folders[one], folders[other],
                token_ratio=costs[other] / costs[one], token_price=prices[place] * costs[one],
                second_policy=policies[other], seed=seed,
            )  # fmt: skip
            into.corrections.setdefault((stops, place), []).append(fitted)
            print(*fitted.lines(), sep="\n", file=sys.stderr, flush=True)


def compared(
    measured: Measured, held_out: Together, prices: Sequence[float], ratio: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows, and the numbers of every method at every price.

    A single member is the best of its kind in hindsight, at each price: what it is compared with
    is not to be had by choosing.
    """
    resampling = resample(held_out.question_ids, draws=DRAWS, seed=0)
    each = {method: measured.utilities(method, prices) for method in measured.methods()}
    most = [measured.most(place, price) for place, price in enumerate(prices)]
    ahead, _, shown = over_best(each, "chooser", MEMBERS, resampling, most)
    _, cascade, cascade_shown = over_best(each, "cascade", ALONE, resampling, most)
    mean_most = float(np.mean(most))
    over = paired_by(resampling, ahead.mean(axis=0), most=mean_most)
    stated = "; ".join(
        f"over {name} "
        f"{paired_by(resampling, (each['chooser'] - each[name]).mean(axis=0), most=mean_most)}"
        for name in (*ALONE, "best by family", "cascade", "oracle chooser")
    )
    wins = sum(one.verdict == "better" for one in cascade)
    rows = [
        row("chooser's utility minus that of the best single member under its policy, mean over"
            " the relative prices; against the others", "above 0, with the whole 95% interval;"
            " stated", f"{over} ({shown}); {stated}", over.verdict == "better"),
        row("relative prices at which the cascade's utility is above that of both models alone,"
            " under their policies and full, with the whole 95% interval",
            f">= {WANTED_PRICES} of {len(prices)}",
            f"{wins} of {len(prices)} ({cascade_shown})", wins >= WANTED_PRICES),
        *(corrected(measured, stops, refines, RELATIVE_PRICES.index(relative), prices, ratio)
          for stops, refines in WAYS for relative in CORRECTED_AT),
    ]  # fmt: skip
    table = [
        {
            "relative_price": relative,
            "token_price": price,
            "chooser_chooses": dict(measured.ways[place]),
            "escalated": float(np.mean(measured.escalated[place])),
            "methods": {
                method: numbers(measured.outcomes[method, place], each[method][place], resampling)
                for method in each
            },
        }
        for place, (relative, price) in enumerate(zip(RELATIVE_PRICES, prices, strict=True))
    ]
    return rows, {"prices": table}


def corrected(
    measured: Measured,
    stops: str,
    refines: str,
    place: int,
    prices: Sequence[float],
    ratio: float,
) -> dict[str, Any]:
    """Utility with the correction minus without, in tokens of the large model."""
    done, price = measured.corrections[stops, place], prices[place]
    cost = ratio if stops == "small" else 1.0
    before, after = (
        [in_large_tokens(getattr(one.held_out, when), cost) for one in done]
        for when in ("before", "outcome")
    )
    gained = np.mean(
        [utility(b, price) - utility(a, price) for a, b in zip(before, after, strict=True)], axis=0
    )
    resampling = resample(done[0].questions, draws=DRAWS, seed=0)
    found = paired_by(resampling, gained, most=most_utility(price, *before, *after))
    off = sum(one.correction.off for one in done)
    exact, tokens = (
        [float(np.mean([getattr(one, part) for one in of])) for of in (before, after)]
        for part in ("exact_match", "tokens")
    )
    extra = tokens[1] - tokens[0]
    handed = float(np.mean([(one.held_out.resumed > 0).mean() for one in done]))
    per_100 = 100 * (exact[1] - exact[0]) / extra if extra else 0.0
    return row(
        f"correction by a second model: the {stops} one stops, the {refines} one refines, relative"
        f" price {RELATIVE_PRICES[place]:g}, utility with - without, tokens of both charged",
        ">= 0 with the whole 95% interval, or it switches itself off and says so",
        f"{found}; EM {exact[0]:.4f} -> {exact[1]:.4f}, tokens {tokens[0]:.2f} -> {tokens[1]:.2f}:"
        f" {per_100:+.2f} EM per 100 extra tokens; {handed:.1%} of the answers refined"
        + (f"; OFF in {off} of {len(done)} seeds" if off else ""),
        found.verdict == "better" or off == len(done),
    )


def over_best(
    each: dict[str, Floats],
    method: str,
    others: Sequence[str],
    resampling: Resampling,
    most: Sequence[float],
) -> tuple[Floats, list[Paired], str]:
    """(prices, n) utility above that of the best of the others, what that proves, and in words."""
    means = np.array([each[name].mean(axis=1) for name in others])
    best = [others[k] for k in means.argmax(axis=0)]
    ahead = np.array([each[method][place] - each[name][place] for place, name in enumerate(best)])
    found = [
        paired_by(resampling, values, most=most_here)
        for values, most_here in zip(ahead, most, strict=True)
    ]
    shown = ", ".join(
        f"{relative:g}: {one} over {name}"
        for relative, one, name in zip(RELATIVE_PRICES, found, best, strict=True)
    )
    return ahead, found, shown


def numbers(
    outcomes: Sequence[Outcome], utilities: Floats, resampling: Resampling
) -> dict[str, Any]:
    """Of one method at one price."""
    return {
        "utility": float(utilities.mean()),
        "utility_ci95": list(
            mean_interval(resampling, utilities, low=float(utilities.min()) - 1, high=1.0)
        ),
        "exact_match": float(np.mean([one.exact_match for one in outcomes])),
        "tokens": float(np.mean([one.tokens for one in outcomes])),
    }


if __name__ == "__main__":
    main()
