"""Who waits for whom: the laws of the queue, with a clock that is handed in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlbudget.serve.queue.minute import Minute, after_spending
from rlbudget.serve.queue.turnstile import Ticket, Turnstile
from rlbudget.strategies.online import QueueClass, QueueSettings

CLASSES = {
    "critical": QueueClass(priority=-5.0),
    "normal": QueueClass(priority=0.0),
    "bulk": QueueClass(priority=20.0),
}


def settings(capacity: int = 2, rate: float = 1.0, **more: object) -> QueueSettings:
    return QueueSettings(capacity, CLASSES, "normal", rate=rate, **more)  # type: ignore[arg-type]


Served = tuple[str, float, float]


def served_in_order(
    line: Turnstile, arrivals: list[tuple[float, str]], each: float
) -> list[Served]:
    """Class, arrival and turn of each request; every request takes ``each`` seconds."""
    left = sorted(arrivals, key=lambda one: one[0])
    running: list[tuple[float, Ticket]] = []
    found: list[Served] = []

    def note(begun: list[Ticket], now: float) -> None:
        for ticket in begun:
            running.append((now + each, ticket))
            found.append((ticket.group, ticket.arrived, now))

    while left or running:
        ends = min((end for end, _ in running), default=float("inf"))
        if left and left[0][0] < ends:
            now, group = left.pop(0)
            note(line.arrive(group, now)[1], now)
        else:
            running.sort(key=lambda one: one[0])
            now, ticket = running.pop(0)
            note(line.end(ticket, now), now)
    return found


ARRIVALS = st.lists(
    st.tuples(st.floats(0, 60), st.sampled_from(sorted(CLASSES))), min_size=1, max_size=60
)


@given(ARRIVALS, st.sampled_from([0.25, 1.0, 4.0]), st.integers(1, 3))
def test_nobody_is_overtaken_by_one_that_arrives_later_than_its_priority_is_worth(
    arrivals: list[tuple[float, str]], rate: float, capacity: int
) -> None:
    line = Turnstile(settings(capacity, rate, patience=1e9))
    found = served_in_order(line, arrivals, each=3.0)
    assert len(found) == len(arrivals)  # and nothing starves
    for place, (group, arrived, turn) in enumerate(found):
        for other, other_arrived, other_turn in found[:place]:
            if other_turn > arrived and other_arrived > arrived:  # it overtook this one
                apart = CLASSES[group].priority - CLASSES[other].priority
                assert other_arrived - arrived <= apart / rate + 1e-9
        assert turn >= arrived


@given(ARRIVALS, st.integers(1, 3))
def test_reserved_places_are_kept_and_the_law_holds_among_the_others(
    arrivals: list[tuple[float, str]], reserved: int
) -> None:
    classes = {**CLASSES, "critical": QueueClass(priority=-1000.0, reserved=reserved)}
    line = Turnstile(QueueSettings(4, classes, "normal", patience=1e9))
    found = served_in_order(line, arrivals, each=3.0)
    assert len(found) == len(arrivals)
    for place, (group, arrived, turn) in enumerate(found):
        others = sum(g != "critical" and t <= turn < t + 3.0 for g, _, t in found)
        assert others <= 4 - reserved
        for other, other_arrived, other_turn in found[:place]:
            if other_turn > arrived and other_arrived > arrived:
                apart = classes[group].priority - classes[other].priority
                assert other_arrived - arrived <= apart + 1e-9


@given(ARRIVALS)
def test_a_class_serves_its_own_in_the_order_of_arrival(arrivals: list[tuple[float, str]]) -> None:
    found = served_in_order(Turnstile(settings(patience=1e9)), arrivals, each=5.0)
    for name in CLASSES:
        came = [arrived for group, arrived, _ in found if group == name]
        assert came == sorted(came)


@given(ARRIVALS, st.integers(1, 4))
def test_caps_and_capacity_are_kept_and_no_slot_is_idle_without_need(
    arrivals: list[tuple[float, str]], capacity: int
) -> None:
    classes = {**CLASSES, "bulk": QueueClass(priority=20.0, cap=1)}
    line = Turnstile(QueueSettings(capacity, classes, "bulk", patience=1e9))
    tickets = []
    for now, group in sorted(arrivals, key=lambda one: one[0]):
        ticket, _, refusal = line.arrive(group, now)
        assert refusal is None
        tickets.append(ticket)
        assert sum(line.running.values()) <= capacity
        assert line.running["bulk"] <= 1
        if sum(line.running.values()) < capacity:
            assert line.waiting["critical"] == line.waiting["normal"] == 0
    for ticket in tickets:
        line.end(ticket, 100.0)
        assert sum(line.running.values()) <= capacity
    assert line.running == dict.fromkeys(classes, 0)
    assert line.waiting == dict.fromkeys(classes, 0)


def test_where_the_line_is_full_the_one_that_would_be_served_last_is_refused() -> None:
    line = Turnstile(settings(1, waiting=2))
    first, _, _ = line.arrive("normal", 0.0)
    line.arrive("bulk", 1.0)
    last, _, _ = line.arrive("bulk", 2.0)
    _, _, refusal = line.arrive("critical", 3.0)
    assert refusal is not None
    assert refusal.ticket is last
    newcomer, _, refusal = line.arrive("bulk", 4.0)
    assert refusal is not None
    assert refusal.ticket is newcomer
    assert [one.group for one in line.end(first, 5.0)] == ["critical"]


def test_a_request_that_would_wait_too_long_is_refused_and_told_when_to_come_again() -> None:
    line = Turnstile(settings(1, patience=10.0))
    first, _, _ = line.arrive("normal", 0.0)
    line.arrive("normal", 0.5)
    line.end(first, 8.0)  # the next one runs; a request takes 8 seconds
    _, _, refusal = line.arrive("normal", 8.0)
    assert refusal is None
    _, _, refusal = line.arrive("normal", 8.0)
    assert refusal is not None
    assert refusal.seconds == 6.0


def test_one_that_left_is_taken_out() -> None:
    line = Turnstile(settings(1))
    first, _, _ = line.arrive("normal", 0.0)
    gone, _, _ = line.arrive("normal", 1.0)
    stays, _, _ = line.arrive("normal", 2.0)
    assert line.end(gone, 3.0) == []
    assert line.end(first, 4.0) == [stays]


def test_a_minute_spends_what_it_may() -> None:
    minute, now, spent = Minute(), 0.0, []
    for _ in range(3000):
        tokens = 200 / minute.factor**0.5  # requests answer to a price
        now += 0.5
        minute = after_spending(minute, 12_000, tokens, now)
        spent.append(tokens)
    assert abs(sum(spent[-600:]) / 5 - 12_000) < 0.03 * 12_000
    for _ in range(600):
        now += 10
        minute = after_spending(minute, 12_000, 200, now)
    assert minute.factor == 1.0
