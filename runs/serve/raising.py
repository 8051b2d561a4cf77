"""A gateway whose policy raises at a late checkpoint: python -m runs.serve.raising URL PORT."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlbudget.arrays import Floats
from rlbudget.integrations.engine_settings import settings_for
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import feature_names
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.run import run
from rlbudget.serve.upstream import look_at
from rlbudget.signals.tokens import TOP_SIGNALS


@dataclass(frozen=True)
class Raises:
    """A policy with a fault."""

    preset: str = "free"
    features: tuple[str, ...] = feature_names(TOP_SIGNALS, "free")
    price_range: tuple[float, float] = (1e-5, 1e-2)
    threshold: float = 0.5

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        """Go on at first."""
        if float(observation[1]) > 16:
            raise ZeroDivisionError("a fault of the policy")
        return Decision(False, 0.25)

    def stop_probabilities(self, observations: Any, token_price: Any) -> Floats:
        """The same of many."""
        raise ZeroDivisionError("a fault of the policy")


def main() -> None:
    url, port = sys.argv[1:]
    settings = settings_for({"default": Raises()}, "embedded")
    opens = partial(look_at, url, settings, tokenizer="embedded", top_logprobs=768, timeout=4)
    run(Gateway(settings), [opens], host="127.0.0.1", port=int(port))


if __name__ == "__main__":
    main()
