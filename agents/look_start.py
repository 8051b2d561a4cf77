"""Where a policy that may look starts: at one that never does."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3 import PPO

from rlbudget.signals.looks import LOOK_SIGNALS

_FIRST_LOOKS = 0.2
"""chance to look where the old actor is sure to go on"""


def adopt(model: PPO, actor: dict[str, torch.Tensor]) -> None:
    """Start from an actor that knows no looks, and learn what they add and nothing else.

    Trained are the weights of what is remembered of looks, 0 before the first, and the logit of
    PROBE: a decode that does not look is stopped as the old actor would.
    """
    first = "mlp_extractor.policy_net.0.weight"
    own, n = model.policy.state_dict(), actor[first].shape[1] - 1
    odds = float(np.log(_FIRST_LOOKS / (1 - _FIRST_LOOKS)))
    probe = {"weight": actor["action_net.weight"][:1], "bias": actor["action_net.bias"][:1] + odds}
    learned = {name: torch.zeros_like(own[name]) for name in actor if name in own}
    own.update({name: actor[name] for name in learned})
    own[first] = torch.cat(
        [
            actor[first][:, :n],
            torch.zeros(len(actor[first]), len(LOOK_SIGNALS)),
            actor[first][:, n:],
        ],
        dim=1,
    )
    learned[first][:, n:-1] = 1
    for name, row in probe.items():
        own[f"action_net.{name}"] = torch.cat([actor[f"action_net.{name}"], row])
        learned[f"action_net.{name}"][2] = 1
    model.policy.load_state_dict(own)
    model.policy.optimizer.param_groups[0]["weight_decay"] = 0.0  # it would move what stays
    for name, parameter in model.policy.named_parameters():
        if name in learned:
            parameter.register_hook(learned[name].mul)  # type: ignore[no-untyped-call]
