"""Stop rules: the catalogue of methods that need no training, each a value with functions.

=========== ==================================================== ==================
rule        stops at the first checkpoint where                  looks at
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
=========== ==================================================== ==================

On traces made of samples (``rlbudget.traces.samples``) other rules apply:

============ =================================================== ==================
fixed-n      ``n`` samples are drawn                             ``samples``
ac-beta      the first answer leads the second, surely enough    votes
ac-dirichlet the same over the five first answers                votes
esc          a whole window of samples agrees                    ``vote_streak``
============ =================================================== ==================

A rule that looks at probes pays for every one up to its stop, and for no other. To add a rule,
write a ``Rule`` and put it in ``RULES``: the evaluation chooses its parameters on the training
questions.
"""

from __future__ import annotations

from rlbudget.agents.rules.probing import (
    CONFIDENCE,
    CONVERGENCE,
    DEER,
    DYNASOR,
    EAT,
    HALT,
    STREAK,
)
from rlbudget.agents.rules.rule import PROBE, Kind, Parameters, Rule
from rlbudget.agents.rules.sampling import AC_BETA, AC_DIRICHLET, ESC, FIXED_N
from rlbudget.agents.rules.unprobed import (
    CERTAIN,
    DEEPCONF,
    ENTROPY,
    FIXED,
    FULL,
    P_END,
    RANDOM,
    THINKBRAKE,
)
from rlbudget.traces.table import TraceTable

__all__ = ["PROBE", "RULES", "SAMPLING_RULES", "Kind", "Parameters", "Rule", "rules_for"]

RULES = (
    FULL,
    FIXED,
    RANDOM,
    P_END,
    CERTAIN,
    ENTROPY,
    THINKBRAKE,
    DEEPCONF,
    CONFIDENCE,
    DEER,
    STREAK,
    CONVERGENCE,
    DYNASOR,
    EAT,
    HALT,
)

SAMPLING_RULES = (FULL, FIXED, RANDOM, FIXED_N, AC_BETA, AC_DIRICHLET, ESC)


def rules_for(table: TraceTable) -> tuple[Rule, ...]:
    """The rules of the table's kind: those of samples, where it was made of samples."""
    return SAMPLING_RULES if "vote_share" in table.signals else RULES
