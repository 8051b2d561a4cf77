"""Questions shared among servers, and the gate before each of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from rlbudget.decoding.sharing import GIVEN_UP, Crew, Given, shared
from rlbudget.errors import UserError
from rlbudget.models.gate import Gate
from rlbudget.models.site import ServerError


async def always(server: str) -> bool:
    return True


def run(
    servers: list[str], jobs: int, work: Callable[[str, int], Awaitable[str]], *,
    alive: Callable[[str], Awaitable[bool]] = always, patience: float = 5.0, width: int = 2,
) -> list[Given[int, str]]:  # fmt: skip
    async def collect() -> list[Given[int, str]]:
        crew = Crew(servers, width, alive, patience)
        return [given async for given in shared(crew, range(jobs), work)]

    return asyncio.run(collect())


def test_a_fast_server_does_more_and_each_job_is_done_once() -> None:
    fast, done_alone = 0, asyncio.Event()

    async def work(server: str, job: int) -> str:
        nonlocal fast
        if server == "slow":  # as slow as can be: until the fast one did nearly all
            await asyncio.wait_for(done_alone.wait(), 60)
            return server
        await asyncio.sleep(0)
        fast += 1
        if fast == 50:
            done_alone.set()
        return server

    found = run(["fast", "slow"], 60, work)
    assert sorted(given.job for given in found) == list(range(60))
    done = Counter(given.result for given in found)
    assert done["fast"] >= 50
    assert done["slow"] > 0


def test_the_work_of_a_server_that_dies_is_done_by_another_and_it_takes_part_again() -> None:
    dead = False
    asked = begun = 0

    async def work(server: str, job: int) -> str:
        nonlocal dead, begun
        await asyncio.sleep(0.01)
        begun += server == "weak"
        if server == "weak" and begun == 4:
            dead = True
        if server == "weak" and dead:
            raise ServerError("gone")
        return server

    async def alive(server: str) -> bool:
        nonlocal dead, asked
        asked += 1
        dead = dead and asked < 2
        return not dead

    found = run(["weak", "strong"], 400, work, alive=alive)
    assert sorted(given.job for given in found) == list(range(400))
    assert {given.result for given in found} == {"weak", "strong"}
    assert asked == 2
    assert begun > 10  # it took part again


def test_a_job_that_no_server_can_do_is_left_out_and_the_others_are_done() -> None:
    tried = 0

    async def work(server: str, job: int) -> str:
        nonlocal tried
        if job == 5:
            tried += 1
            raise ServerError("it breaks down at this one")
        if job == 6:
            raise UserError("too long")
        return server

    found = {given.job: given.result for given in run(["one"], 10, work)}
    assert tried == GIVEN_UP
    assert "it breaks down at this one" in str(found[5])
    assert str(found[6]) == "too long"
    assert sum(result == "one" for result in found.values()) == 8


def test_when_no_server_answers_any_more_it_ends() -> None:
    async def work(server: str, job: int) -> str:
        raise ServerError("gone")

    async def never(server: str) -> bool:
        return False

    with pytest.raises(ServerError, match="gone"):
        run(["a", "b"], 10, work, alive=never, patience=0.6)


def test_a_fault_of_ours_is_raised_not_waited_for() -> None:
    async def work(server: str, job: int) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(["a"], 3, work)


def test_the_gate_lets_the_urgent_in_first_and_never_more_than_its_width() -> None:
    async def all_through() -> tuple[list[tuple[int, int]], int]:
        gate, order, inside, most = Gate(2), [], 0, 0

        async def one(rank: int, place: int) -> None:
            nonlocal inside, most
            async with gate.enter((rank, place)):
                inside += 1
                most = max(most, inside)
                order.append((rank, place))
                await asyncio.sleep(0.005)
                inside -= 1

        ranks = [1, 1, 1, 1, 0, 0]
        await asyncio.gather(*(one(rank, place) for place, rank in enumerate(ranks)))
        assert gate.free == 2
        return order, most

    order, most = asyncio.run(all_through())
    assert order == [(1, 0), (1, 1), (0, 4), (0, 5), (1, 2), (1, 3)]
    assert most == 2


def test_a_place_that_was_waited_for_in_vain_goes_to_the_next() -> None:
    async def run_it() -> int:
        gate, done = Gate(1), 0

        async def one() -> None:
            nonlocal done
            async with gate.enter((0,)):
                await asyncio.sleep(0.005)
                done += 1

        tasks = [asyncio.create_task(one()) for _ in range(6)]
        await asyncio.sleep(0)  # the first is inside, the others wait
        for task in tasks[1:4]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert gate.free == 1
        return done

    assert asyncio.run(run_it()) == 3


def test_a_gate_that_is_held_lets_nobody_in_until_then() -> None:
    async def run_it() -> float:
        gate, loop = Gate(4), asyncio.get_running_loop()
        begun = loop.time()
        gate.hold(0.05)
        async with gate.enter((0,)):
            return loop.time() - begun

    assert asyncio.run(run_it()) >= 0.05
