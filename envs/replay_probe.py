"""``rlbudget/ReplayProbe-v0``: the replay with a third action, a trial answer that is paid for."""

from __future__ import annotations

from rlbudget.envs.replay import ReplayEnv


class ReplayProbeEnv(ReplayEnv):
    """Decide at every checkpoint of a recorded decode: think on, stop, or pay for a look.

    ``rlbudget/Replay-v0`` with a third action. What is not said here is said there.

    ## Action space
    ``Discrete(3)``

    | action | meaning |
    |---|---|
    | 0 | CONTINUE: think on to the next checkpoint, or to the natural end after the last |
    | 1 | STOP: force the end of thinking here and write the answer |
    | 2 | PROBE: make a trial answer here, see it, and decide again at the same checkpoint |

    A second PROBE at one checkpoint has nothing new to show: it is CONTINUE.

    ## Observation space
    ``Box(float32, (n_features + 1,))``: the features of the ``free`` preset, then what is
    remembered of the looks so far, then log10(token price):

    | number | meaning | min | max | unit |
    |---|---|---|---|---|
    | -9 | has it looked at this checkpoint | 0 | 1 | |
    | -8 | log(1 + looks so far) | 0 | inf | |
    | -7 | confidence of the last trial answer, 0 before the first | 0 | 1 | |
    | -6 | highest confidence so far | 0 | 1 | |
    | -5 | log(1 + equal answers in a row) | 0 | inf | |
    | -4 | log(1 + different answers so far) | 0 | inf | |
    | -3 | share of the looks whose answer is the last one's | 0 | 1 | |
    | -2 | log(1 + tokens since the last look), 0 before the first | 0 | inf | |

    ## Rewards
    As there. A look costs its tokens, charged in the utility at the end; the step itself pays 0.

    ## Arguments
    As there; ``preset`` is ``look``. The traces need a trial answer at every checkpoint.

    ## Version history
    * v0: first version
    """

    default_preset = "look"
