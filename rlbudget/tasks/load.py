"""Tasks by name: drawn from generators, or read from files."""

from __future__ import annotations

from pathlib import Path

from rlbudget.errors import UserError
from rlbudget.tasks import reasoning_gym
from rlbudget.tasks.extraction import after_thinking
from rlbudget.tasks.files import LAYOUTS, OWN, Columns, OnBad, load_file, short_hash, task_of
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
_OWN_FAMILIES = {
    "embedded": reasoning_gym.EMBEDDED_FAMILIES,
    "smollm2": reasoning_gym.SMOLLM2_FAMILIES,
}


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
    ``columns`` names other columns. Rows of any table may have ``options``, the choices of a
    multiple-choice question, such as ``["yes", "no"]``; families with a fixed set of answers have
    them, too. ``scorer`` overrides how answers are scored. Without ``n`` all questions of a FILE
    are taken. With ``skip_bad``, bad rows of a FILE are skipped and reported to ``on_bad``.

    Raises ``UserError`` for an unknown task or scorer, ``n < 1``, more questions than there are, a
    bad row (``FILE:LINE: what is wrong``), or a missing extra.
    """
    if n is not None and n < 1:
        raise UserError(f"--n must be at least 1, got {n}")
    kind, colon, rest = spec.partition(":")
    drawn = spec in _OWN_FAMILIES or (kind == "reasoning-gym" and rest)
    if drawn:
        if n is None:
            raise UserError(f"--n is needed: the task {spec} makes as many questions as you want")
        if columns not in (None, Columns()):
            raise UserError(f"the task {spec} is no file: it has no columns to name")
        return _drawn(spec, rest, n, seed, scorer)
    named = bool(colon and rest and kind in LAYOUTS)
    if not named and not is_table(spec):
        raise UserError(f"unknown task {spec!r}; one of: {', '.join(SPECS)}")
    path = Path(rest if named else spec)
    return load_file(
        path, name=kind if named else path.stem, layout=LAYOUTS[kind] if named else OWN,
        n=n, seed=seed, columns=columns, scorer=scorer, skip_bad=skip_bad, on_bad=on_bad,
    )  # fmt: skip


def _drawn(spec: str, family: str, n: int, seed: int, scorer: str | None) -> Task:
    items = (
        reasoning_gym.draw({family: {}}, n, seed, reserved=None)
        if family
        else reasoning_gym.draw(_OWN_FAMILIES[spec], n, seed)
    )
    questions = tuple(
        Question(
            question_id=f"{item.family}-{short_hash(item.question)}",
            question=item.question,
            target=item.target,
            meta={"family": item.family, "entry": item.entry},
            options=reasoning_gym.OPTIONS.get(item.family, ()),
        )
        for item in items
    )
    if scorer is not None:
        return task_of(spec, questions, scorer)
    return Task(spec, questions, verify, "verifier")


def verify(question: Question, answer: str) -> int:
    """Score an answer to a reasoning-gym question by its family's own verifier."""
    family, entry = question.meta["family"], question.meta["entry"]
    whole = after_thinking(answer).strip()
    found = extracted(answer)
    answers = (whole,) if found in ("", whole) else (whole, found)
    return reasoning_gym.score(family, entry, *answers)
