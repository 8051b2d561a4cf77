"""`rlbudget record --ray`: the shards of a recording as tasks of Ray Data.

A thin driver: each task is the command itself with ``--shard I/N``, so whatever holds of shards
holds here. A worker that is killed is started again and goes on with its shard; when the driver is
killed, the same command goes on with all of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from rlbudget.errors import UserError, missing_extra

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
try:
    import ray
    import ray.data
    import ray.exceptions
except ImportError as missing:
    raise missing_extra("ray", "ray") from missing


class Shardable(Protocol):
    """The arguments of a command that takes ``--shard``, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def execute(self) -> None:
        """Run it."""


Answer = tuple[int, str]
"""a shard, and what was wrong with it, "" for nothing"""


class Recorder:
    """An actor: runs the command for the shards it is given."""

    def __init__(self, command: Shardable) -> None:
        self._command = command

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Shards (place, n) -> place and problem of each."""
        rows = zip(batch["place"].to_pylist(), batch["n"].to_pylist(), strict=True)
        found = [(place, record_shard(self._command, place, n)) for place, n in rows]
        places, problems = zip(*found, strict=True)
        return pa.table({"place": pa.array(places), "problem": pa.array(problems, pa.string())})


def record_shard(command: Shardable, place: int, n: int) -> str:
    """Run the command on one shard here; what was wrong, "" for nothing."""
    try:
        replace(command, shard=f"{place}/{n}").execute()
    except UserError as mistake:
        return str(mistake)
    except (OSError, RuntimeError) as fault:  # the other shards go on
        return f"{type(fault).__name__}: {fault}"
    return ""


def record_over_ray(
    command: Shardable,
    n: int,
    *,
    address: str | None,
    workers: int,
    on_done: Callable[[int, int], None],
) -> list[Answer]:
    """Run a command with ``--shard I/N`` for all I on so many workers; the shards that went wrong.

    ``address`` is that of a cluster, None for one that is started here and ends with this. Raises
    ``UserError`` where no cluster answers.
    """
    with _cluster(address, workers):
        rows = [{"place": place, "n": n} for place in range(1, n + 1)]
        # A block a shard, or one actor would get them all; and a core is left for Ray itself,
        # or a pool on every core waits for ever.
        shards = ray.data.from_items(rows, override_num_blocks=n)
        cpus, gpus = (ray.cluster_resources().get(name, 0.0) for name in ("CPU", "GPU"))
        done = shards.map_batches(
            Recorder,
            fn_constructor_kwargs={"command": command},
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=max(0.01, min(1.0, (cpus - 1) / workers)),
            num_gpus=min(1.0, gpus / workers) if gpus else None,
        )
        answers: list[Answer] = []
        on_done(0, n)
        try:
            for row in done.iter_rows():
                answers.append((int(row["place"]), str(row["problem"])))
                on_done(len(answers), n)
        except ray.exceptions.RayError as error:
            said = " ".join(str(error).split())[-300:]
            raise UserError(f"Ray gave up after {len(answers)} of {n} shards, which are kept:"
                            f" {said}") from error  # fmt: skip
    return sorted(answer for answer in answers if answer[1])


@contextmanager
def _cluster(address: str | None, workers: int) -> Iterator[None]:
    try:
        if address is None:
            ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False,
                     logging_level="ERROR")  # fmt: skip
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address or ''}: no cluster answers: {error}") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()
