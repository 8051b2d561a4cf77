"""A plan at work: decode one question live; say what a plan does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from rlbudget.cli.arguments import (
    Flag,
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
    OptionalShare,
    Texts,
    TheQuestion,
    metadata_of,
)
from rlbudget.cli.asked import served
from rlbudget.cli.batch import Asked, answered, read_questions, row_of
from rlbudget.cli.findings.decodes import ended, of_profile, of_serving
from rlbudget.cli.findings.finding import report
from rlbudget.cli.through import Through, addresses, refuse_others
from rlbudget.console import note, tell, tell_json
from rlbudget.decoding.chosen import decode_chosen
from rlbudget.decoding.core import ENGINES, refusals
from rlbudget.decoding.decode import decode, second_model
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.record import Model
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.profiles import PROFILES
from rlbudget.policy.dial import Dial
from rlbudget.policy.stop_policy import Full
from rlbudget.strategies.allocation import spending
from rlbudget.strategies.chooser.folder import load_chooser
from rlbudget.strategies.feedback.registry import load_serving
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.strategies.plan import Plan, describe, load_plan
from rlbudget.tasks.scorers import scorer_of_task
from rlbudget.traces.store import load_table

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel


@dataclass(frozen=True)
class Decode:
    """Answer one question live under a plan, or under a policy alone."""

    model: Name
    """"embedded", "smollm2", a folder of Hugging Face weights, a hub name, or the address of an
    OpenAI-compatible server, http://HOST:PORT/v1."""
    question: TheQuestion = ""
    """The question; left out with --file."""
    file: OptionalFile = None
    """Many questions instead, JSON lines with "question", and "id", "exempt", "task", "metadata"
    where wanted; an answer a line of JSON. --token-budget is what they may spend together."""
    token_budget: OptionalN = None
    """Tokens that the questions of --file may spend together; exempt ones are not counted, and
    served as the plan says."""
    traces: OptionalFolder = None
    """Recorded traces, which say what a price spends; left out, it is learned from the first
    questions of --file."""
    policy: OptionalFolder = None
    """Policy folder, or a registry, whose served policy is taken."""
    plan: OptionalFile = None
    """Plan (TOML): policies, ensemble, guard, rules, correction, cascade, audit."""
    token_price: OptionalPrice = None
    """Reward lost per token; by default the plan's, the certified one, or the middle of the
    range."""
    effort: OptionalName = None
    """Points of exact match that may be lost, as the policy folder prices them: max 0, high 0.5,
    medium 1, low 3, minimal 6; none: answer without thinking."""
    max_em_loss: OptionalShare = None
    """Exact match that may be lost, 0.01 for a point; a certificate must cover it."""
    answer_worth: OptionalNumber = None
    """What a right answer is worth, in money; with --price-per-million."""
    price_per_million: OptionalNumber = None
    """Price of a million tokens, in the same money."""
    max_tokens: OptionalN = None
    """Hard cap on thinking tokens; by default the plan's, or that of the policy's traces."""
    off: Flag = False
    """Do not stop: the model thinks to its natural end."""
    profile: OptionalName = None
    """How the model is prompted and made to answer: embedded, smollm2, think or plain; by default
    the model's own, else that of the policy's traces."""
    temperature: OptionalNumber = None
    """Sampling temperature, 0 for greedy; by default that of the policy's traces."""
    seed: N = 0
    """Seed of the sampling."""
    device: OptionalName = None
    """cpu, cuda, cuda:1, mps, or auto to spread the layers over all devices; by default the first
    CUDA device, else the CPU."""
    dtype: OptionalName = None
    """float32, bfloat16 or float16; by default that of the weights."""
    task: NameOrNone = ""
    """Task of the request: for rules and a policy that is told tasks."""
    metadata: Metadata = ()
    """KEY=VALUE of the request, for the rules; a value that is a number counts as one."""
    option: Texts = ()
    """An answer to choose from, once for each; for a policy that looks at how likely they are."""
    request_id: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="")] = None
    """Id of the request in the log, to tell its outcome later; by default one is drawn."""
    server: tyro.conf.OmitArgPrefixes[Through] = field(default_factory=Through)

    def execute(self) -> None:
        """Run it."""
        if (self.file is None) == (not self.question) or (
            (self.file is None) != (self.token_budget is None)
        ):
            raise UserError("decode takes one of: a QUESTION, --file FILE with --token-budget N")
        urls = addresses(self.model)
        refuse_others(self, urls, ("device", "dtype"))
        plan = self._plan()
        if self.request_id is not None and plan.audit is None:
            raise UserError("--request-id names a line of a log: the plan has no [audit]")
        if self.file is not None:
            self._batch(urls, plan, self.file)
            return
        facts = RequestFacts(self.question, self.task, metadata_of(self.metadata))
        composed = plan.compose()
        for line in [] if composed is None else composed.explain(facts):
            note(line)
        dial = Dial(self.token_price, self.effort, self.max_em_loss, self.answer_worth,
                    self.price_per_million)  # fmt: skip
        if plan.chooser is not None and not self.off and not urls:
            self._choose(plan, dial)
            return
        if self.off:
            plan = replace(plan, policies={"off": Full()}, strategy=Plan({}).strategy,
                           dial=Dial(token_price=0.0), correction=None, cascade=None)  # fmt: skip
            dial = Dial()
        if urls:
            self._through(urls, plan, dial, facts)
            return
        wanted = plan.exit_profile or self.profile
        profile = _profile_of(plan.recorded, self.model) if wanted is None else wanted
        model = self._load(self.model, profile)
        other = plan.second_model or plan.large_model
        decoded = decode(
            model, self.question, plan, dial=dial, task=self.task, metadata=facts.metadata,
            seed=self.seed, temperature=self.temperature, max_tokens=self.max_tokens,
            request_id=self.request_id, options=self.option or None,
            second=None if other is None or self.off else second_model(
                model if other == self.model else self._load(other), plan, seed=self.seed
            ),
        )  # fmt: skip
        self._say(decoded)
        by_policy = wanted is None and profile is not None
        chosen_by = "policy" if by_policy else model.chosen_by
        report(of_profile(model.name, model.profile.name, chosen_by))
        report(of_serving(plan.recorded, self._settings(model, plan.recorded)))

    def _batch(self, urls: Sequence[str], plan: Plan, file: Path) -> None:
        """Answer a file of questions under one budget."""
        said = (self.token_price, self.effort, self.max_em_loss, self.answer_worth)
        if any(one is not None for one in said) or self.off or self.request_id is not None:
            raise UserError(
                "--token-budget finds the price: no other price, no --off, no --request-id"
            )
        parts = (plan.chooser, plan.cascade, plan.second_model)
        if urls or any(part is not None for part in parts):
            raise UserError("--file answers by one local model: no address, no second model")
        composed = plan.compose()
        policy = plan.policy if composed is None else composed.policy
        curve = None if self.traces is None else spending(policy, load_table(self.traces))
        questions = read_questions(file)
        wanted = plan.exit_profile or self.profile
        profile = _profile_of(plan.recorded, self.model) if wanted is None else wanted
        model = self._load(self.model, profile)

        def ask(one: Asked, dial: Dial) -> Decoded:
            return decode(
                model, one.question, plan, dial=dial, task=one.task or self.task,
                metadata={**metadata_of(self.metadata), **one.metadata}, seed=self.seed,
                temperature=self.temperature, max_tokens=self.max_tokens,
            )  # fmt: skip

        assert self.token_budget is not None
        spent = 0.0
        for found in answered(questions, self.token_budget, policy.price_range, curve, ask):
            tell_json(row_of(found))
            spent = found.batch.spent
        note(f"{len(questions)} questions; {spent:g} of {self.token_budget} tokens spent")

    def _through(self, urls: Sequence[str], plan: Plan, dial: Dial, facts: RequestFacts) -> None:
        """Answer through a server."""
        recorded, through = plan.recorded, served()
        profile = plan.exit_profile or self.profile or recorded.get("profile")
        where = through.served_of(urls, self.server.recorded_with(recorded), profile)
        said = {"dial": dial, "task": self.task, "metadata": facts.metadata,
                "request_id": self.request_id}  # fmt: skip
        asking = through.Asking(
            self.question, plan, self.temperature, self.max_tokens, self.seed, said
        )
        decoded, model = through.decode_through(where, asking)
        self._say(decoded)
        by_policy = plan.exit_profile is None and self.profile is None
        report(of_profile(model.name, model.profile.name, "policy" if by_policy else "name"))
        report(of_serving(recorded, self._settings(model, recorded)))

    def _load(self, name: str, profile: str | None = None) -> TransformersModel:
        return load_model(name, profile=profile, device=self.device, dtype=self.dtype)

    def _plan(self) -> Plan:
        if (self.policy is None) == (self.plan is None):
            raise UserError("decode takes one of: --policy FOLDER, --plan FILE")
        if self.plan is not None:
            return load_plan(self.plan)
        assert self.policy is not None
        serving = load_serving(self.policy)
        versions = {} if serving.version is None else {"policy": serving.version}
        return Plan({Path(self.policy).resolve().name: serving.policy}, versions=versions)

    def _choose(self, plan: Plan, dial: Dial) -> None:
        """Answer by the best of several models; ``--model`` is not one of them."""
        assert plan.chooser is not None
        chooser = load_chooser(plan.chooser)
        if any(addresses(name) for name in plan.chooser_models):
            raise UserError(
                "decode loads a chooser's models itself: for models behind servers, rlbudget serve"
                f" --plan {self.plan}"
            )
        said = plan.dial if dial.silent else dial
        if said.effort is not None or said.max_em_loss is not None:
            raise UserError("a chooser has no operating points: say a token price or money")
        price = float(np.median(chooser.token_prices)) if said.silent else said.price(Full())
        audit = plan.audit
        chosen = decode_chosen(
            [self._load(name) for name in plan.chooser_models], self.question, chooser,
            token_price=price, task=self.task, seed=self.seed, request_id=self.request_id,
            log=None if audit is None else audit.opened(),
        )  # fmt: skip
        tell(chosen.text)
        tell(f"\nAnswer: {chosen.answer}")
        parts = [
            f"{chosen.ratios[place]:g} x {done.total_tokens:g} of {plan.chooser_models[place]}"
            for place, done in chosen.asked.items()
        ]
        tell(f"Tokens: {chosen.total_tokens:g} = {' + '.join(parts)}."
             f" Answered by {plan.chooser_models[chosen.member]}.")  # fmt: skip
        if chosen.message:
            note(f"rlbudget: {chosen.message}")

    def _say(self, decoded: Decoded) -> None:
        tell(decoded.text)
        tell(f"\nAnswer: {decoded.answer}")
        own = (
            f"{decoded.thinking_tokens} thinking + {decoded.probe_tokens} probe"
            f" + {decoded.answer_tokens} answer"
        )
        second = decoded.second
        if decoded.ratio != 1 or second is not None:
            own = f"{decoded.ratio:g} x ({own})"
        if second is not None:
            own += (
                f" + {second.thinking_tokens} thinking + {second.probe_tokens} probe"
                f" + {second.answer_tokens} answer of the second model"
            )
        tell(
            f"Tokens: {decoded.total_tokens:g} = {own}."
            f" {ended(decoded.reason, decoded.thinking_tokens, decoded.message)}"
        )
        if decoded.confidence is not None:
            tell(f"Confidence of the exit: {decoded.confidence:.1%}.")
        if decoded.resumed:
            tell(f"An exit that looked wrong was thought on {decoded.resumed} times.")
        if decoded.message and decoded.reason != "policy_failed":
            note(f"rlbudget: {decoded.message}")
        if decoded.uncovered is not None:
            note(f"rlbudget: {decoded.uncovered}")
        if decoded.request_id is not None:
            audited = ", audited: it was not stopped" if decoded.audited else ""
            note(f"Request {decoded.request_id}{audited}")

    def _settings(self, model: Model, recorded: Mapping[str, Any]) -> dict[str, Any]:
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


def _profile_of(recorded: Mapping[str, Any], model: str) -> str | None:
    """The profile of a policy's traces, for a model that has none of its own."""
    known = recorded.get("profile")
    return known if known in PROFILES and model not in PROFILES else None


EngineName = Literal["hf", "vllm", "sglang", "llama-server", "llama-cpp-python", "openai"]


@dataclass(frozen=True)
class PlanCheck:
    """Say in words what a plan does, and what an engine could not give it."""

    plan: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """The plan (TOML)."""
    engine: Annotated[EngineName | None, tyro.conf.arg(metavar="ENGINE", help_behavior_hint="")] = (
        None
    )
    """hf, vllm, sglang, llama-server, llama-cpp-python or openai; by default all of them."""

    def execute(self) -> None:
        """Check; exit status 2 where the engine that is named cannot serve the plan."""
        plan = load_plan(self.plan)
        for line in describe(plan):
            tell(f"- {line}")
        for name, engine in ENGINES.items():
            if self.engine in (None, name):
                lacking = refusals(plan, engine)
                tell(f"{name}: " + ("; ".join(lacking) if lacking else "serves it"))
                if lacking and self.engine is not None:
                    raise UserError(f"{name} cannot serve {self.plan}: {lacking[0]}")
