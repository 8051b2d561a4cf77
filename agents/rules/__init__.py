"""Stop rules: the catalogue of methods that need no training, each a value with functions.

=========== ==================================================== ==================
rule        stops at the first checkpoint where                  needs
=========== ==================================================== ==================
full        never                                                nothing
fixed       ``budget`` thinking tokens are reached               nothing
random      a coin with probability ``probability`` says so      nothing
p_end       an end of thinking was likely                        ``p_end_max``
certain     the moving average of the entropy is low             ``entropy_mean``
entropy     the entropy has been low for long (CUSUM)            ``entropy_mean``
thinkbrake  ending was about as likely as going on               ``end_gap_min``
deepconf    the group confidence leaves a threshold              ``topk_mean``
confidence  the trial answer's confidence is high                a probe
deer        the same, at turns of thought only                   some probes
streak      the last ``window`` trial answers are equal          a probe
convergence two trial answers in a row are equal                 a probe
dynasor     trial answers agree and do not doubt themselves      some probes
eat         the entropy of the answer's first token settles      ``exit_entropy``
halt        the answer's distribution has low entropy            ``answer_entropy``
loop        all of the last ``tokens`` was written before        ``text_repeats``
=========== ==================================================== ==================

Where the traces hold the signals of the text, these apply as well:

=========== ==================================================== ======================
claims      the last ``window`` claims name one value            ``text_claim_streak``
conclusions so many concluding words were written                ``text_conclusions``
hedges      so many words of doubt were written                  ``text_hedges``
repeats     much was written before                              ``text_repeats``
=========== ==================================================== ======================

On traces made of samples (``rlbudget.traces.samples``) other rules apply:

============ =================================================== ==================
fixed-n      ``n`` samples are drawn                             ``samples``
ac-beta      the first answer leads the second, surely enough    votes
ac-dirichlet the same over the five first answers                votes
esc          a whole window of samples agrees                    ``vote_streak``
============ =================================================== ==================

A rule that sees trial answers pays for every one up to its stop, and for no other. To add a rule,
write a ``Rule`` and put it in ``RULES``: the evaluation chooses its parameters on the training
questions.
"""

from __future__ import annotations

from rlbudget.agents.rules import probing, sampling, text, unprobed
from rlbudget.agents.rules.rule import PROBE, Kind, Parameters, Rule
from rlbudget.signals.text import TEXT_SIGNALS
from rlbudget.traces.table import TraceTable

__all__ = [
    "PROBE",
    "RULES",
    "SAMPLING_RULES",
    "TEXT_RULES",
    "Kind",
    "Parameters",
    "Rule",
    "rules_for",
]

RULES = (*unprobed.RULES, *probing.RULES, text.LOOP)

TEXT_RULES = text.RULES

SAMPLING_RULES = (unprobed.FULL, unprobed.FIXED, unprobed.RANDOM, *sampling.RULES)


def rules_for(table: TraceTable) -> tuple[Rule, ...]:
    """The rules of the table's kind: those of samples, where it was made of samples; those of the
    text as well, where it holds any of its signals."""
    if "vote_share" in table.signals:
        return SAMPLING_RULES
    return (*RULES, *TEXT_RULES) if set(TEXT_SIGNALS) & set(table.signals) else RULES
