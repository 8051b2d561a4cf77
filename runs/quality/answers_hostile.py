r"""Texts of up to a million characters that a scorer may choke on, and how long ours takes.

    python -m runs.quality.answers_hostile [--kind NAME]

Each is scored alone, behind a box, before a box, inside one, and around a number, against a number,
a fraction and a word, as mathematics and as text; at a million characters and at shorter lengths,
since a limit on length may hide what a text just below it costs. Prints
``{kind: seconds of the slowest}``, a line a kind; ``answers.py`` reads them, with a limit to each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from rlbudget.tasks import exact_match_math, exact_match_text

LENGTHS = (10**6, 10**5, 20_000, 3_000, 300)
_TRIES = 5
_QUICK = 0.05
_TARGETS = ("42", "\\frac{14}{3}", "\\text{Evelyn}")
_UNITS = {
    "brackets opened": "(",
    "braces opened": "{",
    "braces closed": "}",
    "braces opened and closed": "{}",
    "square brackets": "[",
    "backslashes": "\\",
    "boxes opened": "\\boxed{",
    "boxes without braces": "\\boxed ",
    "whole boxes": "\\boxed{7} ",
    "nested fractions": "\\frac{",
    "fractions": "\\frac{1}{2}",
    "short fractions": "\\frac12",
    "roots": "\\sqrt{",
    "left": "\\left(",
    "text": "\\text{",
    "digits": "9",
    "digits and commas": "999,",
    "digits and spaces": "9 ",
    "points": "1.",
    "commas": ",",
    "plus and minus": "+-",
    "equals": "=",
    "powers": "2^",
    "nested powers": "2^{",
    "indices": "x_",
    "factorials": "!",
    "exponents": "1e9",
    "spaces": " ",
    "new lines": "\n",
    "tabs": "\t",
    "dollars": "$",
    "dollars and spaces": "$ ",
    "double dollars": "$$x",
    "stars": "*",
    "bold": "**1** ",
    "answer is": "answer is ",
    "the answer is 1.": "The answer is 1. ",
    "answer:": "Answer: ",
    "not": "not ",
    "or": "1 or ",
    "hashes": "#### ",
    "hashes and numbers": "#### 4\n",
    "thinking opened": "<think>",
    "thinking closed": "</think>",
    "displays opened": "\\[",
    "inline opened": "\\(",
    "environments": "\\begin{pmatrix}",
    "combining marks": "a\u0301",
    "marks alone": "\u0301",
    "wide digits": "\uff17",
    "wide signs": "\ufdfa",
    "zero-width": "\u200b",
    "emoji": "\U0001f600",
    "surrogate": "\ud800",
    "null": "\0",
    "words": "word ",
    "one word": "a",
    "options": "(A) ",
    "percent": "50% ",
    "units": "5 cm ",
    "quotes": "'",
    "full stops": ".",
    "hyphens": "-",
    "slashes": "1/",
    "underscores": "_",
    "tables": "| 1 | 2 |\n",
}


def texts() -> dict[str, str]:
    """A million characters of each kind."""
    return {kind: _filled(unit, LENGTHS[0]) for kind, unit in _UNITS.items()}


def variants(text: str) -> list[str]:
    """The text alone, behind a box, before one, inside one, and around a number."""
    boxed = "The answer is $\\boxed{42}$."
    half = text[: len(text) // 2]
    return [text, boxed + text, text + boxed, f"\\boxed{{{text}}}", f"{half}42{half}"]


def _filled(unit: str, length: int) -> str:
    return (unit * (length // len(unit) + 1))[:length]


def _slowest(unit: str) -> float:
    """Seconds of the slowest call over lengths, variants and targets."""
    texts = [variant for length in LENGTHS for variant in variants(_filled(unit, length))]
    return max(
        _seconds(score, text, target)
        for text in texts
        for target in _TARGETS
        for score in (exact_match_math, exact_match_text)
    )


def _seconds(score: Callable[[str, str], int], text: str, target: str) -> float:
    """The quickest of a few tries, since others share the machine; a quick first one is enough."""
    quickest = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        score(text, target)
        quickest = min(quickest, time.perf_counter() - start)
        if quickest < _QUICK:
            break
    return quickest


def main() -> None:
    """Time every kind, or one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=list(_UNITS), help="one kind only")
    args = parser.parse_args()
    exact_match_math("\\sqrt{2} + 1", "1 + \\sqrt{2}")  # whatever starts at the first call
    for kind, unit in _UNITS.items():
        if args.kind in (None, kind):
            print(json.dumps({kind: round(_slowest(unit), 4)}), flush=True)


if __name__ == "__main__":
    main()
