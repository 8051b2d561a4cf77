"""A logistic head that says how likely a stop here is right, and a threshold on it.

After LearnStop (arXiv 2606.30852): features are the trial answer's confidence, the entropy, the
vote share, the stability of the answer and the density of words of doubt. The threshold is a
parameter like any other rule's, chosen by the evaluation on the training questions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlbudget.agents.rules.rule import PROBE, Rule, lacking, threshold_rule
from rlbudget.arrays import Float32s, Floats
from rlbudget.errors import missing_extra
from rlbudget.policy.observation import observe
from rlbudget.traces.table import TraceTable

FEATURES = (
    "probe_confidence",
    "entropy_mean",
    "entropy_mean.ema",
    "probe_share",
    "probe_streak.log",
    "probe_distinct",
    "hedges.mean",
    "conclusions.mean",
)
NEEDS = (PROBE, "entropy_mean", "hedges", "conclusions")


def fitted_head(seen: Float32s, right: Floats) -> Any:
    """scikit-learn's logistic regression on scaled inputs, (m, F), of answers right or wrong, (m,).

    ``UserError`` without scikit-learn.
    """
    try:
        from sklearn import linear_model, pipeline, preprocessing
    except ImportError as missing:
        raise missing_extra("train", "scikit-learn") from missing
    head = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=1000)
    )
    return head.fit(seen, right)


def logistic_rule(train: TraceTable) -> Rule:
    """Fit the head on the training traces; a rule whose threshold is still to be chosen.

    Needs scikit-learn (``UserError`` without it).
    """
    head = None
    if not lacking(train, NEEDS) and len(np.unique(train.exit_exact_match)) > 1:
        head = fitted_head(observe(train, FEATURES), train.exit_exact_match)

    def score(table: TraceTable) -> Floats:
        if head is None:  # needs not met, or every stop alike: there is nothing to tell apart
            return np.zeros(len(table.thinking_tokens))
        chance: Floats = head.predict_proba(observe(table, FEATURES))[:, 1]
        return chance

    return threshold_rule("logistic", NEEDS, score, probes_charged="until_stop")
