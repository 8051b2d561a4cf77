"""Experiments as a part of a gateway: each request gets its arm, and losing arms are stopped.

What runs is read from the store every few seconds, so all gateways of a store draw the same arms
(``strategies.experiments.design.draw``) and obey the same end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson
from sqlalchemy import func, select

from rlbudget.errors import UserError
from rlbudget.serve.experiments.kept import begin, experiments, judge, running
from rlbudget.serve.experiments.status import with_usual
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.hooks import Arrival, Steering
from rlbudget.serve.store.reading import prune
from rlbudget.serve.store.store import Assignment, Store
from rlbudget.serve.store.tables import AUDITS, DECISIONS, OUTCOMES
from rlbudget.strategies.experiments.design import Arm, Design, Drawn, Experiment, draw

_EVERY = 2.0
"""seconds between two looks at what runs"""
_JUDGE = 10.0
"""seconds between two looks at the results, where anything came in"""
_RARELY = 50
"""times as long as a look at the results took is waited for the next"""
_PRUNE = 3600.0

_log = logging.getLogger("rlbudget.serve")


@dataclass(eq=False)
class Experimenting:
    """Draws arms; made once a gateway."""

    gateway: Gateway
    store: Store
    declared: Design | None = None
    """by the plan: it is started where the store does not know it"""
    keep_days: float | None = None
    every: float = _EVERY
    judge_every: float = _JUDGE
    now: Experiment | None = None
    """the one that runs, or whose promoted arm holds"""
    fault: str | None = None
    """why the arms cannot be served, if they cannot"""
    _secret: bytes = b""
    _seen: tuple[int, ...] = ()
    _work: asyncio.Future[None] | None = None

    def part(self) -> Steering:
        """For ``Gateway.steering``, after the store's own, which is closed last."""
        return Steering("experiments", before=self.before, running=self.running, waits=False)

    async def before(self, arrival: Arrival) -> Arrival:
        """Give a request its arm, where it takes part."""
        experiment = self.now
        if experiment is None or not self._takes_part(arrival, experiment.design):
            return arrival
        if experiment.status == "promoted":
            name = next(n for n, one in experiment.arms.items() if one.status == "promoted")
            return self._under(arrival, experiment.design.arm(name))
        unit = self._unit(arrival, experiment.design)
        drawn: Drawn | None = None if unit is None else draw(
            experiment.design, unit, experiment.live
        )  # fmt: skip
        if drawn is None or unit is None:
            return arrival
        found = self._under(arrival, drawn.arm)
        self.store.assign(
            arrival.id,
            Assignment(experiment.design.name, drawn.arm.name, drawn.propensity, unit),
        )
        return found

    def _takes_part(self, arrival: Arrival, design: Design) -> bool:
        """Whoever says where to be served is served there; passing through is no arm."""
        wanted = arrival.wanted
        if wanted.off or arrival.shadow or arrival.spot is None or not wanted.dial.silent:
            return False
        if wanted.name != next(iter(self.gateway.settings.plans)) or wanted.thinking_budget:
            return False
        metadata = self._metadata(arrival)
        pairs = {f"{key}={value}" for key, value in metadata.items()}
        return not pairs.intersection(design.exclude)

    def _metadata(self, arrival: Arrival) -> Mapping[str, Any]:
        found = (arrival.wanted.said or {}).get("metadata")
        return found if isinstance(found, Mapping) else {}

    def _unit(self, arrival: Arrival, design: Design) -> str | None:
        if design.by == "user":
            user = self._metadata(arrival).get("user") or arrival.body.get("user")
            if not user:
                return None
            drawn_by = str(user).encode(errors="surrogatepass")
        else:
            asked = {name: arrival.body.get(name) for name in ("messages", "prompt")}
            drawn_by = orjson.dumps([arrival.model, asked])
        return hmac.digest(self._secret, drawn_by, "sha256")[:12].hex()

    def _under(self, arrival: Arrival, arm: Arm) -> Arrival:
        """A request as an arm serves it."""
        wanted = arrival.wanted
        name = wanted.name if arm.plan is None else arm.plan
        wanted = replace(
            wanted, name=name, dial=arm.dial, off=arm.off, thinking_budget=arm.thinking_budget
        )
        pool = self.gateway.find(arrival.model)
        assert pool is not None
        core = pool.members[0].backend.cores[name]
        spot = None if arm.off else core.spot(wanted.dial)
        return replace(arrival, wanted=wanted, spot=spot, arm=arm.name)

    def check(self, experiment: Experiment) -> str | None:
        """Why an experiment's arms cannot be served here; None where they can."""
        plans = self.gateway.settings.plans
        for arm in experiment.design.arms:
            name = arm.plan or next(iter(plans))
            if name not in plans:
                return f"the arm {arm.name} needs a plan {name!r}; there are: {', '.join(plans)}"
            try:
                plans[name].spot(arm.dial)
            except UserError as error:
                return f"the arm {arm.name}: {error}"
        return None

    def refresh(self) -> None:
        """Read what runs."""
        found = running(self.store.engine)
        self.fault = None if found is None else self.check(found)
        self.now = None if self.fault is not None else found

    def judged(self) -> None:
        """Look at the results, where anything came in, and do what they say."""
        experiment = self.now
        if experiment is None or experiment.status != "running":
            return
        seen = self._newest()
        if seen == self._seen:
            return
        self._seen = seen
        after, done = judge(self.store.engine, experiment)
        for line in done:
            _log.warning("experiment %s: %s", experiment.design.name, line)
            self.store.event("experiment", name=experiment.design.name, done=line)
        if done:
            self.now = None if after.status == "stopped" else after

    def _newest(self) -> tuple[int, ...]:
        with self.store.engine.connect() as connection:
            tables = (DECISIONS, AUDITS, OUTCOMES)
            asked = [select(func.max(table.c.id)) for table in tables]
            return tuple(int(connection.execute(one).scalar() or 0) for one in asked)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read at once, then again and again."""
        self._secret = await asyncio.to_thread(self.store.secret, "units")
        if self.declared is not None:
            design = with_usual(self.store.engine, self.declared.named())
            await asyncio.to_thread(begin, self.store.engine, design)
        await asyncio.to_thread(self.refresh)
        if self.fault is not None:
            _log.warning("the experiment in the store is not served: %s", self.fault)
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            if self._work is not None:  # a thread that uses the store
                await asyncio.wait({self._work})

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        judged, pruned = loop.time() + self.judge_every, loop.time()
        while True:
            await asyncio.sleep(self.every)
            try:
                await self._aside(self.refresh)
                if loop.time() >= judged:
                    begun = loop.time()
                    await self._aside(self.judged)
                    judged = begun + max(self.judge_every, _RARELY * (loop.time() - begun))
                if loop.time() >= pruned + _PRUNE:
                    pruned = loop.time()
                    await self._aside(self._prune)
            except Exception as error:  # the store may be back the next time
                _log.warning("the experiments cannot be read: %s", error)

    async def _aside(self, work: Callable[[], None]) -> None:
        self._work = asyncio.ensure_future(asyncio.to_thread(work))
        await asyncio.shield(self._work)

    def _prune(self) -> None:
        if self.keep_days is None:
            return
        names = tuple(
            one.design.name for one in experiments(self.store.engine) if one.status == "running"
        )
        prune(self.store.engine, days=self.keep_days, running=names)
