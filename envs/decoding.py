"""``rlbudget/Decoding-v0``: a live model as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, SupportsInt, cast

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlbudget.arrays import Float32s
from rlbudget.errors import UserError
from rlbudget.policy.observation import Observer, Preset, feature_names
from rlbudget.policy.prices import check_price_range
from rlbudget.signals.questions import context_signals, task_signals
from rlbudget.signals.repeats import TOKEN_REPEATS, TokenRepeats
from rlbudget.signals.tokens import PAID_SIGNALS, SIGNALS
from rlbudget.tasks.scorers import vote_key
from rlbudget.tasks.task import Task
from rlbudget.traces.trace import PROBE_TOKENS

if TYPE_CHECKING:
    from rlbudget.models.decode_batch import DecodeBatch
    from rlbudget.models.transformers_model import TransformersModel


CONTINUE, STOP = 0, 1
_TRIES = 100
_ROW = np.zeros(1, dtype=np.int64)


class DecodingEnv(gymnasium.Env[Float32s, SupportsInt]):
    """Decide at every checkpoint of a decode that is really running whether to stop thinking.

    The law of ``rlbudget/Replay-v0`` with the model itself: the same decisions on the same
    seeded decode give the same observations, rewards and ledger in both.

    ## Action space
    ``Discrete(2)``: 0 CONTINUE, think on to the next checkpoint or the end; 1 STOP, force the
    end of the thinking and write the answer.

    ## Observation space
    ``Box(float32, (n_features + 1,))``: the features of ``policy.observation`` for the signals
    of ``rlbudget.signals.tokens`` and the preset, raw (``env.unwrapped.features`` names them; their
    meanings, bounds and units are in ``rlbudget/Replay-v0``), then log10(token price).

    ## Rewards
    0 until the episode ends, then the utility, float64 and exact:
    ``exact_match - token_price * (thinking + probe + answer tokens)``. In the ``probe`` preset
    every observed checkpoint makes and charges a trial answer, and what ``features`` name of
    ``signals.tokens.PAID_SIGNALS``; in ``free`` none.

    ## Starting state
    The first checkpoint of a question drawn uniformly, decoded under a drawn seed, with a token
    price drawn log-uniformly from ``token_price``. Decodes that end before their first
    checkpoint are drawn again. ``reset(options={"question": i, "seed": s, "token_price": p})``
    fixes any of them.

    ## Episode end
    Always ``terminated``, never ``truncated``: on STOP, at the natural end, and at
    ``max_tokens``, where the answer is forced. The last ``info`` holds ``exact_match``,
    ``thinking_tokens``, ``probe_tokens``, ``answer_tokens``, ``token_price``, ``trace_id``,
    ``stopped`` and ``answer``.

    ## Arguments
    ``model``: from ``rlbudget.load_model``; ``task``: questions and their scorer;
    ``token_price``: (lowest, highest), reward per token; ``preset``: ``free`` or ``probe``;
    ``features``: names instead of all of the preset; ``stride``, ``max_tokens``,
    ``temperature``: of the decodes, by default the profile's; ``probe_tokens``: length of a
    trial answer.

    ## Version history
    * v0: first version
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        model: TransformersModel,
        task: Task,
        *,
        token_price: tuple[float, float],
        preset: Preset = "free",
        features: Sequence[str] | None = None,
        stride: int | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        probe_tokens: int = PROBE_TOKENS,
    ) -> None:
        self._prices = check_price_range(token_price, may_be_one=True)
        if not task.questions:
            raise UserError(f"the task {task.name} has no questions")
        self.features = feature_names(SIGNALS, preset) if features is None else tuple(features)
        self._paid = {feature.partition(".")[0] for feature in self.features} & {*PAID_SIGNALS}
        self.action_space = spaces.Discrete(2)
        bound = float(np.finfo(np.float32).max)
        box = spaces.Box(-bound, bound, (len(self.features) + 1,), np.float32)
        self.observation_space = cast("spaces.Space[Float32s]", box)
        self._model, self._task = model, task
        self._decoding: dict[str, Any] = {
            "stride": stride,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        self._probe_length = probe_tokens
        self._batch: DecodeBatch | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32s, dict[str, Any]]:
        """Start an episode; see the class for ``options``."""
        super().reset(seed=seed)
        options = dict(options or {})
        unknown = sorted(set(options) - {"question", "seed", "token_price"})
        if unknown:
            raise ValueError(
                f"unknown option {unknown[0]!r}; there are question, seed and token_price"
            )
        low, high = np.log(self._prices)
        drawn = float(np.clip(np.exp(self.np_random.uniform(low, high)), *self._prices))
        self._price = float(options.get("token_price", drawn))
        if not 0 < self._price < float("inf"):
            raise ValueError(f"token_price must be above 0 and finite, not {self._price}")
        fixed = "question" in options and "seed" in options
        for _ in range(1 if fixed else _TRIES):
            index = int(options.get("question", self.np_random.integers(len(self._task.questions))))
            self._seed = int(options.get("seed", self.np_random.integers(2**48)))
            self._question = self._task.questions[index]
            batch = self._model.begin([self._question.question], [self._seed], **self._decoding)
            batch.advance()
            if len(batch.at_checkpoint):
                self._batch = batch
                self._observer = Observer(self.features, 1)
                self._repeats = TokenRepeats()
                family = str(self._question.meta.get("family", self._task.name))
                context = context_signals(self._question.question) | task_signals(family)
                self._context = {name: [value] for name, value in context.items()}
                self._answers: dict[Hashable, int] = {}
                self._probe_tokens = 0
                self._observation = self._observe(batch)
                return self._observation.copy(), {}
        raise UserError(
            "the decode ends before its first checkpoint: choose a smaller stride"
            if fixed
            else f"{_TRIES} decodes ended before their first checkpoint: choose a smaller stride"
        )

    def step(self, action: SupportsInt) -> tuple[Float32s, float, bool, bool, dict[str, Any]]:
        """Take one decision; the observation after the end is that of the last checkpoint."""
        batch = self._batch
        if batch is None:
            raise ValueError("the episode is over: call reset")
        choice = int(action)
        if choice not in (CONTINUE, STOP):
            raise ValueError(f"action {choice}: there are 0 (CONTINUE) and 1 (STOP)")
        if choice == STOP:
            thinking = int(batch.thinking_tokens(_ROW)[0])
            end = batch.stop(_ROW)[0]
            return self._end(end.answer, thinking, end.answer_tokens, stopped=True)
        batch.advance()
        if len(batch.at_checkpoint):
            self._observation = self._observe(batch)
            return self._observation.copy(), 0.0, False, False, {}
        final = batch.final[0]
        assert final is not None
        return self._end(final.answer, final.thinking_tokens, final.answer_tokens, stopped=False)

    def _observe(self, batch: DecodeBatch) -> Float32s:
        answer, confidence = None, None
        signals: dict[str, npt.ArrayLike] = {**self._context, **batch.signals(_ROW)}
        ids = batch.thinking_ids(0)
        self._repeats.push(ids[self._repeats.tokens :].tolist())
        signals[TOKEN_REPEATS] = [self._repeats.read()]
        probed = self._observer.needs_probe(signals)
        paid = self._paid if probed or not self._observer.trials.at_turns else ()
        if probed:
            probe = batch.fork_probes(_ROW, self._probe_length)[0]
            self._probe_tokens += probe.tokens
            vote = vote_key(probe.answer, self._task.scorer)
            answer = [self._answers.setdefault(vote, len(self._answers))]
            confidence = [probe.confidence]
            signals["probe_tail"] = [probe.tail]
        if "exit_entropy" in paid:
            signals["exit_entropy"] = [batch.fork_exits(_ROW)[0].entropy]
            self._probe_tokens += 1
        options = self._model.option_ids(self._question.options)
        if options and "answer_entropy" in paid:
            choice = batch.fork_options(_ROW, [options])[0]
            signals["answer_entropy"] = [choice.entropy]
            self._probe_tokens += choice.tokens
        features = self._observer.update(
            _ROW, batch.thinking_tokens(_ROW), signals, answer, confidence
        )[0]
        return np.append(features, np.float32(np.log10(self._price)))

    def _end(
        self, answer: str, thinking: int, answer_tokens: int, *, stopped: bool
    ) -> tuple[Float32s, float, bool, bool, dict[str, Any]]:
        self._batch = None
        exact_match = self._task.score(self._question, answer)
        tokens = thinking + self._probe_tokens + answer_tokens
        info = {
            "exact_match": exact_match,
            "thinking_tokens": thinking,
            "probe_tokens": self._probe_tokens,
            "answer_tokens": answer_tokens,
            "token_price": self._price,
            "trace_id": f"{self._question.question_id}-r{self._seed}",
            "stopped": stopped,
            "answer": answer,
        }
        reward = exact_match - self._price * tokens
        return self._observation.copy(), float(reward), True, False, info
