r"""Right answers scored 1, wrong ones 0: ours, math-verify and lm-evaluation-harness.

    bash runs/quality/answers.sh [--data FOLDER] [--quick]   # makes the rivals' venv first

Reference solutions of MATH-500 and GSM8K against their own targets; right rewritings of MATH-500's
targets and wrong answers that look like them (``answer_pairs.py``), every pair by every scorer in
one run (``answers_rival.py``); the speed in one process, what a million hostile characters cost
(``answers_hostile.py``), and what outlives the scoring process (``answers_speed.py``).

An error is a right answer scored 0 or a wrong one scored 1; a rival that raises or hangs on a
right answer has scored it 0. Beside the errors over all pairs stand those over the kinds of pair
a rival was made for. ``--quick`` takes every tenth pair and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlbudget.tasks import exact_match_math, load_task
from runs.common import ROOT, write_result
from runs.quality import answers_hostile
from runs.quality.answer_pairs import DATA, Pair, all_pairs, read_targets
from runs.quality.answer_shapes import shape_of
from runs.quality.answers_speed import Rate, latex, left_behind, plain_numbers

OURS = "rlbudget"
MATH = (
    "math-verify",
    "math-verify in $",
    "hendrycks_math",
    "minerva_math",
    "minerva_math asked for",
    "minerva math_verify",
)
GSM8K = ("gsm8k strict", "gsm8k flexible")
RIVALS = {
    "math-verify": "math-verify 0.9.0",
    "math-verify in $": "math-verify 0.9.0, bare formulas put in $ $",
    "hendrycks_math": "lm-evaluation-harness hendrycks_math",
    "minerva_math": "lm-evaluation-harness minerva_math",
    "minerva_math asked for": "lm-evaluation-harness minerva_math, in the sentence it asks for",
    "minerva math_verify": "lm-evaluation-harness minerva_math, math_verify",
    "gsm8k strict": "lm-evaluation-harness gsm8k, strict-match",
    "gsm8k flexible": "lm-evaluation-harness gsm8k, flexible-extract",
}
HOSTILE_SECONDS = 10.0
EXAMPLES = 3
TOP_KINDS = 8
_LONGEST_SHOWN = 160

Scores = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Errors:
    """How often a scorer was wrong, of both kinds, and how often it gave no score."""

    right_scored_0: int = 0
    wrong_scored_1: int = 0
    raised: int = 0
    hung: int = 0

    @property
    def both(self) -> int:
        """Right scored 0 and wrong scored 1."""
        return self.right_scored_0 + self.wrong_scored_1


def main() -> None:
    """Score, time, write."""
    args = _arguments()
    pairs = all_pairs(read_targets(args.data))[:: 10 if args.quick else 1]
    print(f"{len(pairs)} pairs by {OURS} ...", file=sys.stderr)
    ours: Scores = [{OURS: exact_match_math(pair.answer, pair.target)} for pair in pairs]
    if args.ours:
        _show(pairs, ours)
        return
    speed = {"plain numbers": plain_numbers(), "LaTeX": latex(pairs)}
    hostile, left = _hostile(), left_behind()
    references = _references(args.data)
    print(f"{len(pairs)} pairs by {len(RIVALS)} rivals (minutes) ...", file=sys.stderr)
    theirs = _by_rivals(args.rival_python, [(pair, MATH + GSM8K) for pair in pairs], 15.0)
    scores = [mine | other for mine, other in zip(ours, theirs, strict=True)]
    errors = {name: _errors(name, pairs, scores) for name in (OURS, *RIVALS)}
    reference_scores = _by_rivals(args.rival_python, _reference_pairs(references), 15.0)
    write_result(
        "answers",
        [
            *_reference_rows(references),
            *_error_rows(pairs, errors),
            *_speed_rows(speed),
            _hostile_row(hostile),
            _left_row(left),
        ],
        keep=not args.quick,
        seeds=[0],
        pairs={"right": sum(p.wanted for p in pairs), "wrong": sum(not p.wanted for p in pairs)},
        errors={name: asdict(found) for name, found in errors.items()},
        errors_on_their_own_ground=_own_ground(pairs, scores),
        reference_solutions_scored_0=_reference_errors(references, reference_scores),
        kinds={name: _kinds(name, pairs, scores) for name in (OURS, *RIVALS)},
        rivals_on_hostile_text=_rivals_on_hostile(args.rival_python),
        hostile_seconds=hostile,
        left_behind={end: asdict(found) for end, found in left.items()},
        rival_versions=_rival_versions(args.rival_python),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with math500/ and gsm8k/")
    parser.add_argument("--rival-python", type=Path, help="interpreter of the rivals' venv")
    parser.add_argument("--quick", action="store_true", help="every tenth pair; keep nothing")
    parser.add_argument("--ours", action="store_true", help="our errors by kind only, printed")
    args = parser.parse_args()
    for file in ("math500/test.jsonl", "gsm8k/test.jsonl", "gsm8k/train.jsonl"):
        if not (args.data / file).is_file():
            raise SystemExit(f"{file} is not in the data folder; give its place with --data")
    if args.rival_python is None and not args.ours:
        raise SystemExit("--rival-python is missing: run runs/quality/answers.sh, or give --ours")
    return args


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference solution, its target, and our score."""

    data: str
    solution: str
    target: str
    score: int


def _references(folder: Path) -> list[Reference]:
    """Every reference solution, scored."""
    lines = (folder / "math500" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    found = [
        Reference(
            "MATH-500", r["solution"], r["answer"], exact_match_math(r["solution"], r["answer"])
        )
        for r in rows
    ]
    for part in ("test", "train"):
        file = folder / "gsm8k" / f"{part}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        solution = {row["question"]: row["answer"] for row in rows}
        task = load_task(f"gsm8k:{file}", n=len(rows))
        for question in task.questions:
            text = solution[question.question]
            score = task.score(question, text)
            found.append(Reference(f"GSM8K {part}", text, question.target, score))
    return found


def _reference_rows(references: Sequence[Reference]) -> list[dict[str, Any]]:
    rows = []
    for data in dict.fromkeys(reference.data for reference in references):
        scores = [reference.score for reference in references if reference.data == data]
        rows.append(
            {
                "row": f"reference solutions of {data} scored 1 against their own targets",
                "wanted": f"{len(scores):,} of {len(scores):,}",
                "reached": f"{sum(scores):,}",
                "met": sum(scores) == len(scores),
            }
        )
    return rows


def _reference_pairs(references: Sequence[Reference]) -> list[tuple[Pair, tuple[str, ...]]]:
    """MATH-500 for the scorers of MATH, GSM8K for its own; math-verify scores both."""
    return [
        (
            Pair(reference.data, reference.target, reference.solution, 1, bare=False),
            MATH if reference.data == "MATH-500" else ("math-verify", *GSM8K),
        )
        for reference in references
    ]


def _reference_errors(references: Sequence[Reference], scores: Scores) -> dict[str, Any]:
    """Per data set: how many of how many a scorer scored 0."""
    missed: dict[str, Counter[str]] = defaultdict(Counter)
    for reference, score in zip(references, scores, strict=True):
        missed[reference.data].update({OURS: 1 - reference.score})
        missed[reference.data].update({name: int(got != 1) for name, got in score.items()})
    return {data: dict(counts) for data, counts in missed.items()}


def _by_rivals(
    python: Path, wanted: Iterable[tuple[Pair, Sequence[str]]], seconds: float
) -> Scores:
    """The rivals' scores, a dict a pair, from their own venv."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as lines:
        for pair, names in wanted:
            line = {"answer": pair.answer, "target": pair.target, "bare": pair.bare}
            lines.write(json.dumps(line | {"scorers": list(names)}) + "\n")
        lines.seek(0)
        done = subprocess.run(
            [python, "-m", "runs.quality.answers_rival", "--seconds", str(seconds)],
            cwd=ROOT,
            stdin=lines,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _errors(name: str, pairs: Sequence[Pair], scores: Scores) -> Errors:
    found = Errors()
    for pair, score in zip(pairs, scores, strict=True):
        got = score[name]
        if got in ("hang", "died"):
            found = replace(found, hung=found.hung + 1)
        elif isinstance(got, str):
            found = replace(found, raised=found.raised + 1)
        if pair.wanted and got != 1:
            found = replace(found, right_scored_0=found.right_scored_0 + 1)
        if not pair.wanted and got == 1:
            found = replace(found, wrong_scored_1=found.wrong_scored_1 + 1)
    return found


def _own_ground(pairs: Sequence[Pair], scores: Scores) -> dict[str, Any]:
    """Errors where only spelling is asked for, and where the target is a whole number."""
    grounds: dict[str, tuple[Callable[[Pair], bool], Sequence[str]]] = {
        "bare formulas": (lambda pair: pair.bare, MATH),
        "in sentences, boxes and marks": (lambda pair: not pair.bare, MATH),
        "whole numbers": (lambda pair: shape_of(pair.target).integer is not None, GSM8K),
        "whole numbers behind ####": (_behind_hashes, GSM8K),
    }
    found = {}
    for ground, (belongs, names) in grounds.items():
        chosen = [i for i, pair in enumerate(pairs) if belongs(pair)]
        some, some_scores = [pairs[i] for i in chosen], [scores[i] for i in chosen]
        count = partial(_errors, pairs=some, scores=some_scores)
        errors = {name: asdict(count(name)) for name in (OURS, *names)}
        found[ground] = {"pairs": len(some), "errors": errors}
    return found


def _behind_hashes(pair: Pair) -> bool:
    return "####" in pair.answer and shape_of(pair.target).integer is not None


def _error_rows(pairs: Sequence[Pair], errors: dict[str, Errors]) -> list[dict[str, Any]]:
    right = sum(pair.wanted for pair in pairs)
    wrong, ours = len(pairs) - right, errors[OURS]
    scored_1, let_in = (right - ours.right_scored_0) / right, ours.wrong_scored_1 / wrong
    rows = [
        {
            "row": f"{right:,} right rewritings of MATH-500 targets scored 1",
            "wanted": ">= 99.5%",
            "reached": f"{scored_1:.2%}",
            "met": scored_1 >= 0.995,
        },
        {
            "row": f"{wrong:,} wrong answers scored 1",
            "wanted": "<= 0.5%",
            "reached": f"{let_in:.2%}",
            "met": let_in <= 0.005,
        },
    ]
    for name, described in RIVALS.items():
        theirs = errors[name]
        rows.append(
            {
                "row": f"errors on both sets, {described}",
                "wanted": f"< {theirs.both:,}"
                f" ({theirs.right_scored_0:,} right ones + {theirs.wrong_scored_1:,} wrong ones)",
                "reached": f"{ours.both:,} ({ours.right_scored_0:,} + {ours.wrong_scored_1:,})",
                "met": ours.both < theirs.both,
            }
        )
    return rows


def _kinds(name: str, pairs: Sequence[Pair], scores: Scores) -> list[dict[str, Any]]:
    """The kinds a scorer errs on most, with examples; of ours all."""
    tried = Counter((pair.wanted, pair.kind) for pair in pairs)
    missed: dict[tuple[int, str], list[Pair]] = defaultdict(list)
    for pair, score in zip(pairs, scores, strict=True):
        if (score[name] == 1) != bool(pair.wanted):
            missed[pair.wanted, pair.kind].append(pair)
    ranked = sorted(missed.items(), key=lambda item: -len(item[1]))
    return [
        {
            "kind": kind,
            "wanted": wanted,
            "errors": f"{len(those)} of {tried[wanted, kind]}",
            "examples": [[p.target, p.answer[-_LONGEST_SHOWN:]] for p in those[:EXAMPLES]],
        }
        for (wanted, kind), those in ranked[: None if name == OURS else TOP_KINDS]
    ]


def _speed_rows(speed: dict[str, Rate]) -> list[dict[str, Any]]:
    """Numbers need no worker: by processor time, since the clock measures the neighbours too."""
    numbers, formulas = speed["plain numbers"], speed["LaTeX"]
    return [
        {
            "row": "plain numbers scored in a second of processor time, one process",
            "wanted": ">= 50,000",
            "reached": f"{numbers.processor:,.0f} (by the clock {numbers.clock:,.0f})",
            "met": numbers.processor >= 50_000,
        },
        {
            "row": "LaTeX pairs scored in a second by the clock, one process and its worker",
            "wanted": ">= 300",
            "reached": f"{formulas.clock:,.0f}",
            "met": formulas.clock >= 300,
        },
    ]


def _hostile() -> dict[str, float | str]:
    """Seconds of the slowest call by kind of text; "hang" beyond the limit."""
    found: dict[str, float | str] = {}
    for kind in answers_hostile.texts():
        command = [sys.executable, "-m", "runs.quality.answers_hostile", "--kind", kind]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
            found |= json.loads(done.stdout) if done.returncode == 0 else {kind: "raised"}
        except subprocess.TimeoutExpired:
            found[kind] = "hang"
    return found


def _hostile_row(hostile: dict[str, float | str]) -> dict[str, Any]:
    seconds = [float("inf") if isinstance(s, str) else s for s in hostile.values()]
    return {
        "row": f"seconds for a hostile text, up to 10^6 characters, worst of {len(seconds)} kinds",
        "wanted": "< 0.1",
        "reached": f"{max(seconds):.3f} ({list(hostile)[seconds.index(max(seconds))]})",
        "met": max(seconds) < 0.1,
    }


def _left_row(left: dict[str, Any]) -> dict[str, Any]:
    started, stayed = (
        sum(getattr(x, field) for x in left.values()) for field in ("started", "left")
    )
    return {
        "row": "processes left 5 s after a scoring program, ended in "
        f"{len(left)} ways ({', '.join(left)})",
        "wanted": f"0 of those it started, at least {len(left)}",
        "reached": f"{stayed} of {started}",
        "met": stayed == 0 and started >= len(left),
    }


def _rivals_on_hostile(python: Path) -> dict[str, Any]:
    """What the rivals raise, and where they take over 10 s, by kind of text."""
    names = ("math-verify", "hendrycks_math", "minerva_math", "gsm8k strict", "gsm8k flexible")
    texts = answers_hostile.texts()
    pairs = [
        (Pair(kind, "42", f"The answer is $\\boxed{{42}}$. {text}", 1, bare=False), names)
        for kind, text in texts.items()
        if kind != "surrogate"  # is no JSON of theirs
    ]
    print(f"{len(pairs)} hostile texts by {len(names)} rivals (minutes) ...", file=sys.stderr)
    found: dict[str, Any] = {name: {"hang": [], "raised": []} for name in names}
    started = time.monotonic()
    for (pair, _), scores in zip(pairs, _by_rivals(python, pairs, HOSTILE_SECONDS), strict=True):
        for name, got in scores.items():
            if got in ("hang", "died"):
                found[name]["hang"].append(pair.kind)
            elif isinstance(got, str):
                found[name]["raised"].append(f"{pair.kind}: {got[:80]}")
    return {"seconds_in_all": round(time.monotonic() - started), **found}


def _rival_versions(python: Path) -> dict[str, str]:
    packages = ("lm-eval", "math-verify", "sympy", "antlr4-python3-runtime")
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    done = subprocess.run(
        [python, "-c", code, *packages], capture_output=True, text=True, check=True
    )
    return dict(zip(packages, done.stdout.split(), strict=True))


def _show(pairs: Sequence[Pair], scores: Scores) -> None:
    found = _errors(OURS, pairs, scores)
    print(f"right scored 0: {found.right_scored_0}, wrong scored 1: {found.wrong_scored_1}")
    for kind in _kinds(OURS, pairs, scores):
        print(f"{kind['wanted']} {kind['kind']}: {kind['errors']}")
        for target, answer in kind["examples"]:
            print(f"    {target!r} {answer!r}")


if __name__ == "__main__":
    main()
