r"""Texts of a million characters that a scorer may choke on, and how long ours takes over each.

    python runs/answers_hostile.py [--kind NAME]

Each is scored alone, behind a box, before a box, and inside one, against a number, a fraction and
a word, as mathematics and as text. Prints ``{kind: seconds of the slowest}``, a line a kind;
``answers.py`` reads them and gives a kind that takes too long up.
"""

from __future__ import annotations

import argparse
import json
import time

from rlbudget.tasks import exact_match_math, exact_match_text

LENGTH = 10**6
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
    return {kind: _filled(unit, LENGTH) for kind, unit in _UNITS.items()}


def variants(text: str) -> list[str]:
    """The text alone, behind a box, before one, inside one, and as a balanced nest."""
    boxed = "The answer is $\\boxed{42}$."
    half = text[: len(text) // 2]
    return [text, boxed + text, text + boxed, f"\\boxed{{{text}}}", f"{half}42{half}"]


def _filled(unit: str, length: int) -> str:
    return (unit * (length // len(unit) + 1))[:length]


def _slowest(text: str) -> float:
    """Seconds of the slowest call over a text's variants, the quicker of two tries of each."""
    longest = 0.0
    for variant in variants(text):
        for target in _TARGETS:
            for score in (exact_match_math, exact_match_text):
                tries = []
                while len(tries) < 2 and (not tries or tries[0] > 0.05):
                    start = time.perf_counter()
                    score(variant, target)
                    tries.append(time.perf_counter() - start)
                longest = max(longest, min(tries))
    return longest


def main() -> None:
    """Time every kind, or one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=list(_UNITS), help="one kind only")
    args = parser.parse_args()
    exact_match_math("\\sqrt{2} + 1", "1 + \\sqrt{2}")  # whatever starts at the first call
    for kind, text in texts().items():
        if args.kind in (None, kind):
            print(json.dumps({kind: round(_slowest(text), 4)}), flush=True)


if __name__ == "__main__":
    main()
