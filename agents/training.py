"""From a folder of traces to a run folder: load, split by question, train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlbudget.agents.config import MEMBERS, PPOConfig, ensemble_of
from rlbudget.errors import UserError
from rlbudget.files.folders import locked
from rlbudget.policy.observation import Preset, feature_names
from rlbudget.policy.seen import marks_of, texts_of
from rlbudget.signals.repeats import TOKEN_REPEATS
from rlbudget.signals.text import TEXT_SIGNALS
from rlbudget.signals.tokens import CHOICE, PAID_SIGNALS, TOP_SIGNALS
from rlbudget.traces.agreement import FIELD
from rlbudget.traces.sampling import load_sample
from rlbudget.traces.store import digest, iter_questions, iter_traces
from rlbudget.traces.table import joined, split_questions
from rlbudget.traces.trace import Trace

if TYPE_CHECKING:
    from rlbudget.agents.ppo import TrainResult
    from rlbudget.policy.folder import Policy


RECORDED = (
    "stride", "probe_tokens", "max_tokens", "temperature", "profile", "scorer", "top_logprobs",
    "system", "chat_template_kwargs",
)  # fmt: skip
"""Settings in which a live decode must agree with the recording."""

_GOING_ON = 0.3
"""learning rate of a policy that is continued, as a share of that of a fresh one"""


def train_on(
    traces: Path,
    run_dir: Path,
    *,
    preset: Preset = "free",
    signals: Literal["all", "top", "text"] = "all",
    token_price: tuple[float, float] | None = None,
    total_timesteps: int | None = None,
    advantages: Literal["exact", "sampled"] = "exact",
    context: bool = False,
    tasks: bool = False,
    choices: bool = False,
    exits: bool = False,
    repeats: bool = False,
    em_floor: float | None = None,
    token_budget: float | None = None,
    seed: int = 0,
    split_seed: int = 0,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    start: Policy | None = None,
    members: int = MEMBERS,
) -> TrainResult:
    """Train a cross-fitted ensemble on the training and validation questions of a folder of traces.

    ``members`` is that of each kind (``agents.crossfit``); with 1, for a ``start``, sampled
    advantages and a constraint a single policy is trained on the training questions and chosen on
    the validation ones. Of a store too large for the memory these are some
    (``traces.sampling``).
    ``em_floor`` or ``token_budget`` make the policy's default price the one that meets it.
    ``context`` adds the question's numbers to the observation, ``tasks`` its task, ``choices`` what
    the model chooses among a question's answer options, ``exits`` the other
    ``signals.tokens.PAID_SIGNALS``, which cost tokens, ``repeats`` how much of the thinking was
    written before; ``signals`` ``top`` keeps those of ``signals.tokens.TOP_SIGNALS``, for servers
    that give no logits, ``text`` those of ``signals.text.TEXT_SIGNALS``, for servers that give no
    log-probabilities either: ``all`` are these too, where the traces hold no others.
    ``start`` is a policy to continue from, whose observation and prices are kept. Raises
    ``UserError`` for traces that cannot be trained on and for a run folder that holds another run.
    """
    from rlbudget.agents import crossfit, ppo  # need torch and gymnasium

    with locked(run_dir):  # who trains there already is named before anything is read
        pass
    table = load_sample(traces, context=context or tasks or start is not None).table
    split = split_questions(table, seed=split_seed)
    given = [split.train.question_ids, split.validation.question_ids]
    questions = len(np.unique(np.concatenate(given)))
    train_part, validation, names = split.train, split.validation, tuple(table.signals)
    texts = texts_of(iter_questions(traces, of=table.question_ids))
    del table, split  # what is held out takes no memory
    first = next(iter_traces(traces))
    features = None
    if choices:
        _check_choices(preset, names)
    if exits:
        _check_exits(preset, names)
    if repeats and TOKEN_REPEATS not in names:
        raise UserError(f"--repeats: the traces do not hold {TOKEN_REPEATS}, which rlbudget record"
                        " and annotate write: record them again, or train without")  # fmt: skip
    if start is None and (context or tasks or choices or exits or repeats or signals != "all"):
        kept = set(names) if signals == "all" else _only(signals, names)
        features = feature_names(
            kept | ({CHOICE} if choices else set()) | ({TOKEN_REPEATS} if repeats else set()),
            preset, context=context, tasks=tasks, choices=choices, exits=exits, repeats=repeats,
        )  # fmt: skip
    config = PPOConfig(
        preset=preset,
        token_price=token_price,
        features=features,
        advantages=advantages,
        total_timesteps=total_timesteps,
        em_floor=em_floor,
        token_budget=token_budget,
        seed=seed,
    )
    if start is not None:
        config = replace(
            config,
            preset=start.preset,
            features=start.features,
            token_price=start.price_range,
            learning_rate=config.learning_rate * _GOING_ON,
            hidden=tuple(start.config["layers"][1:-1]),
        )
    config = config if start is not None else ensemble_of(config, questions, members)
    about: dict[str, Any] = {
        "progress": progress,
        "resume": resume,
        "digest": digest(traces),
        "split_seed": split_seed,
        "recorded": recorded_of(first),
        "seen": marks_of([*train_part.question_ids, *validation.question_ids], texts),
    }
    if config.members > 1:
        return crossfit.train_crossfit(joined([train_part, validation]), config, run_dir, **about)
    return ppo.train(train_part, validation, config, run_dir, start=start, **about)


def recorded_of(trace: Trace) -> dict[str, Any]:
    """What made a trace, as far as it says: its model and the settings of ``RECORDED``, and what
    its answers were compared with, where that is not a target."""
    made = {name: trace.meta[name] for name in (*RECORDED, FIELD) if name in trace.meta}
    return {"model": trace.model} | made


def _check_choices(preset: str, signals: Iterable[str]) -> None:
    if preset not in ("probe", "turns"):
        raise UserError(f"--choices needs trial answers: the {preset} preset has none of its own")
    if CHOICE not in signals:
        raise UserError(
            "--choices: the traces hold no choice among answer options (answer_entropy): record a"
            " task whose questions have options"
        )


def _check_exits(preset: str, signals: Iterable[str]) -> None:
    if preset not in ("probe", "turns"):
        raise UserError(f"--exits needs trial answers: the {preset} preset has none of its own")
    if not ({*PAID_SIGNALS} - {CHOICE}) & set(signals):
        raise UserError("--exits: the traces hold neither exit_entropy nor probe_tail, which"
                        " rlbudget record writes")  # fmt: skip


def _only(kind: Literal["top", "text"], signals: Iterable[str]) -> set[str]:
    known = TOP_SIGNALS if kind == "top" else TEXT_SIGNALS
    found = set(signals) & set(known)
    if not found:
        what = (
            "that top log-probabilities give"
            if kind == "top"
            else "of the text: record with --text-signals"
        )
        raise UserError(f"the traces hold none of the signals {what} ({', '.join(known)})")
    return found | ({"probe_tail"} & set(signals) if kind == "top" else set())
