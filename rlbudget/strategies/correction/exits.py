"""Recorded exits with the signals of their written answers (``written.py``), as tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from rlbudget.policy.observation import feature_names
from rlbudget.signals.questions import CONTEXT_SIGNALS, TASK_SIGNALS
from rlbudget.strategies.correction.recheck import THINKING_CHECKS, thinking_checks
from rlbudget.strategies.correction.written import CONFIDENCE, WRITTEN_SIGNALS
from rlbudget.traces.store import iter_traces, load_table
from rlbudget.traces.table import TraceTable


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
