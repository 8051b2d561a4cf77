"""The loop closed once: serve, audits and feedback, export, retrain, contest, promote, better.

    python -m runs.strategies.online_loop [--first 60] [--requests 2000] [--fresh 400]

A policy trained on few questions is served by a gateway with the embedded model inside; 60% of the
requests are audited, and users tell the right answers by ``POST /v1/feedback``. What its store
exports trains the policy on (``rlbudget store export``, ``rlbudget retrain``); both versions are
then replayed on questions that neither has seen. Beside it, what the record says of an arm that was
never run: the same policy at another price, replayed on the audits, against the truth. Writes
``runs/results/online_loop.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.cli.main import main as command
from rlbudget.decoding.record import record
from rlbudget.evaluate.verdicts import paired
from rlbudget.integrations.engine_settings import settings_for
from rlbudget.models import load_model
from rlbudget.policy.outcomes import full_stops, outcome, token_price_of
from rlbudget.policy.replay import replay
from rlbudget.serve.app import make_app
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.local import load
from rlbudget.serve.run import add_kept_parts
from rlbudget.serve.store.part import noting
from rlbudget.serve.store.reading import entries
from rlbudget.serve.store.store import opened
from rlbudget.strategies.feedback.registry import Registry
from rlbudget.strategies.feedback.retrain import contest
from rlbudget.strategies.plan import LogSettings, Plan
from rlbudget.tasks import load_task
from rlbudget.traces.store import load_table
from rlbudget.traces.table import TraceTable
from runs.common import row, write_result
from runs.integrations.toy_server import running

SEED = 0
SHARE = 0.6
RELATIVE_PRICE, OTHER = 0.1, 0.3
"""of the policy that is served, and of the arm that is not"""


@contextmanager
def serving(plan: Plan, store_file: Path) -> Iterator[tuple[str, Any]]:
    """A gateway with its store; its address."""
    store = opened(str(store_file))
    settings = noting(settings_for({"default": plan}, "embedded"), store)
    gateway = Gateway(settings)
    add_kept_parts(gateway, store)
    with running(make_app(gateway, [partial(load, "embedded", settings)]), lifespan="on") as url:
        yield url, store


def serve(plan: Plan, store_file: Path, n: int) -> dict[str, float]:
    """Questions through the gateway, and the right answers told."""
    task = load_task("embedded", n=n, seed=1)
    begun = time.monotonic()
    with serving(plan, store_file) as (url, store), httpx.Client(timeout=None) as client:
        for place, one in enumerate(task.questions):
            body = {"model": "embedded", "seed": place,
                    "messages": [{"role": "user", "content": one.question}]}  # fmt: skip
            found = client.post(f"{url}/chat/completions", json=body).raise_for_status().json()
            told = {"id": found["rlbudget"]["feedback_id"], "answer": one.target}
            client.post(f"{url}/feedback", json=told).raise_for_status()
            if place % 100 == 99:
                print(f"{place + 1} requests", file=sys.stderr, flush=True)
        store.writer.flush()
        known = entries(store.engine)
    return {"requests": len(known.decisions), "audited": len(known.audits),
            "told": len(known.outcomes), "seconds": time.monotonic() - begun}  # fmt: skip


def at(policy: Any, table: TraceTable, relative: float) -> dict[str, float]:
    """Exact match and tokens of a policy at a price, by replay."""
    played = replay(policy, table, token_price_of(relative, table)).outcome
    return {"exact_match": float(played.exact_match.mean()),
            "tokens": float(played.tokens.mean())}  # fmt: skip


def off_policy(policy: Any, audits: TraceTable, fresh: TraceTable) -> dict[str, Any]:
    """An arm that was not run: its loss and tokens on the audits, and on fresh questions."""
    price = token_price_of(RELATIVE_PRICE, audits) * OTHER / RELATIVE_PRICE
    found: dict[str, Any] = {}
    for name, table in (("record", audits), ("truth", fresh)):
        played = replay(policy, table, price).outcome
        full = outcome(table, full_stops(table))
        lost = paired(full.exact_match - played.exact_match, table.question_ids, most=1.0)
        found[name] = {"loss": lost.difference, "interval": lost.interval,
                       "tokens": float(played.tokens.mean()),
                       "error": float(np.std(played.tokens) / len(table) ** 0.5)}  # fmt: skip
    return found


def main() -> None:
    """Run the loop, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--first", type=int, default=60)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--fresh", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("embedded")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        record(model, load_task("embedded", n=args.first, seed=0), scratch / "first", seed=0)
        record(model, load_task("embedded", n=args.fresh, seed=2), scratch / "fresh", seed=2)
        train_on(scratch / "first", scratch / "run", seed=SEED)
        registry = Registry(scratch / "registry")
        registry.promote(registry.add(policy_of_run(scratch / "run")))
        before = registry.served_policy()
        first = load_table(scratch / "first")
        price = token_price_of(RELATIVE_PRICE, first)
        plan = Plan({"policy": before}, audit=LogSettings(None, SHARE))
        counts = serve(plan, scratch / "store.sqlite3", args.requests)
        command(["store", "export", str(scratch / "store.sqlite3"), "--out",
                 str(scratch / "new"), "--without", str(scratch / "first")])  # fmt: skip
        command(["retrain", str(scratch / "registry"), str(scratch / "new"), "--margin", "0.02"])
        after, fresh = registry.served_policy(), load_table(scratch / "fresh")
        promoted = registry.served() != 1
        newest = registry.policy(max(registry.versions()))
        held = contest(newest, before, fresh, seed=SEED)
        history = [f"{e.action} {e.version} {e.why}".strip() for e in registry.history()]
        arm = off_policy(before, load_table(scratch / "new"), fresh)
        details: dict[str, Any] = {"before": at(before, fresh, RELATIVE_PRICE),
                   "after": at(after, fresh, RELATIVE_PRICE), "price": price}  # fmt: skip
    rows = rows_of(args, counts, promoted, held, history[-1], details, arm)
    write_result(
        "online_loop", rows, seeds=[SEED], counts=counts, history=history, off_policy=arm,
        reproduce="python -m runs.strategies.online_loop", **details,
    )  # fmt: skip


def rows_of(
    args: argparse.Namespace, counts: dict[str, float], promoted: bool, held: Any, last: str,
    details: dict[str, Any], arm: dict[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    before, after = details["before"], details["after"]
    guess, truth = arm["record"], arm["truth"]
    low, high = guess["interval"]
    near = abs(guess["tokens"] - truth["tokens"])
    error = 2 * float(np.hypot(guess["error"], truth["error"]))
    return [
        row("the loop once, by one script: serve, audits and feedback, export, retrain, contest",
            "all steps, promoted by the contest",
            f"{counts['requests']:.0f} requests served, {counts['audited']:.0f} audited,"
            f" {counts['told']:.0f} told by feedback; {last}", promoted),
        row(f"the retrained policy on {args.fresh} fresh questions, less the one before"
            f" ({args.first} questions): utility, mean over the prices", "better",
            f"{held}; at relative price {RELATIVE_PRICE:g} exact match"
            f" {100 * before['exact_match']:.1f} -> {100 * after['exact_match']:.1f}%, tokens"
            f" {before['tokens']:.0f} -> {after['tokens']:.0f}",
            held.verdict == "better"),
        row("an arm that was not run (the served policy at three times the price), from the"
            " audits: exact match lost and tokens, against fresh questions",
            "the loss within its 95% interval, tokens within 2 standard errors",
            f"loss {guess['loss']:+.3f} [{low:+.3f}, {high:+.3f}], there {truth['loss']:+.3f};"
            f" tokens {guess['tokens']:.0f}, there {truth['tokens']:.0f} (2 standard errors:"
            f" {error:.0f})", low <= truth["loss"] <= high and near <= error),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
