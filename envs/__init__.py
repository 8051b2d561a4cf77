"""Gymnasium environments; importing this package registers their ids.

``rlbudget/Replay-v0`` replays recorded traces (one at a time, or hundreds in one numpy
operation with ``gymnasium.make_vec(..., vectorization_mode="vector_entry_point")``).
``rlbudget/Sampling-v0`` draws one more recorded sample each step; the answer is the majority.
``rlbudget/Cascade-v0`` replays a small model's decodes and may hand over to a large model.
``rlbudget/Decoding-v0`` decodes with a live model.
"""

from __future__ import annotations

from rlbudget.errors import missing_extra

try:
    import gymnasium
except ImportError as error:
    raise missing_extra("train", "gymnasium") from error

CONTINUE = 0
STOP = 1
ESCALATE = 2

_VECTOR = "rlbudget.envs.replay_vector:ReplayVectorEnv"
_ENVS: dict[str, tuple[str, str | None]] = {
    "Replay": ("replay:ReplayEnv", _VECTOR),
    "Sampling": ("replay:SamplingEnv", _VECTOR),
    "Cascade": ("cascade:CascadeEnv", "rlbudget.envs.cascade:cascade_vector"),
    "Decoding": ("decoding:DecodingEnv", None),
}

for _name, (_entry, _vector) in _ENVS.items():
    if f"rlbudget/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(
            f"rlbudget/{_name}-v0", f"rlbudget.envs.{_entry}", vector_entry_point=_vector
        )
