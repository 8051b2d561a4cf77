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

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlbudget.strategies.correction.recheck import THINKING_CHECKS, thinking_checks

if TYPE_CHECKING:
    from rlbudget.models.reading import ExitResult, ProbeResult

CONFIDENCE = "exit_confidence"
ANSWER_SIGNALS = (CONFIDENCE, "exit_entropy", "probe_tail")
WRITTEN_SIGNALS = (*ANSWER_SIGNALS, *THINKING_CHECKS)
"""all that an exit's answer tells"""


def written_signals(
    exit: ExitResult, trial: ProbeResult | None, *, thinking: str
) -> Mapping[str, float]:
    """``WRITTEN_SIGNALS`` of an exit made live; ``trial`` is the trial answer it begins with."""
    signals = {"exit_entropy": exit.entropy, **thinking_checks(thinking, exit.answer)}
    if trial is not None:
        signals |= {CONFIDENCE: trial.confidence, "probe_tail": trial.tail}
    return signals
