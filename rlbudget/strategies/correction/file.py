"""A correction as a file: the numbers of its doubt model, the rest in the metadata."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors.numpy import save

from rlbudget.errors import UserError
from rlbudget.files import write_bytes
from rlbudget.strategies.correction.correct import OFF, Correction
from rlbudget.strategies.impact import impact_tensors, read_impact

FORMAT = "rlbudget-correction"


def save_correction(path: Path | str, correction: Correction) -> None:
    """Write a correction to a file (.safetensors), atomically."""
    plan = {
        "threshold": None if correction.threshold == OFF else correction.threshold,
        "budget": correction.budget,
        "rounds": correction.rounds,
    }
    named = {
        "format": FORMAT,
        "features": json.dumps(correction.doubt.features),
        "plan": json.dumps(plan),
    }
    write_bytes(Path(path), save(impact_tensors(correction.doubt), metadata=named))


def load_correction(path: Path | str) -> Correction:
    """Read what ``save_correction`` wrote; ``UserError`` for anything else."""
    doubt, named = read_impact(path, FORMAT, "a correction")
    try:
        plan = json.loads(named["plan"])
        threshold, budget, rounds = plan["threshold"], plan["budget"], plan["rounds"]
        correction = Correction(
            doubt,
            OFF if threshold is None else float(threshold),
            None if budget is None else int(budget),
            int(rounds),
        )
        if math.isnan(correction.threshold) or correction.rounds < 1 or (budget or 1) < 1:
            raise ValueError("its plan makes no sense")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a correction: {error}") from error
    return correction
