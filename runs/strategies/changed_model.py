"""The embedded model with its weights rounded to four bits, recorded: a model change that costs.

    python -m runs.strategies.changed_model FOLDER [--n 1500]

Every matrix but the embeddings is rounded to four bits a weight, a scale a row, as a careless
redeployment would. ``runs/strategies/adaptive_price.py`` serves it from noon on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from rlbudget.decoding.record import record
from rlbudget.models import load_model
from rlbudget.tasks import load_task

BITS = 4


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=1500)
    args = parser.parse_args()
    model = load_model("embedded")
    most = 2 ** (BITS - 1) - 1
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                scale = weight.abs().amax(dim=1, keepdim=True) / most
                weight.copy_((weight / scale).round() * scale)
    record(model, load_task("embedded", n=args.n, seed=0), args.out, seed=1)


if __name__ == "__main__":
    main()
