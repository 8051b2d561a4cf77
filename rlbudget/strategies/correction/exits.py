"""What the answer of an exit tells once it is written, as signals: recorded and live.

===================  =========================================================================
exit_confidence      geometric mean of the probabilities of the answer's first tokens, as many as
                     a trial answer has
exit_entropy         of the distribution of the first of them (recorded)
probe_tail           mean of their probabilities after the first (recorded)
thinking checks      see ``recheck.py`` beside this file; where the traces hold the thinking
===================  =========================================================================

None of them costs a token more than the exit did: an exit begins with the tokens of the trial
answer that was recorded at its checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlbudget.policy.observation import feature_names
from rlbudget.signals.questions import CONTEXT_SIGNALS, TASK_SIGNALS
from rlbudget.strategies.correction.recheck import THINKING_CHECKS, thinking_checks
from rlbudget.traces.store import iter_traces, load_table
from rlbudget.traces.table import TraceTable

if TYPE_CHECKING:
    from rlbudget.models.answers import ExitResult, ProbeResult

CONFIDENCE = "exit_confidence"
ANSWER_SIGNALS = (CONFIDENCE, "exit_entropy", "probe_tail")
WRITTEN_SIGNALS = (*ANSWER_SIGNALS, *THINKING_CHECKS)
"""all that an exit's answer tells"""


def exit_table(folder: Path | str) -> TraceTable:
    """The table of a folder of traces, ``WRITTEN_SIGNALS`` and the question's numbers included.

    What the traces cannot give is left out: ``exit_confidence`` without trial answers, the checks
    of the thinking where its text was not stored (``record --store-text``).
    """
    table = load_table(folder, context=True)
    columns: dict[str, list[float]] = {name: [] for name in THINKING_CHECKS}
    has_text = True
    for trace in iter_traces(folder):
        thinking, cuts = trace.meta.get("thinking", ""), trace.meta.get("cuts", [])
        has_text &= len(cuts) == len(trace.checkpoints) and "thinking" in trace.meta
        for cut, checkpoint in zip(cuts, trace.checkpoints, strict=True) if has_text else ():
            for name, value in thinking_checks(thinking[:cut], checkpoint.exit.answer).items():
                columns[name].append(value)
    signals = dict(table.signals)
    if has_text:
        signals |= {name: np.array(column, np.float64) for name, column in columns.items()}
    if table.has_probes:
        signals[CONFIDENCE] = table.probe_confidence
    return dataclasses.replace(table, signals=signals)


def exit_features(table: TraceTable) -> tuple[str, ...]:
    """The observation of a written exit: the free signals of the decode and ``WRITTEN_SIGNALS``."""
    free = set(table.signals) - {*WRITTEN_SIGNALS, *CONTEXT_SIGNALS, *TASK_SIGNALS}
    written = [name for name in WRITTEN_SIGNALS if name in table.signals]
    return (*feature_names(free, "free"), *written)


def written_signals(
    exit: ExitResult, trial: ProbeResult | None, *, thinking: str
) -> Mapping[str, float]:
    """``WRITTEN_SIGNALS`` of an exit made live; ``trial`` is the trial answer it begins with."""
    signals = {"exit_entropy": exit.entropy, **thinking_checks(thinking, exit.answer)}
    if trial is not None:
        signals |= {CONFIDENCE: trial.confidence, "probe_tail": trial.tail}
    return signals
