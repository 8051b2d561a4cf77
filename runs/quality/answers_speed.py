r"""Answers scored a second in one process, and what is left of the scorer's processes after it.

python -m runs.quality.answers_speed [--data FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlbudget.tasks import exact_match_math
from runs.quality.answer_pairs import DATA, Pair, all_pairs, read_targets

_NUMBERS = 100_000
_ROUNDS = 3
_GONE_WITHIN = 5.0
_CHILD = (
    "import sys, time\n"
    "from rlbudget.tasks import exact_match_math\n"
    "exact_match_math(r'\\frac{1}{\\sqrt{2}} + a', r'a + \\frac{\\sqrt{2}}{2}')\n"
    "print('ready', flush=True)\n"
    "time.sleep(float(sys.argv[1]))\n"
)


@dataclass(frozen=True, slots=True)
class Left:
    """Processes that a scoring program started, and those still there 5 s after its end."""

    started: int
    left: int


@dataclass(frozen=True, slots=True)
class Rate:
    """Pairs a second by the clock, and by the processor time of the scoring process alone."""

    clock: float
    processor: float


def plain_numbers(seed: int = 0) -> Rate:
    """Numbers as people write them, no pair twice; the best of three rounds."""
    rng = random.Random(seed)
    rounds = [_rate([_number_pair(rng) for _ in range(_NUMBERS)]) for _ in range(_ROUNDS)]
    return Rate(max(r.clock for r in rounds), max(r.processor for r in rounds))


def latex(pairs: Sequence[Pair]) -> Rate:
    """Right rewritings of the targets that are LaTeX, each pair once."""
    chosen = [(p.answer, p.target) for p in pairs if p.wanted and "\\" in p.target]
    return _rate(list(dict.fromkeys(chosen)))


def _number_pair(rng: random.Random) -> tuple[str, str]:
    n = rng.randrange(-(10**5), 10**7)
    form = rng.choice(("{n}", "{n:,}", "{n}.0", "${n}", "{n}.", "{n}.50", "+{n}"))
    other = n if rng.random() < 0.7 else n + 1
    return form.format(n=n), str(other)


def _rate(pairs: Sequence[tuple[str, str]]) -> Rate:
    exact_match_math("\\sqrt{2} + 1", "1 + \\sqrt{2}")  # whatever starts at the first call
    clock, processor = time.perf_counter(), time.process_time()
    for answer, target in pairs:
        exact_match_math(answer, target)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    return Rate(len(pairs) / clock, len(pairs) / processor)


def left_behind() -> dict[str, Left]:
    """What is left of a scoring program, by how it ended."""
    return {
        "its own end": _descendants_after(None, 0.5),
        "SIGTERM": _descendants_after(signal.SIGTERM, 60),
        "SIGINT": _descendants_after(signal.SIGINT, 60),
        "SIGKILL": _descendants_after(signal.SIGKILL, 60),
    }


def _descendants_after(sent: signal.Signals | None, seconds: float) -> Left:
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert child.stdout is not None
    child.stdout.readline()
    below = list(_descendants(child.pid))
    if sent is not None:
        child.send_signal(sent)
    child.wait()
    child.stdout.close()
    until = time.monotonic() + _GONE_WITHIN
    while time.monotonic() < until and any(map(_lives, below)):
        time.sleep(0.05)
    left = [pid for pid in below if _lives(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return Left(len(below), len(left))


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from _descendants(child)


def _lives(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with math500/test.jsonl")
    pairs = all_pairs(read_targets(parser.parse_args().data))
    left = {end: asdict(found) for end, found in left_behind().items()}
    rates = {"plain numbers": asdict(plain_numbers()), "LaTeX": asdict(latex(pairs))}
    print(json.dumps({**rates, "left behind": left}))


if __name__ == "__main__":
    main()
