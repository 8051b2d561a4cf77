"""From a task's name to its questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rlbudget.errors import UserError
from rlbudget.tasks import reasoning_gym
from rlbudget.tasks.extraction import after_thinking
from rlbudget.tasks.files import LAYOUTS, OWN, Columns, OnBad, load_file, task_of
from rlbudget.tasks.rows import is_table
from rlbudget.tasks.scorers import extracted
from rlbudget.tasks.task import Question, Task

SPECS = (
    "embedded",
    "smollm2",
    "reasoning-gym:FAMILY",
    "gsm8k:FILE",
    "math:FILE",
    "squad:FILE",
    "FILE",
)


def load_task(
    spec: str,
    *,
    n: int | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    scorer: str | None = None,
    skip_bad: bool = False,
    on_bad: OnBad | None = None,
) -> Task:
    """The task a name stands for, with ``n`` questions drawn by ``seed``.

    ====================  =================================================================
    embedded              the families of the embedded model, questions it was not trained on
    smollm2               the same for the SmolLM2 reasoner: word problems, sums, equations, days
    reasoning-gym:FAMILY  one family of the package, scored by its own verifier
    gsm8k:FILE            question, answer (the target follows ####); scorer math
    math:FILE             problem, answer; scorer math
    squad:FILE            question, target (text or list) [, context]; scorer text
    FILE                  question, target [, options, id, scorer]; scorer auto
    ====================  =================================================================

    A FILE is JSONL, CSV or Parquet by the ending of its name, or a folder that ``datasets`` saved;
    ``columns`` names other columns. Rows of any table may have ``options``: the answers there are
    to choose from, such as ``["yes", "no"]``. Families with few possible answers bring them along.
    ``scorer`` overrides how answers are scored. Without ``n`` all questions of a FILE are taken.
    Bad rows of a FILE are left out and told to ``on_bad`` with ``skip_bad``.

    Raises ``UserError`` for an unknown task or scorer, ``n < 1``, more questions than there are, a
    bad row (``FILE:LINE: what is wrong``), or a missing extra.
    """
    if n is not None and n < 1:
        raise UserError(f"--n must be at least 1, got {n}")
    kind, colon, rest = spec.partition(":")
    drawn = spec in ("embedded", "smollm2") or (kind == "reasoning-gym" and rest)
    if drawn:
        if n is None:
            raise UserError(f"--n is needed: the task {spec} makes as many questions as you want")
        if columns not in (None, Columns()):
            raise UserError(f"the task {spec} is no file: it has no columns to name")
        task = _drawn(spec, rest, n, seed)
        return task if scorer is None else task_of(task.name, task.questions, scorer)
    named = bool(colon and rest and kind in LAYOUTS)
    if not named and not is_table(spec):
        raise UserError(f"unknown task {spec!r}; one of: {', '.join(SPECS)}")
    path = Path(rest if named else spec)
    return load_file(
        path, name=kind if named else path.stem, layout=LAYOUTS[kind] if named else OWN,
        n=n, seed=seed, columns=columns, scorer=scorer, skip_bad=skip_bad, on_bad=on_bad,
    )  # fmt: skip


def _drawn(spec: str, family: str, n: int, seed: int) -> Task:
    if spec == "embedded":
        return _reasoning_gym(spec, reasoning_gym.draw(n=n, seed=seed))
    if spec == "smollm2":
        found = reasoning_gym.draw(reasoning_gym.SMOLLM2_FAMILIES, n, seed)
        return _reasoning_gym(spec, found)
    return _reasoning_gym(spec, reasoning_gym.family_items(family, {}, n, seed))


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
