"""Two models of the same questions: each alone, the better by task, a meta-model, a cascade.

    python -m runs.strategies.ensembles --small FOLDER --large FOLDER --ratio R

A token of the small model costs R of one of the large one; utilities, prices and tokens are in
tokens of the large one. Each model is served by a free PPO policy of its own. Everything is
trained on training questions and chosen on validation questions; utilities are means over the
held-out questions and three seeds, intervals come from a paired bootstrap over the questions.
Writes ``runs/results/ensembles.json``.
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
from rlbudget.errors import UserError
from rlbudget.evaluate.bootstrap import Resampling, resample
from rlbudget.evaluate.verdicts import Paired, mean_interval, most_utility, paired_by
from rlbudget.policy.folder import Policy
from rlbudget.policy.outcomes import RELATIVE_PRICES, Outcome, token_price_of, utility
from rlbudget.policy.replay_cascade import CascadeReplay, replay_cascade
from rlbudget.strategies.members import (
    WHEN,
    DecodedPair,
    better_by_task,
    chosen,
    decode_both,
    oracle_takes_large,
)
from rlbudget.strategies.meta_model import fit_meta_model
from rlbudget.traces.pairs import Pair, PairSplit, load_pair, pair_tables, split_pair
from rlbudget.traces.store import TraceWriter, digest, iter_traces, load_table
from runs.common import row, write_result

SEEDS = (0, 1, 2)
DRAWS = 2000
MEMBERS = ("small", "large")
ALONE = (*MEMBERS, "small, full", "large, full")
WANTED_PRICES = 4


@dataclass(slots=True)
class Measured:
    """Held-out outcomes of every method: one a price, one a seed."""

    outcomes: dict[tuple[str, int], list[Outcome]] = field(default_factory=dict)
    times: dict[int, Counter[str]] = field(default_factory=dict)
    """when the meta-model chooses, by the place of the price"""
    escalated: dict[int, list[float]] = field(default_factory=dict)

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
    parser.add_argument("--small", type=Path, required=True, help="traces of the small model")
    parser.add_argument("--large", type=Path, required=True, help="traces of the large model")
    parser.add_argument(
        "--ratio", type=float, required=True, help="cost of a small model's token, in (0, 1]"
    )
    parser.add_argument(
        "--total-timesteps", type=int, help="of each training; by default as many as suit"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        try:
            folders = of_common_questions(args.small, args.large, args.ratio, scratch)
            split = split_pair(load_pair(*folders, ratio=args.ratio), seed=0)
        except UserError as error:
            parser.error(str(error))
        prices = [token_price_of(relative, split.train.large) for relative in RELATIVE_PRICES]
        measured = Measured()
        for seed in SEEDS:
            members = trained(folders, split.train, scratch, seed, args.total_timesteps)
            measure(measured, split, members, prices, seed, args.total_timesteps)
            print(f"seed {seed}", file=sys.stderr, flush=True)
        rows, details = compared(measured, split.held_out, prices)
        write_result(
            "ensembles", rows,
            reproduce="python -m runs.strategies.ensembles --small FOLDER --large FOLDER"
            f" --ratio {args.ratio:g}",
            seeds=list(SEEDS), ratio=args.ratio,
            traces_digest={name: digest(own) for name, own in zip(MEMBERS, folders, strict=True)},
            held_out_questions=len(np.unique(split.held_out.question_ids)), **details,
        )  # fmt: skip


def of_common_questions(small: Path, large: Path, ratio: float, scratch: Path) -> tuple[Path, Path]:
    """The folders themselves, or copies without the questions that only one of them holds: then
    each is split as the pair is."""  # fmt: skip
    tables = [load_table(folder) for folder in (small, large)]
    common = set(pair_tables(*tables, ratio=ratio).question_ids.tolist())
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
    folders: tuple[Path, Path], train: Pair, scratch: Path, seed: int, steps: int | None
) -> tuple[Policy, Policy]:
    """A free policy for each member.

    That of the small one is trained for its own relative prices and for those that the large one's
    are for it: what it is served at here.
    """
    low, high = (relative / float(train.large.full_tokens.mean())
                 for relative in RELATIVE_PRICE_RANGE)  # fmt: skip
    own_low, own_high = (relative / float(train.small.full_tokens.mean())
                         for relative in RELATIVE_PRICE_RANGE)  # fmt: skip
    ranges = (
        (min(own_low, train.ratio * low), max(own_high, train.ratio * high)),
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
    split: PairSplit,
    members: tuple[Policy, Policy],
    prices: Sequence[float],
    seed: int,
    steps: int | None,
) -> None:
    """One seed: fit what chooses, replay everything on the held-out questions."""
    small, large = members
    cascade = train_cascade(
        split.train,
        split.validation,
        PPOConfig(seed=seed, total_timesteps=steps),
        large=large,
    ).cascade
    train, validation, held_out = (
        decode_both(part, prices, small=small, large=large)
        for part in (split.train, split.validation, split.held_out)
    )
    full = decode_both(split.held_out, prices)
    models = [fit_meta_model(train, validation, when, seed=seed) for when in WHEN]
    for place, price in enumerate(prices):
        here = held_out[place]
        for names, decoded in ((MEMBERS, here), (ALONE[2:], full[place])):
            for name, outcome in zip(names, decoded.options("before"), strict=True):
                into.keep(name, place, outcome)
        by_task = better_by_task([train[place], validation[place]])
        into.keep("better by task", place, chosen(here, by_task.takes_large(split.held_out)))
        worth = [mean_utility(validation[place], model) for model in models]
        model = models[int(np.argmax(worth))]
        into.times.setdefault(place, Counter())[model.when] += 1
        into.keep("meta-model", place, chosen(here, model.takes_large(here), model.when))
        done: CascadeReplay = replay_cascade(cascade, split.held_out, price, here.large.outcome)
        into.escalated.setdefault(place, []).append(float(done.escalated.mean()))
        into.keep("cascade", place, done.outcome)
        into.keep("oracle chooser", place, chosen(here, oracle_takes_large(here)))


def mean_utility(decoded: DecodedPair, model: Any) -> float:
    """Of a meta-model's choices."""
    outcome = chosen(decoded, model.takes_large(decoded), model.when)
    return float(utility(outcome, decoded.token_price).mean())


def compared(
    measured: Measured, held_out: Pair, prices: Sequence[float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows, and the numbers of every method at every price.

    A single member is the best of its kind in hindsight, at each price: what it is compared with
    is not to be had by choosing.
    """
    resampling = resample(held_out.question_ids, draws=DRAWS, seed=0)
    each = {method: measured.utilities(method, prices) for method in measured.methods()}
    most = [measured.most(place, price) for place, price in enumerate(prices)]
    meta, _, meta_shown = over_best(each, "meta-model", MEMBERS, resampling, most)
    _, cascade, cascade_shown = over_best(each, "cascade", ALONE, resampling, most)
    over = paired_by(resampling, meta.mean(axis=0), most=float(np.mean(most)))
    wins = sum(one.verdict == "better" for one in cascade)
    rows = [
        row("meta-model's utility minus that of the best single member under its policy, mean over"
            " the relative prices", "above 0, with the whole 95% interval",
            f"{over} ({meta_shown})", over.verdict == "better"),
        row("relative prices at which the cascade's utility is above that of both models alone,"
            " under their policies and full, with the whole 95% interval",
            f">= {WANTED_PRICES} of {len(prices)}",
            f"{wins} of {len(prices)} ({cascade_shown})", wins >= WANTED_PRICES),
    ]  # fmt: skip
    table = [
        {
            "relative_price": relative,
            "token_price": price,
            "meta_model_chooses": dict(measured.times[place]),
            "escalated": float(np.mean(measured.escalated[place])),
            "methods": {
                method: numbers(measured.outcomes[method, place], each[method][place], resampling)
                for method in each
            },
        }
        for place, (relative, price) in enumerate(zip(RELATIVE_PRICES, prices, strict=True))
    ]
    return rows, {"prices": table}


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
