"""The core: a plan bound to the tokens of one engine, shared by all of its requests.

``rlbudget.decode`` and every integration are shells around it: they decode tokens and tell a
``Request`` (``request.py``) of each; the core decides everything else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.tags import Tags, find_tags
from rlbudget.errors import UserError
from rlbudget.models.profiles import Profile, find_profile, trusted_ids
from rlbudget.models.reading import read_answer
from rlbudget.models.vocabulary import Vocabulary, build_vocabulary
from rlbudget.policy.controller import Controller
from rlbudget.policy.dial import Dial, Spot, uncovered
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.policy.trials import PROBE_SIGNALS
from rlbudget.signals.questions import CONTEXT_SIGNALS
from rlbudget.signals.tokens import CHOICE, PAID_SIGNALS
from rlbudget.signals.turns import TURN_SIGNALS
from rlbudget.strategies.compose import Composed
from rlbudget.strategies.feedback.log import Log
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.strategies.plan import Plan, plan_of
from rlbudget.tasks.scorers import extracted
from rlbudget.traces.trace import PROBE_TOKENS

_log = logging.getLogger("rlbudget")


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine can give to a plan."""

    name: str
    forks: bool = False
    """it can decode aside and come back: trial answers, corrections, audits"""
    hands_over: bool = False
    """it can give a request to a second model"""
    question: bool = True
    """it knows the question apart from the rest of the prompt"""
    logs: bool = True
    """it sees the end of a request"""
    options: bool = False
    """it can read how likely each answer option of a question is"""


LOCAL = Engine("rlbudget decode", forks=True, hands_over=True, options=True)
HF_GENERATE = Engine("Hugging Face generate (BudgetGenerate)", forks=True, hands_over=True)
HF_PROCESSOR = Engine("a Hugging Face logits processor (BudgetProcessor)")
VLLM = Engine("vLLM's logits processor", question=False)
SGLANG = Engine("SGLang's logit processor", question=False, logs=False)
LLAMA_SERVER = Engine("llama-server", forks=True, hands_over=True)
LLAMA_CHAT = Engine("a chat stream of llama-server (decode_chat)", logs=False)
LLAMA_CPP = Engine("a llama-cpp-python logits processor")
OPENAI = Engine("an OpenAI-compatible server", forks=True, hands_over=True)
ENGINES: Mapping[str, Engine] = {
    "hf": HF_GENERATE, "vllm": VLLM, "sglang": SGLANG, "llama-server": LLAMA_SERVER,
    "llama-cpp-python": LLAMA_CPP, "openai": OPENAI,
}  # fmt: skip
"""by the name that ``rlbudget plan check --engine`` knows"""


def refusals(
    given: Plan | StopPolicy, engine: Engine, *, questions: bool = True, options: bool | None = None
) -> list[str]:
    """What a plan needs and an engine cannot give, a line each.

    ``options`` says whether requests come with their answer options: by default where the engine
    can read them.

    ``questions`` says whether the caller tells the engine the question where it knows none.
    """
    plan = plan_of(given)
    features = () if plan.cascade is not None else plan.policy.features
    needed = {feature.partition(".")[0] for feature in features}
    found = []
    name = engine.name
    options = engine.options if options is None else options and engine.options
    aside = {*PROBE_SIGNALS, *TURN_SIGNALS, *PAID_SIGNALS}
    if not engine.forks and needed & aside:
        found.append(
            f"the policy looks at trial answers, which {name} cannot make: train one with"
            " --preset free, or decode with rlbudget.integrations.hf_generate or a client"
        )
    elif CHOICE in needed and not options:
        found.append(
            f"the policy looks at the choice among answer options, which {name} is not told or"
            " cannot read: give rlbudget.decode the options (--option), or train without --choices"
        )
    if not engine.forks and plan.correction is not None and not plan.correction.off:
        found.append(f"the correction reads an exit's answer before it counts, which {name} cannot"
                     " write aside: leave [correction] out")  # fmt: skip
    if not engine.forks and plan.audit is not None and plan.audit.share:
        found.append(f"an audit records the exit at every checkpoint, which {name} cannot write"
                     " aside: set share = 0 in [audit]")  # fmt: skip
    if not engine.logs and plan.audit is not None:
        found.append(f"{name} never sees a request end, so none can be logged: leave [audit] out")
    if not engine.hands_over and plan.cascade is not None:
        found.append(f"{name} cannot hand a request to a second model: leave [cascade] out")
    if not engine.hands_over and plan.second_model is not None:
        found.append(f"{name} cannot ask a second model: leave model out of [correction]")
    if plan.chooser is not None and engine is not LOCAL:
        found.append(f"{name} decodes with one model: a chooser works in rlbudget decode")
    if not (engine.question or questions) and needed & set(CONTEXT_SIGNALS):
        found.append(
            f"the policy looks at the question, which {name} does not tell from the rest of the"
            " prompt: train one without --context, or decode with rlbudget.decode or a client"
        )
    return found


@dataclass(slots=True)
class Failures:
    """Requests whose policy broke down: all counted, the first one logged. For many threads."""

    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, message: str, requests: int = 1) -> None:
        """Count one, or as many as broke down alike."""
        with self._lock:
            first = self.count == 0
            self.count += requests
        if first:
            _log.warning(
                "a stop policy broke down; the decode goes on to its natural end without it (said"
                " once, later ones are only counted): %s",
                message,
            )


@dataclass(slots=True)
class Uncovered:
    """Requests at a price that no certificate covers: all counted, the first one logged."""

    count: int = 0

    def add(self, line: str) -> None:
        """Count one."""
        self.count += 1
        if self.count == 1:
            _log.warning("%s (said once, later requests are only counted)", line)


@dataclass(frozen=True, slots=True)
class HandOver:
    """A wish of a request: let the second model answer. Settle it with ``Core.hand_over``."""

    question: str
    token_price: float
    """reward lost per token of the second model"""
    first: str | None
    """the answer that is doubted; None where there is none yet"""


@dataclass(frozen=True, slots=True)
class Core:
    """One plan in one engine; made by ``bind``."""

    plan: Plan
    engine: Engine
    composed: Composed | None
    vocabulary: Vocabulary
    profile: Profile
    tags: Tags
    stride: int
    """tokens between checkpoints"""
    max_thinking: int
    """hard cap on thinking tokens"""
    reserve: int
    """tokens kept for the exit text and the answer"""
    probe_tokens: int
    """longest trial answer"""
    eos: frozenset[int]
    """tokens that end a sequence"""
    scorer: str
    """by which the answer is found in what was written"""
    model: str = ""
    """what the log calls the model"""
    log: Log | None = None
    second: Callable[[HandOver], Decoded] | None = field(default=None, repr=False)
    failures: Failures = field(default_factory=Failures)
    uncovered: Uncovered = field(default_factory=Uncovered)
    """requests above every price that was certified for what they asked"""

    @property
    def token_price(self) -> float:
        """Reward lost per token, where a request says nothing."""
        return self.spot().token_price

    def spot(self, dial: Dial | None = None, token_price: float | None = None) -> Spot:
        """Where a request is served by what it says, or by the plan where it says nothing.

        All but a token price itself is brought into the range that the plan serves. Raises
        ``UserError`` as ``Plan.spot`` does.
        """
        if token_price is not None:
            return Spot(token_price)
        spot = self.plan.spot(dial)
        said = self.plan.dial if dial is None or dial.silent else dial
        if said.token_price is not None:
            return spot
        served = (self.composed or self.plan.policy).price_range
        return replace(spot, token_price=nearest_price(spot.token_price, served))

    def beyond(self, spot: Spot, policy: StopPolicy | None = None) -> str | None:
        """What no certificate covers where a request is served here, by the ``policy_for`` it:
        counted, and logged the first time. None where it is covered, or nothing is certified."""
        if spot.stops != "policy" or self.plan.cascade is not None:
            return None
        decides = policy or self.policy_for(RequestFacts(""))
        line = uncovered(decides, spot.token_price, spot.max_em_loss)
        if line is not None:
            self.uncovered.add(line)
        return line

    def thinking_cap(self, spot: Spot, *, of_request: int | None, of_engine: int | None) -> int:
        """Thinking tokens at most of a request that has a budget of its own, in an engine that
        caps all of its tokens: room is left for an answer."""
        cap = self.max_thinking if spot.stops != "at once" else 0
        if of_request is not None:
            if of_request < 1:
                raise UserError(f"a budget of {of_request} thinking tokens: at least 1")
            cap = min(cap, of_request)
        if of_engine is not None:
            if of_engine <= self.reserve:
                raise UserError(
                    f"a limit of {of_engine} new tokens leaves no room to think: the exit text and"
                    f" the answer take {self.reserve} of them"
                )
            cap = min(cap, of_engine - self.reserve)
        return cap

    def policy_for(self, facts: RequestFacts) -> StopPolicy:
        """What decides about one request."""
        return self.plan.policy if self.composed is None else self.composed.serve(facts)

    def answer(self, ids: Sequence[int]) -> str:
        """The answer that is found in the tokens after the thinking."""
        shown = [token for token in ids if token not in self.eos]
        written = read_answer(shown, self.vocabulary, self.profile, self.profile.answer_stop)
        return extracted(written, self.scorer)

    def hand_over(self, wish: HandOver) -> Decoded | Exception:
        """Ask the second model; its fault is an answer too, and costs nobody theirs."""
        try:
            if self.second is None:
                raise UserError("there is no second model")
            return self.second(wish)
        except Exception as error:  # whatever it is, the first model can still answer
            _log.warning("the second model failed: %s; the first one answers", error)
            return error


def bind(
    given: Plan | StopPolicy,
    tokenizer: Any,
    engine: Engine,
    *,
    eos_ids: Sequence[int],
    vocabulary_size: int = 0,
    vocabulary: Vocabulary | None = None,
    profile: Profile | str | None = None,
    token_price: float | None = None,
    stride: int | None = None,
    max_thinking_tokens: int | None = None,
    probe_tokens: int | None = None,
    questions: bool = True,
    model: str = "",
    second: Callable[[HandOver], Decoded] | None = None,
    options: bool = False,
) -> Core:
    """Check a plan (or a bare policy) against an engine and look its texts up in the tokenizer.

    ``vocabulary_size`` is the number of logits, where ``vocabulary`` is not known already;
    ``eos_ids`` are the tokens that end a sequence. What
    is left out is the plan's, then that of the traces the policy was trained on, then the
    profile's. ``questions`` says whether every request tells its question, ``options`` whether it
    tells its answer options.

    Raises ``UserError`` for a plan that needs what the engine cannot give, an unknown profile,
    a tokenizer that spells the exit text differently in context, and a price or cap out of range.
    """
    plan = plan_of(given)
    for line in refusals(plan, engine, questions=questions, options=options):
        raise UserError(line)
    if second is None and (plan.second_model or plan.large_model):
        raise UserError("the plan needs a second model, and none was given")
    recorded = plan.recorded
    found = _profile(profile, plan)
    every = _first(stride, plan.stride, recorded.get("stride"), found.stride)
    if every != recorded.get("stride", every):
        raise UserError(
            f"stride {every}: the policy was trained on checkpoints every {recorded['stride']}"
            " tokens, and its signals are sums over those; record and train at another stride"
        )
    cap = _first(
        max_thinking_tokens, plan.max_thinking_tokens, recorded.get("max_tokens"), found.max_tokens
    )
    if cap < 1:
        raise UserError(f"max_thinking_tokens must be at least 1, not {cap}")
    if every < 1:
        raise UserError(f"stride {every}: it must be at least 1 token")
    _check_context(tokenizer, found)
    if vocabulary is None:
        vocabulary = build_vocabulary(tokenizer, found, vocabulary_size, eos_ids)
    own = len(vocabulary.exit_ids) + found.max_answer_tokens
    audit = plan.audit
    if token_price is not None:
        plan = _at(plan, token_price)
    core = Core(
        plan=plan,
        engine=engine,
        composed=plan.compose(),
        vocabulary=vocabulary,
        profile=found,
        tags=find_tags(vocabulary, found),
        stride=every,
        max_thinking=cap,
        reserve=own if plan.answer_reserve is None else plan.answer_reserve,
        probe_tokens=_first(probe_tokens, recorded.get("probe_tokens"), PROBE_TOKENS),
        eos=frozenset(map(int, eos_ids)),
        scorer=str(recorded.get("scorer", "auto")),
        model=model,
        log=None if audit is None else audit.opened(),
        second=second,
    )
    core.beyond(core.spot())
    if plan.cascade is None:  # fails here rather than in the first request
        decides = core.policy_for(RequestFacts(""))
        Controller(decides, token_price=core.token_price, stride=every, question="")
    return core


def _at(plan: Plan, token_price: float) -> Plan:
    return replace(plan, dial=Dial(token_price=token_price))


def _first(*values: Any) -> int:
    return int(next(value for value in values if value is not None))


def _profile(given: Profile | str | None, plan: Plan) -> Profile:
    if isinstance(given, Profile):
        return given
    name = given or plan.exit_profile or plan.recorded.get("profile")
    if name is None:
        raise UserError("the policy does not say how its model was asked: name an exit profile")
    return find_profile(str(name))


def _check_context(tokenizer: Any, profile: Profile) -> None:
    """The tokens that are forced must spell the exit text after any other text.

    They need not be those the tokenizer would choose for the whole: many merge a full stop and
    the line break after it, and the model reads them apart just as the recorder wrote them.
    """
    ids = trusted_ids(tokenizer, profile.exit_text)
    for before in ("Done.", "so 12", "it is x", "(a)"):
        there = trusted_ids(tokenizer, before)
        spelled = _decoded(tokenizer, there + ids)
        if spelled != _decoded(tokenizer, there) + profile.exit_text:
            raise UserError(
                f"this tokenizer spells the exit text {profile.exit_text!r} of the profile"
                f" {profile.name!r} differently after {before!r}, as {spelled!r}: choose another"
                " profile"
            )


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
