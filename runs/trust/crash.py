"""SIGKILL at every step of every writer, and several writers of one folder at once.

After each kill what is there is the old or the new state, and the next writer goes on, nothing
deleted by hand. Writers at once lose nothing and mix nothing, and who may not write is told so.

    python -m runs.trust.crash [--rounds 50 --kills 0 --seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlbudget.agents.config import PPOConfig
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.ppo import train
from rlbudget.errors import UserError
from rlbudget.strategies.feedback.journal import read_journal
from rlbudget.strategies.feedback.log import append
from rlbudget.strategies.feedback.registry import Registry, load_serving
from rlbudget.traces.interchange import import_jsonl, write_jsonl
from rlbudget.traces.store import existing_ids, load_table, load_traces
from rlbudget.traces.table import split_questions
from rlbudget.traces.trace import Checkpoint, Exit, Final, Trace
from runs.common import row, write_part
from runs.trust.killed import outlived
from runs.trust.kinds import KINDS, policy_of

TINY = PPOConfig(total_timesteps=8 * 256, n_envs=64, n_steps=4, batch_size=128, evaluate_every=4)


@dataclass(frozen=True, slots=True)
class Writer:
    """Something that writes, and how to tell its states."""

    prepare: Callable[[Path], None]
    """make the old state"""
    write: Callable[[Path], None]
    state: Callable[[Path], Any]
    """what is there; raises where nothing is"""
    again: Callable[[Path], None]
    """the next writer; raises where it cannot go on"""


def trace(number: int, name: str = "t") -> Trace:
    """A decode whose late stops are right."""
    points = tuple(
        Checkpoint(8 * k, {"entropy_mean": 1 / k + number % 3}, Exit("1", int(k > 2), 2))
        for k in range(1, 5)
    )
    return Trace(f"{name}{number}", f"q{number}", "sums", f"1 + {number}", "1", "m", number,
                 Final("1", 1, 40, 2), points)  # fmt: skip


def _kept(name: str) -> Writer:
    kind = KINDS[name]

    def litter_free(path: Path) -> None:
        kind.write(path, 3)
        beside = [one.name for one in path.parent.iterdir()]
        apart = path.with_name("apart") / path.name
        kind.write(apart, 3)
        if beside != [path.name] or kind.read(path) != kind.read(apart):
            raise RuntimeError(f"it is another one, or there is left beside it: {beside}")

    return Writer(
        lambda path: kind.write(path, 1), lambda path: kind.write(path, 2), kind.read, litter_free
    )


def _served(path: Path) -> Any:
    """What is served, and what a rollback would serve: tried on a copy."""
    copy = path.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy)
    try:
        back: Any = Registry(copy).rollback()
    except UserError:
        back = None
    finally:
        shutil.rmtree(copy)
    serving = load_serving(path)
    return serving.version, serving.policy.digest, back


def _registry() -> Writer:
    def prepare(path: Path) -> None:
        for seed in (1, 2):
            KINDS["registry"].write(path, seed)

    def again(path: Path) -> None:
        before, registry = Registry(path).versions(), Registry(path)
        registry.promote(registry.add(policy_of(9)))
        if registry.versions() != [*before, before[-1] + 1] or registry.journal().skipped:
            raise RuntimeError("a version is lost, or a torn line stays")

    return Writer(prepare, lambda path: KINDS["registry"].write(path, 3), _served, again)


def _rollback() -> Writer:
    made = _registry()
    return Writer(made.prepare, lambda path: print(end=str(Registry(path).rollback())[:0]),
                  _served, made.again)  # fmt: skip


def _log() -> Writer:
    def lines(path: Path) -> list[Any]:
        whole = path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line)["n"] for line in whole]

    def again(path: Path) -> None:
        before = lines(path)
        append(path, {"n": 9})
        if lines(path) != [*before, 9]:
            raise RuntimeError("a line is lost")

    return Writer(lambda path: _ignore(append(path, {"n": 1})),
                  lambda path: _ignore(append(path, {"n": 2})), lines, again)  # fmt: skip


def _ignore(value: object) -> None:
    del value


def _imported(file: Path) -> Writer:
    def state(path: Path) -> list[str]:
        there = path.is_dir() and any(path.glob("part-*"))
        return sorted(one.trace_id for one in load_traces(path)) if there else []

    def again(path: Path) -> None:
        if not state(path):
            import_jsonl(file, path)
        if len(state(path)) != 40 or len(list(path.parent.iterdir())) > 1:
            raise RuntimeError(f"left: {sorted(p.name for p in path.parent.iterdir())}")

    return Writer(lambda path: None, lambda path: _ignore(import_jsonl(file, path)), state, again)


def _trained(traces: Path) -> Writer:
    split = split_questions(load_table(traces), seed=0)

    def run(path: Path) -> None:
        train(split.train, split.validation, TINY, path, resume=True)

    def state(path: Path) -> str:
        """That of the run once it is resumed: killed or not, it ends with the same policy."""
        run(path)
        return policy_of_run(path).digest

    return Writer(lambda path: None, run, state, run)


def killed(
    name: str, writer: Writer, scratch: Path, kills: int, seed: int
) -> tuple[int, Counter[str]]:
    """Kill it at every step, or at ``kills`` drawn by the seed; how many kills, and the faults."""
    place, faults, n = scratch / "home" / name, Counter[str](), 0

    def fresh() -> None:
        shutil.rmtree(place.parent, ignore_errors=True)
        place.parent.mkdir(parents=True)
        writer.prepare(place)

    fresh()
    old = _said(writer, place)
    fresh()
    writer.write(place)
    new = _said(writer, place)
    fresh()
    steps = range(100_000)
    chosen: Sequence[int] = steps
    if kills:
        most = _length(writer, place, fresh)
        chosen = sorted(random.Random(seed).sample(range(most), min(kills, most)))
    for step in chosen:
        fresh()
        if outlived(lambda: writer.write(place), step):
            break
        n += 1
        found = _said(writer, place)
        if found not in (old, new):
            faults[f"neither old nor new: {str(found)[:100]}"] += 1
        try:
            writer.again(place)
        except Exception as error:
            faults[f"the next writer failed: {error!r:.120}"] += 1
    return n, faults


def _length(writer: Writer, place: Path, fresh: Callable[[], None]) -> int:
    """About how many steps it has."""
    low, high = 0, 16
    while True:
        fresh()
        if outlived(lambda: writer.write(place), high):
            break
        low, high = high, 2 * high
    while high - low > max(1, low // 10):
        middle = (low + high) // 2
        fresh()
        if outlived(lambda: writer.write(place), middle):
            high = middle
        else:
            low = middle
    return max(low, 1)


def _said(writer: Writer, place: Path) -> Any:
    try:
        return writer.state(place)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}" if place.exists() else "nothing there"


def at_once(works: Sequence[Callable[[], None]]) -> list[str]:
    """Each in a process of its own, begun together: done, told (``UserError``) or a fault."""
    begin = time.time() + 0.02
    children = []
    for work in works:
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            said = "done"
            try:
                while time.time() < begin:
                    pass
                work()
            except UserError as error:
                said = f"told: {error}"
            except BaseException:
                said = "fault: " + traceback.format_exc()[-300:]
            os.write(writes, said.encode()[:4000])
            os._exit(0)
        os.close(writes)
        children.append((child, reads))
    ends = []
    for child, reads in children:
        with os.fdopen(reads, "rb") as pipe:
            ends.append(pipe.read().decode())
        os.waitpid(child, 0)
    return ends


def together(name: str, rounds: int, scratch: Path) -> Counter[str]:
    """Three writers and a reader of one kind at once, ``rounds`` times; the faults."""
    kind, faults = KINDS[name], Counter[str]()
    grown = name == "registry"
    whole = []
    for seed in (1, 2, 3):
        kind.write(scratch / f"alone {seed}" / name, seed)
        whole.append(kind.read(scratch / f"alone {seed}" / name))
    for turn in range(rounds):
        place = scratch / f"{name} {turn}" / name
        kind.write(place, 1)

        def read(place: Path = place) -> None:
            for _ in range(6):
                found = kind.read(place)
                if not grown and found not in whole:
                    raise RuntimeError("a mixture was read")

        writes = [lambda s=s, p=place: kind.write(p, s) for s in (1, 2, 3)]
        for end in at_once([*writes, read]):
            if end != "done":
                faults[end[:160]] += 1
        if grown:
            digests = {Registry(place).policy(v).digest for v in Registry(place).versions()[1:]}
            journal = read_journal(place / "history.jsonl")
            added = [event.version for event in journal.events if event.action == "added"]
            if len(digests) != 3 or added != [1, 2, 3, 4] or journal.skipped:
                faults["a version is lost"] += 1
        elif kind.read(place) not in whole:
            faults["what is left is a mixture"] += 1
        shutil.rmtree(place.parent)
    return faults


def one_wins(
    work: Callable[[Path], None], check: Callable[[Path], bool], rounds: int, scratch: Path
) -> Counter[str]:
    """Three at once of which one may write, ``rounds`` times: the others are told; the faults."""
    faults = Counter[str]()
    for turn in range(rounds):
        place = scratch / f"one {turn}" / "kept"
        ends = at_once([partial(work, place)] * 3)
        done = ends.count("done")
        told = sum(end.startswith("told: ") for end in ends)
        if done < 1 or done + told < 3:
            faults[f"{done} done, {told} told: {max(ends)[:120]}"] += 1
        elif not check(place):
            faults["something is lost or mixed"] += 1
        shutil.rmtree(place.parent)
    return faults


def rows_of(rounds: int, kills: int, seed: int, *, trainings: int = 24) -> Any:
    """The two rows, and what came of each writer."""
    came: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        file = scratch / "traces.jsonl"
        write_jsonl(file, [trace(n) for n in range(40)])
        import_jsonl(file, scratch / "traces")
        writers = {name: _kept(name) for name in KINDS if name != "registry"}
        writers |= {"registry": _registry(), "registry rollback": _rollback(),
                    "decision log": _log(), "import": _imported(file),
                    "train": _trained(scratch / "traces")}  # fmt: skip
        for name, writer in writers.items():
            drawn = trainings if name == "train" else kills
            n, faults = killed(name, writer, scratch, drawn, seed)
            came[f"{name}: kills"] = {"tried": n, "faults": dict(faults)}
            print(name, n, dict(faults), flush=True)
        for name in KINDS:
            faults = together(name, rounds, scratch)
            came[f"{name}: at once"] = {"tried": rounds, "faults": dict(faults)}
            print(name, "at once", dict(faults), flush=True)
        split = split_questions(load_table(scratch / "traces"), seed=0)
        singles: dict[str, tuple[Callable[[Path], None], Callable[[Path], bool]]] = {
            "import": (lambda path: _ignore(import_jsonl(file, path)),
                       lambda path: len(existing_ids(path)) == 40),
            "train": (lambda path: _ignore(train(split.train, split.validation, TINY, path)),
                      lambda path: bool(policy_of_run(path).digest)),
        }  # fmt: skip
        for name, (work, check) in singles.items():
            faults = one_wins(work, check, rounds, scratch)
            came[f"{name}: at once"] = {"tried": rounds, "faults": dict(faults)}
            print(name, "at once", dict(faults), flush=True)
    bad = {what: sum(sum(one["faults"].values()) for n, one in came.items() if n.endswith(what))
           for what in ("kills", "at once")}  # fmt: skip
    tried = {what: sum(one["tried"] for name, one in came.items() if name.endswith(what))
         for what in ("kills", "at once")}  # fmt: skip
    return [
        row("concurrent writers of every kind of folder",
            f"{rounds} rounds each: nothing lost, nothing mixed, the loser told",
            f"{bad['at once']} faults in {tried['at once']} rounds of {len(KINDS) + 2} kinds",
            bad["at once"] == 0),
        row(f"SIGKILL at the steps of {len(writers)} writers"
            + (f", {trainings} drawn of a training" if trainings else ""),
            "the old or the new state, never neither; no lock to delete by hand",
            f"{bad['kills']} faults in {tried['kills']} kills", bad["kills"] == 0),
    ], came  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="of writers at once, a kind")
    parser.add_argument("--kills", type=int, default=0, help="steps drawn a writer; 0 for all")
    parser.add_argument("--trainings", type=int, default=24, help="steps drawn of a training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, came = rows_of(args.rounds, args.kills, args.seed, trainings=args.trainings)
    write_part("crash", "folders", rows, seed=args.seed, came=came)


if __name__ == "__main__":
    main()
