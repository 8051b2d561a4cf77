"""Annotating through a server: it scores the stored thinking and answers at every cut.

A thinking is scored in one prefill where the server can (``models.served_score``), so that its
exits find it in the prefix cache. Where it cannot, the signals are those of the text alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from rlbudget.decoding.annotate import AnnotateStats, Heard, Row, Wanted, Work, begun
from rlbudget.decoding.checkpoints import Written
from rlbudget.decoding.record_served import Served, meta_of, opened
from rlbudget.decoding.reread import served_speller_of
from rlbudget.decoding.served_decode import checkpoints_at, grid, measured
from rlbudget.decoding.sharing import Crew, shared
from rlbudget.errors import UserError
from rlbudget.models.completions import Prompt, Token
from rlbudget.models.served import ServedModel, Server, alive
from rlbudget.models.served_prompt import prompt_of
from rlbudget.models.served_score import can_score, score
from rlbudget.models.served_write import Spent
from rlbudget.models.site import ServerError
from rlbudget.tasks.log_rows import LeftOutError
from rlbudget.traces.trace import Checkpoint

_WINDOW = 16
"""requests at once whose rows are sorted by length together"""


@dataclass(frozen=True, slots=True)
class _Job:
    number: int
    row: Row


def annotate_served(
    served: Served,
    wanted: Wanted,
    heard: Heard,
    *,
    on_model: Callable[[ServedModel], None] = lambda model: None,
) -> tuple[AnnotateStats, Spent]:
    """Annotate a log through servers, which share its rows; what it did and what it cost.

    Raises ``UserError`` as ``rlbudget.decoding.annotate.annotate`` and
    ``rlbudget.models.served.open_model`` do; what was annotated is kept.
    """

    async def run() -> tuple[AnnotateStats, Spent]:
        async with opened(served) as model:
            on_model(model)
            spent = Spent()
            speller = served_speller_of(model, wanted.max_tokens)
            with begun(wanted, model, model.profile, speller, heard, **meta_of(model)) as work:
                while rows := work.window(_WINDOW * model.asked.concurrency):
                    await _annotate(model, rows, work, served.patience, spent)
                    work.writer.flush()
            return work.stats, spent

    try:
        return asyncio.run(run())
    except ServerError as error:
        raise UserError(
            f"{error}; what was annotated is kept: run the same command with --resume"
        ) from None


async def _annotate(
    model: ServedModel, rows: list[Row], work: Work, patience: float, spent: Spent
) -> None:
    matches = work.scored(rows)
    crew = Crew(model.servers, model.asked.concurrency, alive, patience)
    jobs = [_Job(number, row) for number, row in enumerate(rows)]

    async def one(server: Server, job: _Job) -> list[Checkpoint]:
        return await _points(model, server, job, work, matches, spent)

    async with aclosing(shared(crew, jobs, one)) as ended:
        async for given in ended:
            row = given.job.row
            if isinstance(given.result, UserError):
                problem = LeftOutError("that the server refuses", str(given.result))
                work.left_out.add(row.logged.place, problem)
                continue
            work.add(row, given.result, matches(given.job.number, row.spelled.answer))


async def _points(
    model: ServedModel, server: Server, job: _Job, work: Work,
    matches: Callable[[int, str], int], spent: Spent,
) -> list[Checkpoint]:  # fmt: skip
    """The checkpoints of one row."""
    spelled, settings, vocabulary = job.row.spelled, work.settings, model.vocabulary
    if spelled.plain:
        prompt = await prompt_of(model, server, spelled.question)
    else:
        text = vocabulary.text(spelled.prompt, special=True)
        prompt = Prompt(list(spelled.prompt), text, server.by_ids)
    ids = spelled.thinking
    tokens = None
    if can_score(server):
        tokens = await score(server, prompt, ids, rank=(1, job.number), spent=spent)
    listed = tokens or tuple(Token(token, "") for token in ids)
    places = grid(model, ids, settings.stride)
    signals, written = measured(model, listed, places), Written(vocabulary, texts=True)
    for place, shown in zip(places, signals, strict=True):
        shown |= written.at(0, ids[:place])
    prefixes = {place: _prefix(model, prompt, ids[:place]) for place in places}
    return await checkpoints_at(
        model, server, prefixes, signals, partial(matches, job.number),
        probe_tokens=settings.probe_tokens, number=job.number, spent=spent,
    )  # fmt: skip


def _prefix(model: ServedModel, prompt: Prompt, ids: tuple[int, ...]) -> Prompt:
    here = Prompt([*prompt.ids], prompt.text, prompt.by_ids)
    here.add(ids, model.vocabulary.text(ids, special=True))
    return here
