"""Twins in torch of ``Window``, ``Observer`` and the frozen network, for many requests at once.

The laws that hold them to the originals are in tests/integrations/test_vllm.py. Nothing here
looks at a number on the host, so a device is never waited for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import EMA_WEIGHT
from rlbudget.signals.tokens import NO_SENTENCE_END, SIGNALS

_SOURCES = (*SIGNALS, "thinking_tokens")
_BLENDS = ("ema", "max", "min")


class Windows:
    """``rlbudget.signals.tokens.Window`` of every slot; float64, like the original."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._sums = torch.zeros(slots, 9, dtype=torch.float64, device=device)
        self._least = torch.zeros(slots, 7, dtype=torch.float64, device=device)
        self._most = torch.zeros(slots, 6, dtype=torch.float64, device=device)
        self._after_sentence = torch.zeros(slots, dtype=torch.bool, device=device)
        self.clear(torch.arange(slots, device=device), torch.ones_like(self._after_sentence))
        self._after_sentence.zero_()

    def clear(self, slots: torch.Tensor, mask: torch.Tensor) -> None:
        """A fresh window where ``mask``; what the last token was is kept."""
        self._sums[slots] = self._sums[slots].masked_fill(mask[:, None], 0.0)
        least = self._least[slots].masked_fill(mask[:, None], math.inf)
        least[:, 6] = least[:, 6].clamp(max=NO_SENTENCE_END)
        self._least[slots] = least
        self._most[slots] = self._most[slots].masked_fill(mask[:, None], -math.inf)

    def forget(self, slots: torch.Tensor) -> None:
        """As new."""
        self.clear(slots, torch.ones_like(slots, dtype=torch.bool))
        self._after_sentence[slots] = False

    def push(
        self, slots: torch.Tensor, signals: torch.Tensor, markers: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Add a token where ``mask`` (n,); returns the window, (n, 14), as in ``SIGNALS``.

        ``signals`` (n, 6) float64 and ``markers`` (n, 3) bool are as in ``Window.push``.
        """
        ones = torch.ones_like(signals[:, :1])
        gap = torch.where(self._after_sentence[slots], signals[:, 5], NO_SENTENCE_END)
        sums = self._sums[slots] + torch.cat((signals, markers[:, :2].double(), ones), dim=1)
        least = torch.minimum(self._least[slots], torch.cat((signals, gap[:, None]), dim=1))
        most = torch.maximum(self._most[slots], signals)
        chosen = mask[:, None]
        self._sums[slots] = torch.where(chosen, sums, self._sums[slots])
        self._least[slots] = torch.where(chosen, least, self._least[slots])
        self._most[slots] = torch.where(chosen, most, self._most[slots])
        self._after_sentence[slots] = torch.where(mask, markers[:, 2], self._after_sentence[slots])
        mean = sums[:, :6] / sums[:, 8:]
        columns = [
            mean[:, 0], least[:, 0],
            mean[:, 1], most[:, 1], signals[:, 1],
            mean[:, 2], least[:, 2],
            mean[:, 3], most[:, 3], signals[:, 3],
            sums[:, 6], sums[:, 7], mean[:, 4], least[:, 6],
        ]  # fmt: skip
        return torch.stack(columns, dim=1)


class Observers:
    """``rlbudget.policy.observation.Observer`` of every slot, for features that cost no token."""

    def __init__(self, features: Sequence[str], slots: int, device: torch.device) -> None:
        split = [feature.partition(".") for feature in features]
        unknown = sorted({signal for signal, _, _ in split} - set(_SOURCES))
        if unknown:
            raise UserError(
                f"the policy needs {', '.join(unknown)}, which vLLM's V2 runner cannot give: train"
                " one with --preset free"
            )
        self._source = torch.tensor([_SOURCES.index(signal) for signal, _, _ in split],
                                    device=device)  # fmt: skip
        self._columns = {
            kind: torch.tensor([i for i, (_, _, k) in enumerate(split) if k == kind],
                               dtype=torch.int64, device=device)
            for kind in sorted({kind for _, _, kind in split})
        }  # fmt: skip
        self._memory = torch.zeros(slots, len(split), dtype=torch.float64, device=device)
        self._seen = torch.zeros(slots, dtype=torch.float64, device=device)

    def forget(self, slots: torch.Tensor) -> None:
        """As new."""
        self._memory[slots] = 0.0
        self._seen[slots] = 0.0

    def update(
        self, slots: torch.Tensor, signals: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The observations (n, n_features), float32, at a checkpoint; remembered where ``mask``.

        ``signals`` (n, 14) float64 as in ``SIGNALS``; ``tokens`` (n,) are thinking tokens.
        """
        tokens = tokens.double()[:, None]
        values = torch.cat((signals, tokens), dim=1)[:, self._source]
        memory, seen = self._memory[slots], self._seen[slots] + 1
        fresh = memory.clone()
        out = values.clone()
        later = (seen > 1)[:, None]
        for kind, columns in self._columns.items():
            x, old = values[:, columns], memory[:, columns]
            if kind == "log":
                out[:, columns] = torch.log1p(x)
            elif kind in ("sum", "mean"):
                fresh[:, columns] = old + x
                out[:, columns] = old + x if kind == "sum" else (old + x) / seen[:, None]
            elif kind == "delta":
                fresh[:, columns] = x
                out[:, columns] = torch.where(later, x - old, 0.0)
            elif kind == "age":
                last = torch.where(x > 0, tokens, old)
                fresh[:, columns] = last
                out[:, columns] = torch.log1p(tokens - last)
            elif kind in _BLENDS:
                blended = torch.where(later, _blend(kind, old, x), x)
                fresh[:, columns] = out[:, columns] = blended
        self._memory[slots] = torch.where(mask[:, None], fresh, memory)
        self._seen[slots] = torch.where(mask, seen, self._seen[slots])
        return out.float()


def _blend(kind: str, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    if kind == "max":
        return torch.maximum(old, new)
    if kind == "min":
        return torch.minimum(old, new)
    return EMA_WEIGHT * new + (1 - EMA_WEIGHT) * old


class Network:
    """``rlbudget.policy.network.FrozenPolicy`` for a batch."""

    def __init__(self, policy: Policy, device: torch.device) -> None:
        tensors = {
            name: torch.tensor(value.copy(), device=device)
            for name, value in policy.tensors.items()
        }
        self._mean, self._std = tensors["obs_mean"], tensors["obs_std"]
        self._limit = float(policy.config["clip"]) * self._std
        layers = sorted(
            (int(name.split(".")[2]), name.removesuffix(".weight"))
            for name in tensors
            if name.startswith("mlp_extractor.policy_net.") and name.endswith(".weight")
        )
        self._hidden = [(tensors[f"{n}.weight"], tensors[f"{n}.bias"]) for _, n in layers]
        weight, bias = tensors["action_net.weight"], tensors["action_net.bias"]
        self._last, self._bias = weight[1] - weight[0], bias[1] - bias[0]
        low, high = policy.price_range
        self._low, self._span = math.log(low), math.log(high) - math.log(low)

    def price_feature(self, token_price: float) -> float:
        """What the network sees of a token price; computed on the host, once a request."""
        return 2 * (math.log(token_price) - self._low) / self._span - 1 if self._span else 0.0

    def stop_probability(
        self, observations: torch.Tensor, price_features: torch.Tensor
    ) -> torch.Tensor:
        """(n, n_features) float32 and (n,) float32 -> (n,) float32; NaN for what is not finite."""
        bad = ~torch.isfinite(observations).all(dim=1)
        seen = observations - self._mean
        x = torch.minimum(torch.maximum(seen, -self._limit), self._limit) / self._std
        x = torch.cat((x, price_features[:, None]), dim=1)
        for weight, bias in self._hidden:
            x = torch.tanh(torch.nn.functional.linear(x, weight, bias))
        odds = x @ self._last + self._bias
        return (0.5 + 0.5 * torch.tanh(0.5 * odds)).masked_fill(bad, math.nan)
