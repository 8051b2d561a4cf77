"""Stop rules: the catalogue of methods that need no training, each a value with functions.

``about.ABOUT`` says in a sentence what each of them does; ``Rule.needs`` names the signals that the
traces must hold. ``REPEAT_RULES`` are for traces with ``token_repeats``, ``TEXT_RULES`` for those
with the signals of the text, ``SAMPLING_RULES`` for traces made of samples
(``rlbudget.traces.samples``).

A rule that sees trial answers pays for every one up to its stop, and for no other. To add a rule,
write a ``Rule``, put it in ``RULES`` and a sentence about it in ``ABOUT``: the evaluation chooses
its parameters on the training questions.
"""

from __future__ import annotations

from rlbudget.agents.rules import probing, sampling, text, unprobed
from rlbudget.agents.rules.rule import PROBE, Kind, Parameters, Rule
from rlbudget.signals.repeats import TOKEN_REPEATS
from rlbudget.signals.text import TEXT_SIGNALS
from rlbudget.traces.table import TraceTable

__all__ = [
    "PROBE",
    "REPEAT_RULES",
    "RULES",
    "SAMPLING_RULES",
    "TEXT_RULES",
    "Kind",
    "Parameters",
    "Rule",
    "rules_for",
]

RULES = (*unprobed.RULES, *probing.RULES, text.LOOP)

REPEAT_RULES = (unprobed.VERBATIM,)

TEXT_RULES = text.RULES

SAMPLING_RULES = (unprobed.FULL, unprobed.FIXED, unprobed.RANDOM, *sampling.RULES)


def rules_for(table: TraceTable) -> tuple[Rule, ...]:
    """The rules of the table's kind: those of samples, where it was made of samples; those of
    repetition and of the text as well, where it holds their signals."""
    if "vote_share" in table.signals:
        return SAMPLING_RULES
    held = set(table.signals)
    repeats = REPEAT_RULES if TOKEN_REPEATS in held else ()
    return (*RULES, *repeats, *(TEXT_RULES if held & set(TEXT_SIGNALS) else ()))
