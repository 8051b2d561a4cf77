"""A policy at work: decode one question live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rlbudget.cli.arguments import (
    Flag,
    Folders,
    Metadata,
    N,
    Name,
    NameOrNone,
    OptionalFile,
    OptionalFolder,
    OptionalN,
    OptionalName,
    OptionalNumber,
    OptionalPrice,
    Share,
    Strategies,
    StrategyArguments,
    TheQuestion,
    metadata_of,
)
from rlbudget.cli.cascades import answer_through_cascade
from rlbudget.cli.findings.decodes import ended, of_profile, of_serving
from rlbudget.cli.findings.finding import report
from rlbudget.console import note, tell
from rlbudget.decoding.decode import Decoded, decode
from rlbudget.decoding.logged import Origin, decode_logged
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.profiles import PROFILES
from rlbudget.policy.folder import Policy
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.compose import compose
from rlbudget.strategies.correction.correct import Correction, load_correction
from rlbudget.strategies.feedback.log import DecisionLog
from rlbudget.strategies.feedback.registry import Serving, load_servings
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.tasks.scorers import scorer_of_task

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel


@dataclass(frozen=True)
class Decode:
    """Answer one question live under a policy."""

    model: Name
    """"embedded", "smollm2", a folder of Hugging Face weights, or a hub name."""
    question: TheQuestion
    """The question."""
    policy: Folders = ()
    """Policy folder, or a registry, whose served policy is taken; several with --combine, or for
    rules that name them."""
    profile: OptionalName = None
    """How the model is prompted and made to answer: embedded, smollm2, think or plain; by default
    the model's own, else that of the policy's traces."""
    token_price: OptionalPrice = None
    """Reward lost per token; by default the certified one, else the middle of the range."""
    max_tokens: OptionalN = None
    """Hard cap on thinking tokens; by default that of the policy's traces."""
    temperature: OptionalNumber = None
    """Sampling temperature, 0 for greedy; by default that of the policy's traces."""
    seed: N = 0
    """Seed of the sampling."""
    device: OptionalName = None
    """cpu, cuda, cuda:1, mps, or auto to spread the layers over all devices; by default the first
    CUDA device, else the CPU."""
    dtype: OptionalName = None
    """float32, bfloat16 or float16; by default that of the weights."""
    strategies: Strategies = field(default_factory=StrategyArguments)
    cascade: OptionalFile = None
    """Cascade of `rlbudget cascade`, instead of a policy: it may hand over to the large model."""
    large_model: OptionalName = None
    """For the cascade: the model to hand over to, named as --model."""
    large_policy: OptionalFolder = None
    """For the cascade: policy folder of the large model; by default it decodes in full."""
    correct: OptionalFile = None
    """File of `rlbudget correct`: exits that look wrong are thought on."""
    task: NameOrNone = ""
    """Task of the request: for the rules, a policy that is told tasks, and the scorer of audited
    answers (gsm8k, math)."""
    metadata: Metadata = ()
    """KEY=VALUE of the request, for the rules; a value that is a number counts as one."""
    log: OptionalFolder = None
    """Folder of a decision log that gets a line for this request."""
    audit_share: Share = 0.0
    """Chance, from 0 to 1, that the request runs to its natural end and is recorded in the log."""
    request_id: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="")] = None
    """Id of the request in the log, to tell its outcome later; by default one is drawn."""
    store_text: Flag = False
    """Keep the question and the answer in the log; an audited request keeps them anyway."""

    def execute(self) -> None:
        """Run it."""
        if self.log is None and (self.audit_share or self.request_id or self.store_text):
            raise UserError("--audit-share, --request-id and --store-text need a --log FOLDER")
        special = (self.cascade, self.large_model, self.correct)
        if self.log is not None and any(given is not None for given in special):
            raise UserError(
                "a cascade or a correction cannot be logged yet, since no audit replays them: leave"
                " --log out"
            )
        if self.cascade is not None or self.large_model is not None:
            self._through_cascade()
            return
        servings = load_servings(self.policy)
        policies = {name: serving.policy for name, serving in servings.items()}
        composed = compose(policies, self.strategies.read())
        request = RequestFacts(self.question, self.task, metadata_of(self.metadata))
        served = composed.serve(request)
        for line in composed.explain(request):
            note(line)
        policy = next(iter(policies.values()))
        profile = _profile_of(policy, self.model) if self.profile is None else self.profile
        model = load_model(self.model, profile=profile, device=self.device, dtype=self.dtype)
        decoded = self._decode(
            model, served, list(servings.values()),
            _price(policy, self.token_price, served.price_range),
        )  # fmt: skip
        tell(decoded.text)
        tell(f"\nAnswer: {decoded.answer}")
        tell(
            f"Tokens: {decoded.total_tokens} = {decoded.thinking_tokens} thinking"
            f" + {decoded.probe_tokens} probe + {decoded.answer_tokens} answer."
            f" {ended(decoded.reason, decoded.thinking_tokens, decoded.message)}"
        )
        if decoded.stopped and served.confidence is not None:
            tell(f"Confidence of the exit: {served.confidence:.1%}.")
        if decoded.resumed:
            tell(f"An exit that looked wrong was thought on {decoded.resumed} times.")
        if decoded.message and decoded.reason != "policy_failed":
            note(f"rlbudget: {decoded.message}")
        by_policy = self.profile is None and profile is not None
        chosen_by = "policy" if by_policy else model.chosen_by
        report(of_profile(model.name, model.profile.name, chosen_by))
        for trained in policies.values():
            report(of_serving(trained.recorded, self._settings(model, policy.recorded)))

    def _through_cascade(self) -> None:
        if self.cascade is None or self.large_model is None:
            raise UserError(
                "--cascade and --large-model go together: the large one is handed over to"
            )
        if self.policy or self.correct or self.strategies != StrategyArguments():
            raise UserError(
                "a cascade stops the small model by itself: leave out --policy, --combine,"
                " --guard, --rules and --correct; the large one takes --large-policy"
            )
        answer_through_cascade(
            self.question,
            cascade=self.cascade,
            model=self.model,
            large_model=self.large_model,
            large_policy=self.large_policy,
            profile=self.profile,
            token_price=self.token_price,
            seed=self.seed,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            device=self.device,
            dtype=self.dtype,
        )

    def _settings(self, model: TransformersModel, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """What this decode is made with, where ``recorded`` gives what is left out."""
        profile, scorer = model.profile, scorer_of_task(self.task)
        usual = recorded.get("temperature", profile.temperature)
        return {
            "model": model.name,
            "profile": profile.name,
            "stride": recorded.get("stride", profile.stride),
            "temperature": usual if self.temperature is None else self.temperature,
            "scorer": None if scorer == "auto" else scorer,
        }

    def _decode(
        self,
        model: TransformersModel,
        policy: StopPolicy,
        servings: Sequence[Serving],
        token_price: float,
    ) -> Decoded:
        """Decode, and log it if that is asked for."""
        if self.log is None:
            return decode(
                model, self.question, policy, token_price=token_price, task=self.task,
                seed=self.seed,
                temperature=self.temperature, max_tokens=self.max_tokens,
                correction=None if self.correct is None else _thinking_on(self.correct),
            )  # fmt: skip
        logged = decode_logged(
            model, self.question, policy, token_price=token_price, seed=self.seed,
            temperature=self.temperature, max_tokens=self.max_tokens, task=self.task,
            log=DecisionLog(self.log, store_text=self.store_text),
            origin=_origin(servings, self.strategies),
            audit_share=self.audit_share, request_id=self.request_id,
        )  # fmt: skip
        audited = ", audited: it was not stopped" if logged.served.audited else ""
        note(f"Request {logged.served.request_id}{audited}")
        return logged.decoded


def _thinking_on(file: Path) -> Correction:
    """A correction by the same model: ``UserError`` for one by a second model."""
    correction = load_correction(file)
    if correction.second is not None:
        raise UserError(
            f"{file} hands exits to a second model, which a plan names: [correction] folder, model"
        )
    return correction


def _profile_of(policy: Policy, model: str) -> str | None:
    """The profile of a policy's traces, for a model that has none of its own."""
    recorded = policy.recorded.get("profile")
    return recorded if recorded in PROFILES and model not in PROFILES else None


def _origin(servings: Sequence[Serving], strategies: StrategyArguments) -> Origin:
    """What the log keeps of the policies and of what stands over them."""
    digests = [serving.policy.digest for serving in servings]
    together = digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()
    version = servings[0].version if len(servings) == 1 else None
    if strategies == StrategyArguments():
        return Origin(together, version)
    over = sha256(repr(strategies).encode())
    for file in (strategies.combine, strategies.guard, strategies.rules):
        path = Path(file) if file is not None else None
        inside = sorted(path.rglob("*")) if path is not None and path.is_dir() else [path]
        for one in inside:
            over.update(one.read_bytes() if one is not None and one.is_file() else b"")
    return Origin(together, version, over.hexdigest())


def _price(policy: Policy, asked: float | None, served: tuple[float, float]) -> float:
    """The price to decode at; a price above the certified one is served, but said to be."""
    certified = policy.config["calibration"] is not None
    if certified and asked is not None and asked > policy.default_price:
        note(
            f"rlbudget: token price {asked:g} is above the certified {policy.default_price:.3g}:"
            " the bound on lost answers does not cover it"
        )
    return nearest_price(policy.default_price, served) if asked is None else asked
