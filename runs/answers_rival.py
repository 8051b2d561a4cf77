r"""Other people's scorers over a file of pairs; run in a venv of their own by ``answers.py``.

    python runs/answers_rival.py --seconds 10 < pairs.jsonl > scores.jsonl

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
from collections.abc import Callable
from functools import cache, lru_cache
from multiprocessing.connection import Connection
from typing import Any

Scorer = Callable[[str, str, bool], Any]
_START_SECONDS = 120.0


def scorers() -> dict[str, Scorer]:
    """Every scorer by its name; imports the packages."""
    from lm_eval.tasks.hendrycks_math import utils as hendrycks
    from lm_eval.tasks.minerva_math import utils as minerva
    from math_verify import parse, verify

    def math_verify(answer: str, target: str, _bare: bool) -> Any:
        return verify(parse(f"${target}$"), parse(answer))

    def math_verify_in_marks(answer: str, target: str, bare: bool) -> Any:
        return math_verify(f"${answer}$" if bare else answer, target, bare)

    def hendrycks_math(answer: str, target: str, _bare: bool) -> Any:
        solution = f"Therefore $\\boxed{{{target}}}$."
        return hendrycks.process_results({"solution": solution}, [answer])["exact_match"]

    # Its comparison depends on its two texts alone: worked out once for each two.
    minerva.is_equiv = cache(minerva.is_equiv)

    @lru_cache(maxsize=4)
    def minerva_results(answer: str, target: str) -> dict[str, Any]:
        solution = f"Therefore $\\boxed{{{target}}}$."
        wanted = minerva.normalize_final_answer(target)
        return dict(minerva.process_results({"solution": solution, "answer": wanted}, [answer]))

    def minerva_math(answer: str, target: str, _bare: bool) -> Any:
        return minerva_results(answer, target)["exact_match"]

    def minerva_asked_for(answer: str, target: str, bare: bool) -> Any:
        sentence = f"Final Answer: The final answer is ${answer}$. I hope it is correct."
        return minerva_results(sentence if bare else answer, target)["exact_match"]

    def minerva_math_verify(answer: str, target: str, _bare: bool) -> Any:
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

    def score(answer: str, target: str, _bare: bool) -> Any:
        (replies,) = found.apply([[answer]], [{}])
        return exact_match_hf_evaluate(
            predictions=[replies[0]],
            references=[f"#### {target}"],
            regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"],
            ignore_case=True,
        )["exact_match"]

    return score


def serve(pipe: Connection) -> None:
    """The child's side: (name, answer, target, bare) in, a score or what was raised out."""
    logging.disable(logging.CRITICAL)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the scorers print, the replies go there
    known = scorers()
    pipe.send("ready")
    while True:
        name, answer, target, bare = pipe.recv()
        try:
            pipe.send(int(bool(known[name](answer, target, bare))))
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
    for line in sys.stdin:
        pair = json.loads(line)
        request = (pair["answer"], pair["target"], pair["bare"])
        scores = {name: child.score(name, *request) for name in pair["scorers"]}
        print(json.dumps(scores), flush=True)
    child.close()


if __name__ == "__main__":
    main()
