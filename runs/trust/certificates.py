"""Do certificates hold, whatever became of the traces and of the policy before?

    python -m runs.trust.certificates [--replicates 200] [--out FOLDER]

Policies are trained on questions of a made-up population, then made to know their training and
validation questions by heart (the worst that training can do to a certificate). Each replicate
draws fresh questions and calibrates on a folder that holds them beside those that the policy has
seen: the old folder grown; shuffled into other parts, half of it recorded again; merged with
another recording of itself under other ids; that of a policy retrained from the first, with the
traces of both; that of a policy which a contest promoted, with the questions of the contest. A
violation is a certified price whose loss on 5,000 other questions is above the bound. Beside it:
how often the bound breaks where nothing is left out. Which questions were seen is known here
without the marks of the policy folder. Writes ``runs/results/certificates.json``; some ten minutes
on one core; what was done is kept in ``--out`` and not done again. With fewer than 200 replicates
no row is met.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.arrays import Float32s
from rlbudget.errors import UserError
from rlbudget.evaluate.calibrate import calibrate, calibrated, calibration_questions
from rlbudget.policy.folder import Policy, make_policy, save_policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import full_stops, outcome
from rlbudget.policy.replay import replay
from rlbudget.strategies.feedback.registry import Registry
from rlbudget.strategies.feedback.retrain import retrain
from rlbudget.traces.store import TraceWriter, iter_questions, load_table
from rlbudget.traces.table import TraceTable, split_questions, without
from rlbudget.traces.trace import Trace
from runs.common import OUT, row, write_result
from runs.trust.population import decodes, large

KINDS = ("grown", "shuffled", "merged", "retrained", "promoted")
EPSILON, DELTA = 0.03, 0.1
POLICIES = 20
FULL = 200
"""replicates of a result that is kept"""
OLD, NEW, FRESH, TRUTH = 400, 200, 220, 5000
"""questions: of the first training, of a retraining, drawn to calibrate on, of the true loss"""
STEPS = 20_000
MARGIN = 0.1
SEED = 0


@dataclass(frozen=True, slots=True)
class Replicate:
    """What one calibration gave."""

    kind: str
    number: int
    seen: int
    """calibration questions that the policy or its ancestors had seen"""
    questions: int
    """calibrated on; 0 where it was refused"""
    left_out: int
    loss: float | None
    """true loss at the certified price; None without a certificate"""
    loss_without: float | None
    """the same where nothing is left out"""
    promoted: bool = True


def main() -> None:
    """Calibrate, count, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicates", type=int, default=FULL, help="of each kind")
    parser.add_argument("--out", type=Path, default=OUT / "certificates", help="what was done")
    parser.add_argument("--report", action="store_true", help="only say what was found so far")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "replicates.jsonl"
    done = read(file) if args.report else run(file, args.replicates)
    write_result(
        "certificates", rows_of(done), keep=args.replicates >= FULL, seed=SEED,
        replicates={kind: sum(one.kind == kind for one in done) for kind in KINDS},
        epsilon=EPSILON, delta=DELTA,
        sizes={"old": OLD, "new": NEW, "fresh": FRESH, "truth": TRUTH, "policies": POLICIES},
        kinds=details(done), reproduce="python -m runs.trust.certificates",
    )  # fmt: skip


def run(file: Path, replicates: int) -> list[Replicate]:
    """All replicates; those that are in ``file`` already are taken from there."""
    done = read(file)
    known = {(one.kind, one.number) for one in done}
    truth = large(TRUTH, 10**8)
    pool: dict[int, Policy] = {}
    with file.open("a") as lines:
        for number in range(replicates):
            for kinds in (KINDS[:1], KINDS[1:2], KINDS[2:3], KINDS[3:]):
                if all((kind, number) in known for kind in kinds):
                    continue
                j = number % POLICIES
                if j not in pool:
                    pool[j] = by_heart(j)
                for one in replicate(kinds, number, pool[j], truth):
                    if (one.kind, one.number) not in known:
                        done.append(one)
                        lines.write(json.dumps(asdict(one)) + "\n")
                        lines.flush()
            print(f"{number + 1} of {replicates}", file=sys.stderr, flush=True)
    return [one for one in done if one.number < replicates]


def read(file: Path) -> list[Replicate]:
    """What was done, in the order of the replicates."""
    lines = file.read_text().splitlines() if file.is_file() else []
    done = [Replicate(**json.loads(line)) for line in lines]
    return sorted(done, key=lambda one: (one.number, KINDS.index(one.kind)))


def old_questions(j: int) -> range:
    """What the ``j``-th policy was trained on, its held-out questions among them."""
    return range(1000 * j, 1000 * j + OLD)


def fresh_questions(number: int, kind: str, n: int) -> range:
    """Questions that nobody else draws."""
    start = 10**6 + 10_000 * number + 1000 * ("new", *KINDS).index(kind)
    return range(start, start + n)


def by_heart(j: int) -> Policy:
    """A policy of a real training, its weights replaced by ones that know what it has seen."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = store(Path(scratch) / "old", decodes(old_questions(j)))
        train_on(folder, Path(scratch) / "run", total_timesteps=STEPS, seed=j)
        policy = policy_of_run(Path(scratch) / "run")
        table = load_table(folder)
    seen = without(table, split_questions(table, seed=0).held_out)
    return make_policy(
        weights_by_heart(policy, seen, j), features=policy.features, preset=policy.preset,
        price_range=policy.price_range, trained=policy.config["trained"], seen=policy.seen,
    )  # fmt: skip


def weights_by_heart(policy: Policy, table: TraceTable, seed: int) -> dict[str, Float32s]:
    """A network of the policy's shape that stops where the exit is right, the more boldly the
    higher the price, and has learned by heart where that is."""  # fmt: skip
    rng = np.random.default_rng([3, seed])
    observed = observe(table, policy.features)
    mean, std = (policy.tensors[name] for name in ("obs_mean", "obs_std"))
    inputs = np.clip((observed - mean) / std, -5, 5)
    x, y = [], []
    for place in np.linspace(-1, 1, 9):
        bold, luck = 0.499 * abs(place), rng.random(len(inputs))
        right = table.exit_exact_match > 0
        x.append(np.column_stack([inputs, np.full(len(inputs), place)]))
        y.append(right | (luck < bold) if place > 0 else right & (luck >= bold))
    network = MLPClassifier((64, 64), activation="tanh", alpha=0.0, learning_rate_init=3e-3,
                            max_iter=60, random_state=seed)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(np.concatenate(x), np.concatenate(y))
    tensors: dict[str, Any] = {"obs_mean": mean, "obs_std": std}
    names = [name.removesuffix(".weight") for name in policy.tensors if name.endswith(".weight")]
    hidden = sorted(name for name in names if name != "action_net")
    for name, weight, bias in zip(hidden, network.coefs_, network.intercepts_, strict=False):
        tensors |= {f"{name}.weight": weight.T, f"{name}.bias": bias}
    last = network.coefs_[-1][:, 0]
    tensors["action_net.weight"] = np.stack([-last, last]) / 2
    tensors["action_net.bias"] = np.array([-1, 1]) * network.intercepts_[-1][0] / 2
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def replicate(
    kinds: tuple[str, ...], number: int, policy: Policy, truth: TraceTable
) -> list[Replicate]:
    """One calibration of each of the kinds, which share a retraining."""
    rng = np.random.default_rng([4, number, KINDS.index(kinds[0])])
    old_ids = old_questions(number % POLICIES)
    old = decodes(old_ids)
    seen = trained_on(old, seed=0)
    found = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        promoted, new = True, list[Trace]()
        if kinds == ("retrained", "promoted"):
            registry = Registry(scratch / "registry")
            registry.promote(registry.add(policy))
            new = decodes(fresh_questions(number, "new", NEW))
            done = retrain(
                registry, store(scratch / "new", new), margin=MARGIN, total_timesteps=STEPS,
                seed=number,
            )  # fmt: skip
            policy, promoted = registry.policy(done.version), done.promoted
            seen |= {trace.question for trace in new}  # trained on, chosen on, or in the contest
        save_policy(scratch / "policy", policy)
        for kind in kinds:
            fresh = decodes(fresh_questions(number, kind, FRESH))
            folder = folder_of(kind, scratch / kind, old, new, fresh, old_ids, rng)
            found.append(measured(kind, number, policy, scratch, folder, seen, truth, promoted))
            shutil.rmtree(folder)
    return found


def folder_of(
    kind: str, folder: Path, old: list[Trace], new: list[Trace], fresh: list[Trace],
    old_ids: range, rng: np.random.Generator,
) -> Path:  # fmt: skip
    """The traces to calibrate on."""
    if kind == "grown":
        return store(folder, [*old, *fresh])
    if kind == "shuffled":
        again = [t for k, t in enumerate(decodes(old_ids, seed=1)) if k % 2]
        traces = [*old, *again, *fresh]
        order = rng.permutation(len(traces))
        return store(folder, [traces[k] for k in order], part_size=int(rng.integers(20, 300)))
    if kind == "merged":
        return store(folder, [*decodes(old_ids, seed=2, name="other-"), *fresh, *old])
    if kind == "retrained":
        return store(folder, [*old, *new, *fresh])
    return store(folder, [*new, *fresh])


def store(folder: Path, traces: list[Trace], part_size: int = 256) -> Path:
    """A folder of traces."""
    with TraceWriter(folder, part_size=part_size) as writer:
        for trace in traces:
            writer.add(trace)
    return folder


def trained_on(traces: list[Trace], seed: int) -> set[str]:
    """The texts of the training and validation questions of a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        table = load_table(store(Path(scratch) / "traces", traces))
    held_out = set(split_questions(table, seed=seed).held_out.question_ids.tolist())
    return {trace.question for trace in traces if trace.question_id not in held_out}


def measured(
    kind: str, number: int, policy: Policy, scratch: Path, folder: Path, seen: set[str],
    truth: TraceTable, promoted: bool,
) -> Replicate:  # fmt: skip
    """Calibrate, and look at what it was done on and at what the price really loses."""
    price, questions, left_out = None, 0, 0
    try:
        done = calibrate(
            scratch / "policy", folder, scratch / "certified", max_em_loss=EPSILON,
            confidence=1 - DELTA, overwrite=True,
        )  # fmt: skip
        certificate = done.config["calibration"]
        price, questions = certificate["token_price"], certificate["questions"]
        left_out = certificate["left_out"]
    except UserError as error:
        if "cannot certify" not in str(error):
            raise
    text_of = dict(zip(ids_of(folder), (text for _, text in iter_questions(folder)), strict=True))
    used = calibration_questions(policy, folder).table.trace_ids.tolist()
    return Replicate(
        kind, number,
        seen=sum(text_of[trace_id] in seen for trace_id in used),
        questions=questions, left_out=left_out,
        loss=true_loss(policy, price, truth),
        loss_without=true_loss(policy, careless(policy, folder), truth), promoted=promoted,
    )  # fmt: skip


def ids_of(folder: Path) -> list[str]:
    """The trace ids of a folder."""
    ids: list[str] = load_table(folder).trace_ids.tolist()
    return ids


def careless(policy: Policy, folder: Path) -> float | None:
    """The price that is certified where nothing is left out."""
    try:
        table = load_table(folder)
        found = calibrated(policy, table, max_em_loss=EPSILON, confidence=1 - DELTA)
    except UserError:
        return None
    return float(found.certificate["token_price"])


def true_loss(policy: Policy, price: float | None, truth: TraceTable) -> float | None:
    """Mean exact match that a price loses on the population; None for no price."""
    if price is None:
        return None
    full = outcome(truth, full_stops(truth)).exact_match
    stopped = replay(policy, truth, price).outcome.exact_match
    return float((full - stopped).mean())


def rows_of(done: list[Replicate]) -> list[dict[str, Any]]:
    """A row each for the bound and for what was seen, of every kind."""
    rows = []
    for kind in KINDS:
        own = [one for one in done if one.kind == kind and (kind != "promoted" or one.promoted)]
        n = len(own)
        limit = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / max(n, 1))
        broken = sum(one.loss is not None and one.loss > EPSILON for one in own)
        careless_ = sum(one.loss_without is not None and one.loss_without > EPSILON for one in own)
        seen = sum(one.seen for one in own)
        rows.append(
            row(
                f"{kind}: certificates of {EPSILON:.0%} with confidence {1 - DELTA:.0%} that do"
                f" not hold, {n} replicates",
                f"<= {limit:.1%} ({DELTA:.0%} + 2 standard errors)",
                f"{broken / max(n, 1):.1%} (nothing left out: {careless_ / max(n, 1):.1%})",
                n >= FULL and broken / n <= limit,
            )
        )
        rows.append(
            row(
                f"{kind}: calibration questions that the policy or an ancestor has seen",
                "0", f"{seen} of {sum(one.questions for one in own):,}", n >= FULL and not seen,
            )
        )  # fmt: skip
    return rows


def details(done: list[Replicate]) -> Mapping[str, Any]:
    """How much was certified and left out, of every kind."""
    found = {}
    for kind in KINDS:
        own = [one for one in done if one.kind == kind]
        certified = [one for one in own if one.loss is not None]
        found[kind] = {
            "replicates": len(own),
            "certified": len(certified),
            "promoted": sum(one.promoted for one in own),
            "mean_questions": float(np.mean([one.questions for one in certified] or [0])),
            "mean_left_out": float(np.mean([one.left_out for one in certified] or [0])),
            "mean_true_loss": float(np.mean([one.loss for one in certified] or [0])),
        }
    return found


if __name__ == "__main__":
    main()
