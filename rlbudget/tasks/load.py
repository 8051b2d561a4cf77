"""From a task's name to its questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rlbudget.errors import UserError
from rlbudget.tasks import reasoning_gym
from rlbudget.tasks.extraction import after_thinking
from rlbudget.tasks.files import LAYOUTS, OWN, load_file
from rlbudget.tasks.scorers import extracted
from rlbudget.tasks.task import Question, Task

SPECS = (
    "embedded",
    "smollm2",
    "reasoning-gym:FAMILY",
    "gsm8k:PATH.jsonl",
    "math:PATH.jsonl",
    "squad:PATH.jsonl",
    "PATH.jsonl",
)


def load_task(spec: str, *, n: int, seed: int = 0) -> Task:
    """The task a name stands for, with ``n`` questions drawn by ``seed``.

    ====================  =================================================================
    embedded              the families of the embedded model, questions it was not trained on
    smollm2               the same for the SmolLM2 reasoner: word problems, sums, equations, days
    reasoning-gym:FAMILY  one family of the package, scored by its own verifier
    gsm8k:PATH.jsonl      question, answer (the target follows ####); scored as mathematics
    math:PATH.jsonl       problem, answer; scored as mathematics
    squad:PATH.jsonl      question, target (text or list) [, context]; normalised text
    PATH.jsonl            question, target [, id]; normalised text
    ====================  =================================================================

    A line of any of these files may also have ``options``: a list of the answers there are to
    choose from, such as ``["yes", "no"]``. Families with few possible answers bring them along.

    Raises ``UserError`` for an unknown task, ``n < 1``, more questions than there are, a bad
    line (``FILE:LINE: what is wrong``), or a missing extra.
    """
    if n < 1:
        raise UserError(f"--n must be at least 1, got {n}")
    kind, colon, rest = spec.partition(":")
    if spec == "embedded":
        return _reasoning_gym(spec, reasoning_gym.draw(n=n, seed=seed))
    if spec == "smollm2":
        drawn = reasoning_gym.draw(reasoning_gym.SMOLLM2_FAMILIES, n, seed)
        return _reasoning_gym(spec, drawn)
    if kind == "reasoning-gym" and rest:
        return _reasoning_gym(spec, reasoning_gym.family_items(rest, {}, n, seed))
    if colon and rest and kind in LAYOUTS:
        return load_file(Path(rest), name=kind, layout=LAYOUTS[kind], n=n, seed=seed)
    if spec.endswith(".jsonl"):
        return load_file(Path(spec), name=Path(spec).stem, layout=OWN, n=n, seed=seed)
    raise UserError(f"unknown task {spec!r}; one of: {', '.join(SPECS)}")


def _reasoning_gym(name: str, items: Sequence[reasoning_gym.Item]) -> Task:
    return Task(
        name=name,
        questions=tuple(
            Question(
                question_id=f"{item.family}-{_short_hash(item.question)}",
                question=item.question,
                target=item.target,
                meta={"family": item.family, "entry": item.entry},
                options=reasoning_gym.OPTIONS.get(item.family, ()),
            )
            for item in items
        ),
        score=verify,
        scorer="verifier",
    )


def verify(question: Question, answer: str) -> int:
    """Score an answer to a reasoning-gym question by its family's own verifier."""
    family, entry = question.meta["family"], question.meta["entry"]
    whole = after_thinking(answer).strip()
    found = extracted(answer)
    return reasoning_gym.score(family, entry, whole) or (
        reasoning_gym.score(family, entry, found) if found not in ("", whole) else 0
    )


def _short_hash(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:16]
