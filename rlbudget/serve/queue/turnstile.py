"""Who is served and who waits: classes, ageing, caps, admission. The clock is handed in.

A waiting request is served before all others that have a higher ``priority + rate * arrival``:
that is the order of ``priority - rate * waited`` at any moment. So nobody is overtaken by one that
arrives more than (difference of the priorities) / rate later; a class at its own cap waits for
itself alone, and places that another has reserved are none of its own. Where the line is full, the
one that would be served last is refused, the newcomer or one that waits.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from rlbudget.strategies.online import QueueSettings

_SERVICES = 100.0
"""that the mean time of a request is taken over"""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request in a turnstile."""

    group: str
    """its class"""
    key: float
    """priority + rate * arrival: lower is served first"""
    arrived: float
    """seconds, as the caller's clock has it"""
    begun: float | None = None
    """None while it waits"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Who is not served, and after how many seconds it may come again."""

    ticket: Ticket
    seconds: float
    why: str


class Turnstile:
    """Who is being served and who waits; not for several threads."""

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self.running = dict.fromkeys(settings.classes, 0)
        """requests of each class that are being served"""
        self._waiting: dict[str, OrderedDict[Ticket, None]] = {
            name: OrderedDict() for name in settings.classes
        }
        self._mean = 0.0  # seconds of a request
        self._served = 0

    @property
    def waiting(self) -> dict[str, int]:
        """Requests of each class that wait."""
        return {name: len(line) for name, line in self._waiting.items()}

    @property
    def mean_seconds(self) -> float:
        """Of the last requests, from their turn to their end; 0 before the first."""
        return self._mean

    def arrive(self, group: str, now: float) -> tuple[Ticket, list[Ticket], Refusal | None]:
        """A request of a class comes: its ticket, those whose turn it is, who is refused.

        Of equal keys the one that came first is served first.
        """
        priority = self.settings.classes[group].priority
        ticket = Ticket(group, priority + self.settings.rate * now, now)
        self._waiting[group][ticket] = None
        begun = self._turns(now)
        if ticket.begun is not None:
            return ticket, begun, None
        wait = self.expected_wait(ticket)
        refused = None
        if wait > self.settings.patience:
            refused = Refusal(ticket, wait - self.settings.patience,
                              f"a request would wait for {wait:.0f} s")  # fmt: skip
        elif sum(map(len, self._waiting.values())) > self.settings.waiting:
            last = max(self._last_ones(), key=lambda one: (one.key, one.arrived))
            refused = Refusal(last, self.expected_wait(last), "too many requests wait")
        if refused is not None:
            del self._waiting[refused.ticket.group][refused.ticket]
        return ticket, begun, refused

    def end(self, ticket: Ticket, now: float) -> list[Ticket]:
        """A request is over, or its client left: those whose turn it is now."""
        if ticket.begun is None:
            self._waiting[ticket.group].pop(ticket, None)
            return []
        self.running[ticket.group] -= 1
        self._served += 1
        share = 1 / min(self._served, _SERVICES)
        self._mean += share * (now - ticket.begun - self._mean)
        return self._turns(now)

    def expected_wait(self, ticket: Ticket) -> float:
        """Seconds until the turn of one that waits, by how long requests have taken."""
        settings, group = self.settings, ticket.group
        ahead, own = (
            sum(one.key <= ticket.key and one is not ticket for line in lines for one in line)
            for lines in (self._waiting.values(), [self._waiting[group]])
        )
        kept = sum(one.reserved for name, one in settings.classes.items() if name != group)
        rounds = (ahead + 1) / max(settings.capacity - kept, 1)
        if (cap := settings.classes[group].cap) is not None:
            rounds = max(rounds, (own + 1) / cap)
        return rounds * self._mean

    def _turns(self, now: float) -> list[Ticket]:
        begun = []
        while True:
            heads = [
                next(iter(line))
                for name, line in self._waiting.items()
                if line and self._has_place(name)
            ]
            if not heads:
                break
            ticket = min(heads, key=lambda one: (one.key, one.arrived))
            del self._waiting[ticket.group][ticket]
            ticket.begun = now
            self.running[ticket.group] += 1
            begun.append(ticket)
        return begun

    def _has_place(self, name: str) -> bool:
        """Whether a class is below its cap, and a place is left that no other has reserved."""
        classes, running = self.settings.classes, self.running
        cap = classes[name].cap
        kept = sum(
            max(one.reserved - running[other], 0) for other, one in classes.items() if other != name
        )
        free = self.settings.capacity - sum(running.values()) - kept
        return free > 0 and (cap is None or running[name] < cap)

    def _last_ones(self) -> list[Ticket]:
        return [next(reversed(line)) for line in self._waiting.values() if line]
