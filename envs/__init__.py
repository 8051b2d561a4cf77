"""Gymnasium environments; importing this package registers their ids.

``rlbudget/Replay-v0`` replays recorded traces (one at a time, or hundreds in one numpy
operation with ``gymnasium.make_vec(..., vectorization_mode="vector_entry_point")``).
``rlbudget/ReplayProbe-v0`` has a third action: pay for a trial answer and decide knowing it.
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
PROBE = 2
ESCALATE = 2

if "rlbudget/Replay-v0" not in gymnasium.registry:
    gymnasium.register(
        "rlbudget/Replay-v0",
        entry_point="rlbudget.envs.replay:ReplayEnv",
        vector_entry_point="rlbudget.envs.replay_vector:ReplayVectorEnv",
    )
    gymnasium.register(
        "rlbudget/ReplayProbe-v0",
        entry_point="rlbudget.envs.replay:ReplayProbeEnv",
        vector_entry_point="rlbudget.envs.replay_vector:ReplayVectorEnv",
        kwargs={"preset": "look"},
    )
    gymnasium.register(
        "rlbudget/Sampling-v0",
        entry_point="rlbudget.envs.replay:SamplingEnv",
        vector_entry_point="rlbudget.envs.replay_vector:ReplayVectorEnv",
    )
    gymnasium.register(
        "rlbudget/Cascade-v0",
        entry_point="rlbudget.envs.cascade:CascadeEnv",
        vector_entry_point="rlbudget.envs.cascade:cascade_vector",
    )
    gymnasium.register("rlbudget/Decoding-v0", entry_point="rlbudget.envs.decoding:DecodingEnv")
