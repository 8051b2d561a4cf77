"""The gateway on the command line."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from rlbudget.cli.arguments import (
    Flag,
    N,
    Name,
    OptionalFile,
    OptionalFolder,
    OptionalN,
    OptionalName,
    OptionalNumber,
    OptionalPrice,
)
from rlbudget.cli.asked import online
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import settings_for
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.tokens import TOP_K
from rlbudget.strategies.chooser.folder import load_chooser
from rlbudget.strategies.feedback.registry import load_serving
from rlbudget.strategies.plan import Plan, load_plan, plan_of

Upstreams = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="URL", help_behavior_hint=""),
]
Where = Annotated[
    Literal["auto", "here", "engine"] | None,
    tyro.conf.arg(metavar="WHERE", help_behavior_hint=""),
]
TIMEOUT = 120.0
"""seconds"""
KEY, UPSTREAM_KEY, STORE = "RLBUDGET_KEYS", "RLBUDGET_UPSTREAM_KEY", "RLBUDGET_STORE"
ADMIN_KEY = "RLBUDGET_ADMIN_KEYS"
STORE_FILE = "rlbudget.sqlite3"


@dataclass(frozen=True)
class Serve:
    """An OpenAI-compatible endpoint that thinks less and answers the same."""

    policy: OptionalFolder = None
    """Policy folder, or a registry, whose served policy is taken."""
    plan: OptionalFile = None
    """Plan (TOML): policies, ensemble, guard, rules, correction, audit."""
    upstream: Upstreams = ()
    """Address of an OpenAI-compatible server, http://HOST:PORT/v1; several share the requests of
    a model. RLBUDGET_UPSTREAM_KEY is the key that they ask for."""
    model: OptionalName = None
    """The upstream's model, by default the first that it lists; without --upstream a model inside
    the gateway: "embedded", "smollm2", a folder of Hugging Face weights, or a hub name."""
    tokenizer: OptionalName = None
    """That of the upstream's model: a folder or a hub name; by default the model's name."""
    host: Name = "127.0.0.1"
    """Address to listen at. RLBUDGET_KEYS are the keys that clients may show, commas between
    them, or their digests as sha256:HEX."""
    port: N = 8080
    """Port to listen at; 0 for any that is free."""
    token_price: OptionalPrice = None
    """Reward lost per token, where a request says nothing; by default the plan's."""
    profile: OptionalName = None
    """How the model is made to answer: embedded, smollm2, think or plain; by default the plan's,
    else that of the policy's traces."""
    top_logprobs: OptionalN = None
    """Log-probabilities that the upstream lists beside a token, by default 20; the size of the
    vocabulary gives all signals exactly, where a server allows it."""
    approximate: Flag = False
    """Estimate signals that the upstream's top log-probabilities do not give exactly."""
    shadow: Flag = False
    """Cut nothing; tell and count what would have been cut, and whether the answer would have
    changed."""
    cut: Where = None
    """Where the thinking is ended: "engine", by our logits processor in the upstream; "here", by
    its log-probabilities; "auto", in the engine where it can (default)."""
    store: OptionalName = None
    """Where requests, feedback and experiments are kept: a file, or postgresql://USER@HOST/NAME,
    also by RLBUDGET_STORE; by default the plan's, else the file rlbudget.sqlite3; "none" keeps
    nothing."""
    keys: OptionalFile = None
    """Keys that clients may show, as digests, with their limits (TOML; docs/gateway.md)."""
    request_log: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A JSON line for each request goes there; "-" for standard output."""
    log_texts: Flag = False
    """Questions and answers stand in the request log too."""
    otel: Flag = False
    """Export spans and metrics by OpenTelemetry, as its environment variables say."""
    timeout: OptionalNumber = None
    """Longest silence of an upstream, in seconds; by default 120."""
    ssl_certfile: OptionalFile = None
    """Certificate for TLS (PEM)."""
    ssl_keyfile: OptionalFile = None
    """Its private key (PEM)."""

    def execute(self) -> None:
        """Serve until SIGTERM or Ctrl-C; running streams are brought to their end."""
        plan = plan_of(self._plan())
        said = plan.upstream
        urls, model = self.upstream or said.urls, self.model or said.model
        weights = () if self.upstream else said.weights
        chooser = None if plan.chooser is None else load_chooser(plan.chooser)
        if chooser is not None and (urls or model is not None):
            raise UserError(
                f"{self.plan}: [chooser] names its models itself: leave out the upstream and the"
                " model"
            )
        if chooser is None and not urls and model is None:
            raise UserError("name --upstream URL, or --model for a model inside the gateway")
        cut, shadow = self.cut or said.cut, self.shadow or said.shadow
        if cut == "engine" and shadow:
            raise UserError("an engine that cuts has no shadow mode: leave out --cut engine")
        if self.log_texts and self.request_log is None:
            raise UserError("--log-texts goes with --request-log")
        if chooser is not None and cut == "engine":
            raise UserError("the models of a chooser are cut here: leave out --cut engine")
        live, file = online(), self.keys or said.keys
        keys = live.named(
            [] if file is None else live.read_keys(file),
            live.digests_of(os.environ.get(KEY, "")),
        )
        if chooser is not None:
            plan = live.under_chooser(plan, chooser)
        plans = {"default": plan, **_tried(plan)}
        settings = settings_for(plans, self.profile, self.token_price)
        _log_with_times()
        live.serve(
            settings, upstreams=urls, weights=weights, model=model,
            tokenizer=self.tokenizer or said.tokenizer,
            upstream_key=os.environ.get(UPSTREAM_KEY) or None,
            timeout=self.timeout or said.timeout or TIMEOUT, approximate=self.approximate,
            top_logprobs=self.top_logprobs or said.top_logprobs or TOP_K,
            keys=keys, shadow=shadow, cut=cut, request_log=self.request_log,
            log_texts=self.log_texts, otel=self.otel,
            store=self._store(plan),
            admins=live.digests_of(os.environ.get(ADMIN_KEY, ""), ADMIN_KEY),
            host=self.host, port=self.port, ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile, chooser=chooser,
        )  # fmt: skip

    def _store(self, plan: Plan) -> str | None:
        said = self.store or os.environ.get(STORE) or plan.store.url or STORE_FILE
        return None if said == "none" else said

    def _plan(self) -> Plan | StopPolicy:
        if (self.policy is None) == (self.plan is None):
            raise UserError("name one of --policy and --plan")
        if self.plan is not None:
            return load_plan(self.plan)
        assert self.policy is not None
        return load_serving(self.policy).policy


def _log_with_times() -> None:
    """A process that runs for long tells when something was; of other libraries it is warnings
    alone."""  # fmt: skip
    ours = logging.getLogger("rlbudget")
    for handler in [*ours.handlers]:  # the command line's own, which would say all of it again
        ours.removeHandler(handler)
    ours.setLevel(logging.INFO)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")


def _tried(plan: Plan) -> dict[str, Plan]:
    """The plans of an experiment's arms, by the names of the arms."""
    arms = () if plan.experiment is None else plan.experiment.arms
    return {arm.name: load_plan(arm.plan) for arm in arms if arm.plan is not None}
