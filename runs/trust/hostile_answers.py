"""Hostile answers against every scorer and every verifier of reasoning-gym: time and memory.

Brackets, digits, delimiters, nests, towers, factorials, odd characters, of 10^5 to 10^6 characters
or short ones that are worth as much work. Memory is what the scoring process and the processes it
asks hold at most beyond what they held before the first hostile answer.

    python -m runs.trust.hostile_answers [--size 100000 --seconds 6]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import reasoning_gym

from rlbudget.tasks.load import verify
from rlbudget.tasks.reasoning_gym import ALLOWED
from rlbudget.tasks.scorers import find_scorer, vote_key
from rlbudget.tasks.task import Question
from runs.common import row, write_part

BYTES = 100 * 2**20
TARGETS = {
    "text": "the cat sat", "math": r"\frac{x+1}{2}", "number": "12", "exact": "x", "choice": "A",
    "auto": "$x^2+1$", r"regex:a.*b|(1+)+$": "12",
}  # fmt: skip
OPTIONS = ("the cat", "dog", "x+1", "A")
UNITS = (
    r"( ) [ ] { } 9 1, 1,111, $ $1 $$ \ \\ \( \[ \boxed{ \boxed{1}, \frac{ \frac12 \sqrt{ \text{"
    r" \left( ^ ^{ 2^ e9 1e9 ! 5! a ** *a* _{ ` ' , .. - # #### | || < <= <a <answer> </think>"
    r" <think> answer x= x< \cup \in \pm \begin{array} \begin{pmatrix}1& \end{pmatrix} \equiv \pmod"
    r" % ° cos sin( ½ √( ∞ π é 1/2 1/ 1: a) 0x 1_2 1.(3) \overline{3} ... |x| \quad \, \! {,} ~ &"
    r" \% ¢ €1 = -- +- × \sin \infty \{ \} \SI{1}{ \choose \mathrm{d} U \fbox{ ∧ ¬ → 🙂 ﷺ 中 ² ₀"
).split(" ")
SPACED = ("a ", "1 ", " 1", "  ", "\n", "\t", "answer is ", "the answer is not 1 ", "1 and ",
          "x = 1, ", "one hundred ", "and a half ", "3 of ", "m/s ", "A. ", "option A ", "not A ",
          "because ", "wait, ", "base 2 ", "at least ", "word ", "2 × ", "R ", "- 1\n", "| 1 ",
          "1 2 3\n", "\u0661", "\u202e", "\ud800", "\0", "\x1b[2J")  # fmt: skip
NESTS = (("(", ")"), ("{", "}"), ("[", "]"), (r"\boxed{", "}"), (r"\frac{1}{", "}"),
         (r"\sqrt{", "}"), (r"\text{", "}"), (r"\{", r"\}"), (r"\left(", r"\right)"), ("2^{", "}"),
         (r"\begin{pmatrix}", r"\end{pmatrix}"), ("<answer>", "</answer>"))  # fmt: skip
SHORT = {
    name: name
    for name in (
        "1e99999999", "-1e-99999999", "1E+99999999", "9**9**9", "9^9^9^9", "$2^{2^{2^{2^{2}}}}$",
        "$(a+b+c+d)^{1999}$", "$(x+y+z)^{2000}$", "100000!", "5!!!!!!!!", "nan", "inf", "-inf",
        r"$\sqrt[97]{2+\sqrt[89]{3+\sqrt[83]{5}}}$", r"${100000 \choose 50000}$", r"\Gamma(10^9)",
        r"$\int e^{-x^2}dx$", r"$\sum_{i=1}^{10^9} i$", "3^" + "9" * 300, "0." + "1" * 380, "1/0",
        "$" + r"\sin(" * 40 + "x" + ")" * 40 + "$", "$" + "+".join(rf"\sqrt{{{p}}}" for p in
        (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)) + "$",
        "$" + r"\log(" * 40 + "x" + ")" * 40 + "$",
        "$" + "".join(f"(x+{i})" for i in range(50)) + "$", "1_000_000e9_999_999", "0x" + "f" * 380,
        "$e^{e^{e^{e^{x}}}}$", r"$\cot^{1000}(x)$", "$(1+i)^{2000}$", "x" * 400 + "!",
        "[" + ",".join(str(i) for i in range(90)) + "]",
        "{" + ",".join(f"x+{i}" for i in range(60)) + "}",
    )
}  # fmt: skip


def hostile(size: int) -> dict[str, str]:
    """Name -> answer."""
    found = {f"{unit!r} repeated": unit * (size // len(unit)) for unit in (*UNITS, *SPACED) if unit}
    for left, right in NESTS:
        times = max(size // (len(left) + len(right)), 1)
        found[f"{left}…{right} nested"] = left * times + "1" + right * times
    found["digits, a million"] = "9" * 10**6
    found["spaces, a million, and a digit"] = " " * 10**6 + "1"
    found["numbers in a list"] = "[" + ",".join(map(str, range(size // 6))) + "]"
    found["clauses"] = " ∧ ".join(f"V{i}" for i in range(40))
    return found | SHORT


class Memory:
    """The most that this process and its children hold, watched every few milliseconds."""

    def __init__(self) -> None:
        self.base = self.held()
        self.most = self.base
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    @property
    def grown(self) -> int:
        """Bytes beyond the first look."""
        return self.most - self.base

    def held(self) -> int:
        """Bytes in memory of this process and all that it and they started."""
        return sum(map(_resident, _family("self")))

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, self.held())


def _family(process: str) -> Iterator[str]:
    yield process
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in file.read_text().split():
                yield from _family(child)


def _resident(process: str) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


Try = tuple[float, str, str]
"""seconds, what scored, which answer"""


def by_scorers(answers: dict[str, str]) -> Iterator[Try]:
    """Each scorer, and the votes, on each answer."""
    for name, target in TARGETS.items():
        scorer = find_scorer(name)
        options = OPTIONS if name == "choice" else ()
        for what, answer in answers.items():
            begun = time.perf_counter()
            assert scorer.score(answer, target, options=options) in (0, 1)
            yield time.perf_counter() - begun, name, what
            begun = time.perf_counter()
            vote_key(answer, name)
            yield time.perf_counter() - begun, f"vote by {name}", what


def by_verifiers(answers: dict[str, str], families: list[str]) -> Iterator[Try]:
    """Each verifier on each answer."""
    for family in families:
        drawn = reasoning_gym.create_dataset(family, size=1, seed=1)[0]
        kept = {"answer": drawn["answer"], "metadata": drawn["metadata"]}
        meta = {"family": family, "entry": json.loads(json.dumps(kept, default=str))}
        question = Question(family, str(drawn["question"]), str(drawn["answer"]), meta)
        verify(question, question.target)  # loads the family's own data
        for what, answer in answers.items():
            begun = time.perf_counter()
            assert verify(question, answer) in (0, 1)
            yield time.perf_counter() - begun, family, what


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=10**5, help="characters of a long answer")
    parser.add_argument("--seconds", type=float, default=6.0, help="that one answer may take")
    parser.add_argument("--families", type=int, default=len(ALLOWED), help="verifiers to try")
    parser.add_argument("--answers", type=int, default=10**6, help="answers of each kind to try")
    args = parser.parse_args()
    found = hostile(args.size)
    answers = dict(list(found.items())[:: max(1, len(found) // args.answers)])
    families = sorted(ALLOWED)[: args.families]
    find_scorer("math").score("x+1", "1+x")
    find_scorer("text").score("word " * 1000, "x")
    rows, details = [], {}
    for name, tries in (
        ("every scorer", by_scorers(answers)),
        (f"{len(families)} verifiers of reasoning-gym", by_verifiers(answers, families)),
    ):
        took, grown = watched(tries)
        slowest = max(took)
        details[name] = {"tries": len(took), "slowest": sorted(took, reverse=True)[:5]}
        print(name, details[name], file=sys.stderr, flush=True)
        rows.append(
            row(
                f"{len(answers)} hostile answers x {name}",
                f"<= {args.seconds:g} s each, <= 100 MB",
                f"slowest {slowest[0]:.1f} s of {len(took):,}, {grown / 2**20:.0f} MB",
                slowest[0] <= args.seconds and grown <= BYTES,
            )
        )
    write_part("hostile", "answers", rows, size=args.size, slowest=details)


def watched(tries: Iterator[Try]) -> tuple[list[Try], int]:
    """All tries, and the bytes that were held at most beyond those after the first one."""
    took = [next(tries)]
    with Memory() as memory:
        took += tries
    return took, memory.grown


if __name__ == "__main__":
    main()
