r"""Other people's scorers over a file of pairs; run in a venv of their own by ``answers.py``.

    python -m runs.quality.answers_rival --seconds 10 < pairs.jsonl > scores.jsonl

A line in: {"answer", "target", "bare", "scorers": [name, …]}; a line out: {name: score, …} where
a score is 0, 1, "hang" (killed after ``--seconds``) or "ValueError: …", what the scorer raised.
Each is called as its own documentation or task file does, and knows nothing of the others.

======================  =========================================================================
math-verify             parse the reference in $ $, parse the answer, verify(reference, answer)
math-verify in $        the same, a formula without marks put in $ $ first
hendrycks_math          process_results of lm-evaluation-harness: strings made alike
minerva_math            process_results, exact_match: sympy on what follows "The final answer is"
minerva_math asked for  the same, a formula without marks put into the sentence it asks for
minerva math_verify     process_results, math_verify
gsm8k strict            the filter strict-match, then exact_match as the task file sets it
gsm8k flexible          the filter flexible-extract, the same
======================  =========================================================================
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from functools import cache, lru_cache
from multiprocessing.connection import Connection
from typing import Any

ON_BARE_ONLY = {"math-verify in $": "math-verify", "minerva_math asked for": "minerva_math"}
"""What puts marks around a bare formula, and the scorer it is on everything else."""
Scorer = Callable[[str, str], Any]
_START_SECONDS = 120.0
_SLOW_SECONDS = 4.0


def scorers() -> dict[str, Scorer]:
    """Every scorer by its name; imports the packages."""
    from lm_eval.tasks.hendrycks_math import utils as hendrycks
    from lm_eval.tasks.minerva_math import utils as minerva
    from math_verify import parse, verify

    def math_verify(answer: str, target: str) -> Any:
        return verify(parse(f"${target}$"), parse(answer))

    def math_verify_in_marks(answer: str, target: str) -> Any:
        return math_verify(f"${answer}$", target)

    def hendrycks_math(answer: str, target: str) -> Any:
        solution = f"Therefore $\\boxed{{{target}}}$."
        return hendrycks.process_results({"solution": solution}, [answer])["exact_match"]

    # Its comparison depends on its two texts alone: worked out once for each two.
    minerva.is_equiv = cache(minerva.is_equiv)

    @lru_cache(maxsize=4)
    def minerva_results(answer: str, target: str) -> dict[str, Any]:
        solution = f"Therefore $\\boxed{{{target}}}$."
        wanted = minerva.normalize_final_answer(target)
        return dict(minerva.process_results({"solution": solution, "answer": wanted}, [answer]))

    def minerva_math(answer: str, target: str) -> Any:
        return minerva_results(answer, target)["exact_match"]

    def minerva_asked_for(answer: str, target: str) -> Any:
        sentence = f"Final Answer: The final answer is ${answer}$. I hope it is correct."
        return minerva_results(sentence, target)["exact_match"]

    def minerva_math_verify(answer: str, target: str) -> Any:
        return minerva_results(answer, target)["math_verify"]

    return {
        "math-verify": math_verify,
        "math-verify in $": math_verify_in_marks,
        "hendrycks_math": hendrycks_math,
        "minerva_math": minerva_math,
        "minerva_math asked for": minerva_asked_for,
        "minerva math_verify": minerva_math_verify,
        "gsm8k strict": _gsm8k(r"#### (\-?[0-9\.\,]+)", 0),
        "gsm8k flexible": _gsm8k(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
    }


def _gsm8k(pattern: str, group: int) -> Scorer:
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    found = RegexFilter(regex_pattern=pattern, group_select=group)

    def score(answer: str, target: str) -> Any:
        (replies,) = found.apply([[answer]], [{}])
        return exact_match_hf_evaluate(
            predictions=[replies[0]],
            references=[f"#### {target}"],
            regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"],
            ignore_case=True,
        )["exact_match"]

    return score


def serve(pipe: Connection) -> None:
    """The child's side: (name, answer, target) in, a score or what was raised out."""
    logging.disable(logging.CRITICAL)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the scorers print, the replies go there
    known = scorers()
    pipe.send("ready")
    while True:
        name, answer, target = pipe.recv()
        try:
            pipe.send(int(bool(known[name](answer, target))))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}"[:200])


class Child:
    """A process that scores, killed and started anew when a pair takes too long or it dies."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: multiprocessing.Process | None = None

    def score(self, *request: Any) -> Any:
        """0, 1, "hang", "died", or what was raised."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send(request)
            if self._pipe.poll(self._seconds):
                return self._pipe.recv()
        except (EOFError, OSError):
            self.close()
            return "died"
        self.close()
        return "hang"

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_START_SECONDS) or self._pipe.recv() != "ready":
            raise SystemExit("the scorers did not start")


def main() -> None:
    """Score line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="limit for one pair")
    args = parser.parse_args()
    child = Child(args.seconds)
    for place, line in enumerate(sys.stdin, 1):
        print(json.dumps(_scores(child, json.loads(line))), flush=True)
        if not place % 1000:
            print(f"  {place} pairs", file=sys.stderr, flush=True)
    child.close()


def _scores(child: Child, pair: dict[str, Any]) -> dict[str, Any]:
    """The pair's scores by name; the same work is not done twice."""
    scores: dict[str, Any] = {}
    for name in pair["scorers"]:
        same = ON_BARE_ONLY.get(name)
        if same in scores and not pair["bare"]:
            scores[name] = scores[same]
        else:
            scores[name] = _fair_score(child, name, pair["answer"], pair["target"])
    return scores


def _fair_score(child: Child, *request: Any) -> Any:
    """A second try where the first took long: the scorers' own limits are by the clock."""
    start = time.monotonic()
    score = child.score(*request)
    if score != 1 and time.monotonic() - start > _SLOW_SECONDS:
        return child.score(*request)
    return score


if __name__ == "__main__":
    main()
