"""Exact repetition: a thinking that goes round in a loop of the same tokens and never ends.

A *loop* of period p stands when the last tokens are the same p tokens over and over: at least
``REPEATS`` times, and at least ``tokens_needed(p)`` tokens in all. It is found from token ids
alone, at some 0.3 microseconds a token, whatever the model. A thinking that says the same in other
words is not in a loop here.

How: the longest match of what was last written with what stood up to ``LONGEST`` tokens before.
While the match holds, a token costs one comparison; where it breaks, those places are tried at
which the last ``_GRAM`` tokens stood before, latest first, as in LZ77. Inside a loop the match one
period back never breaks, and any other breaks within a period: so one is enough to follow.
"""

from __future__ import annotations

LONGEST = 512
"""tokens: the longest period that is looked for"""
REPEATS = 3
"""rounds of a loop: a passage that comes twice is a check or a quotation"""
LEAST = 256
"""tokens in a loop, its first round included: 1/3 in digits, a rule of dashes, forty rows of
"| 0 | 0 |", a matrix of a hundred zeros and a list of equal lines are no loop. The longest such run
in 11,892 thinkings and solutions has 71 tokens (``runs/results/loops.json``). A real loop is closed
some 200 tokens later for it, of the thousands it would take."""
_GRAM = 4
_KEPT = 4 * LONGEST
_BITS = 21
"""of a token id in the key of a gram; longer ids may share a key, and are compared anyway"""
_MASK = (1 << (_BITS * _GRAM)) - 1


def tokens_needed(period: int) -> int:
    """How many tokens must lie in a loop of this period, its first round included."""
    return max(REPEATS * period, LEAST)


class Loops:
    """Follows one decode; not to be shared between decodes or threads.

    A token may be any number that stands for it: a client that reads texts may count those.
    """

    __slots__ = ("_chain", "_gram", "_history", "_last", "_needed", "_period", "_run")

    def __init__(self) -> None:
        self._history: list[int] = []
        self._last: dict[int, int] = {}  # gram -> the place where it last ended
        self._chain: list[int] = []  # place -> where its gram ended before; -1 for nowhere
        self._gram = 0
        self._period = 0  # the distance of the match that is followed; 0 for none
        self._run = 0  # its length: so many tokens equal those one period before them
        self._needed = 0

    def push(self, token: int) -> int:
        """Take a token: the period of the loop that stands after it, 0 where there is none."""
        history = self._history
        place = len(history)
        if place >= 2 * _KEPT:
            place = self._forget()
            history = self._history
        history.append(token)
        gram = self._gram = (self._gram << _BITS ^ token) & _MASK
        before = self._last.get(gram, -1)
        self._last[gram] = place
        self._chain.append(before)
        period = self._period
        if period and history[place - period] == token:
            self._run += 1
        else:
            self._period = self._run = 0
            if before >= place - LONGEST and before >= 0:
                self._search(place, before)
            period = self._period
            if not period:
                return 0
        return period if self._run >= self._needed else 0

    @property
    def match(self) -> tuple[int, int]:
        """The distance of the match that is followed, and how many tokens match; (0, 0) for none.

        A match as long as its distance is a repetition, loop or not.
        """
        return self._period, self._run

    def _search(self, place: int, before: int) -> None:
        """Follow the longest match that ends here, or the nearest that is a whole round long."""
        history, chain, best = self._history, self._chain, _GRAM - 1
        oldest = max(place - LONGEST, 0)
        while before >= oldest:
            # Worth counting only where it is longer than the best so far.
            if before >= best and history[before - best] == history[place - best]:
                most, length = before + 1, 0
                while length < most and history[before - length] == history[place - length]:
                    length += 1
                if length > best:
                    best, self._period, self._run = length, place - before, length
                    if length >= place - before:
                        break
            before = chain[before]
        if self._period:
            self._needed = tokens_needed(self._period) - self._period

    def _forget(self) -> int:
        """Drop what is too old to matter: memory stays bounded."""
        gone = len(self._history) - _KEPT
        self._history = self._history[gone:]
        self._chain = [max(place - gone, -1) for place in self._chain[gone:]]
        self._last = {g: place - gone for g, place in self._last.items() if place >= gone}
        return _KEPT
