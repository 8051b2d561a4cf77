"""Made-up voters of known skill: samples of questions whose chance of a right answer is given.

A question has a skill, the chance that a sample is right, and wrong answers of which the first is
commoner than the others. A pool says how skills and that share are spread over questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlbudget.traces.columns import table_of
from rlbudget.traces.samples import Sample, Sampled, traces_of_samples
from rlbudget.traces.table import TraceTable

WRONG = 6
"""different wrong answers of a question"""


@dataclass(frozen=True, slots=True)
class Voters:
    """How the skills of a pool are spread."""

    name: str
    skill: tuple[float, float]
    """of a beta distribution"""
    lure: float
    """share of wrong samples that give the commonest wrong answer"""
    tokens: int = 100
    """mean of a sample"""


POOLS = (
    Voters("able", (6.0, 1.0), 0.4),
    Voters("mixed", (2.0, 1.0), 0.4),
    Voters("split", (0.6, 0.4), 0.7),
)


def voted(pool: Voters, questions: int, samples: int, orders: int, seed: int) -> TraceTable:
    """The traces of ``samples`` of each question, in ``orders`` orders."""
    rng = np.random.default_rng(seed)
    traces = []
    for number in range(questions):
        skill = rng.beta(*pool.skill)
        others = (1 - skill) * (1 - pool.lure) / (WRONG - 1)
        chances = [skill, (1 - skill) * pool.lure, *[others] * (WRONG - 1)]
        answers = rng.choice(WRONG + 1, size=samples, p=np.array(chances) / sum(chances))
        tokens = np.maximum(rng.poisson(pool.tokens, samples), 1)
        drawn = [
            Sample(str(answer), int(answer == 0), int(spent))
            for answer, spent in zip(answers.tolist(), tokens.tolist(), strict=True)
        ]
        question = f"{pool.name}-{seed}-{number}"
        sampled = Sampled(question, pool.name, question, "0", "voters", tuple(drawn))
        traces += traces_of_samples(sampled, orders=orders, seed=seed)
    return table_of(traces)
