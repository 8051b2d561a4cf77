"""The plan: everything that decides about a request, in one TOML file.

``rlbudget decode --plan``, ``evaluate --plan`` and every integration read the same file;
``docs/plan.md`` lists its keys. Paths in it are relative to it. A bare policy is the smallest plan.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NoReturn

from rlbudget.errors import UserError
from rlbudget.policy.cascade import Cascade, load_cascade
from rlbudget.policy.dial import DIALS, NO_EFFORT, Dial, Spot, uncovered
from rlbudget.policy.folder import Policy, load_policy
from rlbudget.policy.operating import promised
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.compose import (
    MAX_RISK,
    Composed,
    Strategy,
    compose,
    read_strategy,
)
from rlbudget.strategies.correction.correct import Correction
from rlbudget.strategies.correction.file import load_correction, load_second_policy
from rlbudget.strategies.experiments.design import KEYS as EXPERIMENT_KEYS
from rlbudget.strategies.experiments.design import Design, design_of
from rlbudget.strategies.feedback.log import DecisionLog, Log
from rlbudget.strategies.feedback.registry import load_servings
from rlbudget.strategies.impact_file import load_impact
from rlbudget.strategies.online import (
    PRICE_KEYS,
    QUEUE_KEYS,
    PriceSettings,
    QueueSettings,
    read_price,
    read_queue,
    told_of,
)
from rlbudget.strategies.toml_lines import KeyPath, TomlFile, inside, read_toml
from rlbudget.traces.trace import Trace

NUMBER = (int, float)
_SAY = "say a token price or money"
KEYS: Mapping[str, Mapping[str, Any]] = {
    "": {
        "policy": str, "policies": list, "combine": str, "price_factors": list, "effort": str,
        "token_price": NUMBER, "max_em_loss": NUMBER, "answer_worth": NUMBER,
        "price_per_million": NUMBER, "exit_profile": str, "max_thinking_tokens": int,
        "answer_reserve": int, "loops": bool,
    },
    "guard": {"folder": str, "max_risk": NUMBER},
    "rules": {"file": str},
    "correction": {"folder": str, "model": str, "tokenizer": str},
    "cascade": {"folder": str, "large": str, "large_policy": str, "tokenizer": str},
    "chooser": {"folder": str, "models": list, "tokenizers": list},
    "audit": {"log": str, "share": NUMBER, "store_text": bool},
    "experiment": EXPERIMENT_KEYS,
    "store": {"url": str, "keep_days": NUMBER},
    "upstream": {"urls": list, "model": str, "tokenizer": str, "top_logprobs": int,
                 "timeout": NUMBER, "shadow": bool, "cut": str, "weights": list,
                 "keys": str},
    "price": PRICE_KEYS,
    "queue": QUEUE_KEYS,
}  # fmt: skip
"""Sections, their keys and the kind of each value; ``""`` is the top of the file."""
_KINDS = {dict: "a section", str: "a text", list: "a list", int: "a whole number",
          bool: "true or false", NUMBER: "a number"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and which share of the requests runs to its natural end and is recorded."""

    log: Path | None
    """folder of the decision log; None where ``to`` takes its place"""
    share: float = 0.0
    """chance in [0, 1] that a request is audited"""
    store_text: bool = False
    to: Log | None = field(default=None, repr=False, compare=False)
    """what requests are noted in instead of the folder, such as the gateway's store"""

    def opened(self) -> Log:
        """What requests are noted in."""
        if self.to is not None:
            return self.to
        if self.log is None:
            raise UserError(
                "[audit] names no log: only the gateway keeps what it served in [store]"
            )
        return DecisionLog(self.log, store_text=self.store_text)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where the gateway keeps what it served."""

    url: str | None = None
    """a file, or ``postgresql://``; None: where its command says"""
    keep_days: float | None = None
    """what is older is deleted; None: nothing is"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """What the gateway stands before, where its command does not say it."""

    urls: tuple[str, ...] = ()
    """addresses of OpenAI-compatible servers, ending in ``/v1``"""
    model: str | None = None
    tokenizer: str | None = None
    """a folder or a hub name; None: the model's name"""
    top_logprobs: int | None = None
    """log-probabilities that are listed beside a token"""
    weights: tuple[float, ...] = ()
    """share of the requests that each address gets, beside the others of its model; none: equal"""
    keys: Path | None = None
    """file of the keys that clients may show"""
    timeout: float | None = None
    """seconds of silence"""
    shadow: bool = False
    """whether nothing is cut, and only told what would have been"""
    cut: Literal["auto", "here", "engine"] = "auto"
    """where the thinking is ended: by the gateway, by our processor in the engine, or there where
    it can"""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides about a request; made by ``load_plan`` or ``plan_of``."""

    policies: Mapping[str, StopPolicy]
    """by name; the first decides where nothing names another; empty under a cascade"""
    strategy: Strategy = field(default_factory=Strategy)
    """ensemble, guard and rules"""
    dial: Dial = field(default_factory=Dial)
    """the operating point of requests that name none"""
    exit_profile: str | None = None
    """None: that of the policy's traces"""
    stride: int | None = None
    """tokens between checkpoints; None: that of the policy's traces"""
    max_thinking_tokens: int | None = None
    """hard cap on thinking tokens; None: that of the policy's traces"""
    answer_reserve: int | None = None
    """tokens kept for exit text and answer; None: what the profile may need"""
    loops: bool = True
    """whether a thinking that repeats itself exactly is closed"""
    correction: Correction | None = None
    second_policy: StopPolicy | None = None
    """of the second model that refines; None: it decodes in full"""
    second_model: str | None = None
    """name or URL of the model that refines doubtful exits; None: the same model thinks on"""
    cascade: Cascade | None = None
    large_model: str | None = None
    """name or URL of the model that the cascade hands over to"""
    large_policy: StopPolicy | None = None
    """of the large model; None: it decodes in full"""
    second_tokenizer: str | None = None
    """of the second model, where that is a server; None: the name of the model that it serves"""
    chooser: Path | None = None
    chooser_models: tuple[str, ...] = ()
    """names or, in the gateway, URLs"""
    chooser_tokenizers: tuple[str, ...] = ()
    """of models that are servers, one each; empty, as a whole or one: the served model's name"""
    audit: LogSettings | None = None
    experiment: Design | None = None
    """what the gateway tries on its requests"""
    store: StoreSettings = field(default_factory=StoreSettings)
    upstream: Upstream = field(default_factory=Upstream)
    price: PriceSettings | None = None
    """how the gateway steers the price; None: it is the plan's"""
    queue: QueueSettings | None = None
    """who waits for whom in the gateway; None: nobody"""
    versions: Mapping[str, int] = field(default_factory=dict)
    """registry version of each policy that came from a registry"""
    folders: tuple[Path, ...] = ()
    """of the policies, where they came from a file"""
    digest: str | None = None
    """of the plan's file and all files beside the policies that it names; None for no file"""

    @property
    def policy(self) -> StopPolicy:
        """The one that decides where nothing names another, or the cascade."""
        if self.policies:
            return next(iter(self.policies.values()))
        assert self.cascade is not None
        return self.cascade  # type: ignore[return-value]

    @property
    def features(self) -> tuple[str, ...]:
        """What its policy, cascade and correction look at."""
        doubt = self.correction
        more = () if doubt is None or doubt.off else doubt.doubt.features
        return (*self.policy.features, *more)

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The settings of the recordings that its policy was trained on."""
        if self.cascade is not None:
            known = (self.cascade.config["trained"].get("recorded") or {}).get("small") or {}
            return dict(known)
        return dict(getattr(self.policy, "recorded", {}))

    @property
    def recorded_large(self) -> Mapping[str, Any]:
        """The settings of the large model's recordings that a cascade was trained on."""
        if self.cascade is None:
            return {}
        return dict((self.cascade.config["trained"].get("recorded") or {}).get("large") or {})

    @property
    def recorded_second(self) -> Mapping[str, Any]:
        """The settings of the second model's recordings, of a cascade or a correction."""
        refiner = None if self.correction is None else self.correction.second
        return self.recorded_large if refiner is None else refiner.recorded

    @property
    def plain(self) -> bool:
        """Whether one policy alone decides."""
        return len(self.policies) == 1 and self.strategy == Strategy() and self.cascade is None

    def spot(self, dial: Dial | None = None) -> Spot:
        """Where a request is served that says ``dial``, or nothing: then the plan's own.

        Operating points are those of the first policy. Raises ``UserError`` as ``Dial.at`` does,
        and for a loss of exact match where more than one policy decides: no certificate covers it.
        """
        said = self.dial if dial is None or dial.silent else dial
        named = said.max_em_loss is not None or said.effort not in (None, NO_EFFORT)
        if self.chooser is not None and (named or said.effort is not None):
            raise UserError(f"a chooser has no operating points: {_SAY}")
        if self.cascade is not None and named:
            raise UserError(f"a cascade has no operating points: {_SAY}")
        if said.max_em_loss is not None and not (self.plain and self.correction is None):
            raise UserError(
                "a certificate covers one policy alone: say an effort or a price under an"
                " ensemble, a guard, rules or a correction"
            )
        return said.at(self.policy)

    def compose(self) -> Composed | None:
        """Ensemble, guard and rules over the policies; None where one policy alone decides.

        Raises ``UserError`` for parts that do not fit together.
        """
        chosen = self.chooser is not None and not self.policies  # each model has its own
        if self.plain or self.cascade is not None or chosen:
            return None
        frozen: dict[str, Policy] = {}
        for name, policy in self.policies.items():
            if not isinstance(policy, Policy):
                raise UserError(f"{name}: strategies stand over frozen policies: freeze it first")
            frozen[name] = policy
        return compose(frozen, self.strategy)

    @property
    def fingerprint(self) -> str:
        """What the log calls the policy: its digest, or that of several together."""
        digests = [str(getattr(policy, "digest", "")) for policy in self.policies.values()]
        if self.cascade is not None:
            digests.append(repr(sorted(self.cascade.config.items(), key=str)))
        return digests[0] if len(digests) == 1 and self.policies else _hash("".join(digests))


@dataclass(frozen=True, slots=True)
class Plans:
    """Plans to be measured on recorded traces."""

    plans: tuple[Plan, ...]

    @property
    def folders(self) -> list[Path]:
        """Of all their policies."""
        return list(dict.fromkeys(folder for plan in self.plans for folder in plan.folders))

    @property
    def unmeasured(self) -> list[str]:
        """Parts that a replay of single decodes cannot measure, a line each."""
        parts = {
            "correction": any(plan.correction is not None for plan in self.plans),
            "cascade": any(plan.cascade is not None for plan in self.plans),
            "chooser": any(plan.chooser is not None for plan in self.plans),
        }
        return [
            f"[{name}] is not measured here: the command that fitted it says what it is worth"
            for name, there in parts.items() if there
        ]  # fmt: skip

    @property
    def fitted(self) -> dict[str, Mapping[str, Any]]:
        """What parts were fitted to (``evaluate.unseen.Before``)."""
        return {name: of for plan in self.plans for name, of in plan.strategy.fitted.items()}

    def over(
        self, policies: Mapping[str, Policy], traces: Callable[[], Iterable[Trace]]
    ) -> list[Composed]:
        """A method for each stage of each plan over the policies that it names."""
        found: list[Composed] = []
        for plan in self.plans:
            own = {n: p for n, p in policies.items() if n in plan.policies}
            if own and plan.strategy != Strategy():
                found += plan.strategy.over(own, traces)
        return found


def plan_of(given: Plan | StopPolicy) -> Plan:
    """A plan as it is; a bare policy as the smallest one."""
    return given if isinstance(given, Plan) else Plan({"policy": given})


def load_plan(path: Path | str) -> Plan:
    """Read a plan and all that it names.

    Raises ``UserError``, ``FILE:LINE: what is wrong``, for unknown keys, values of the wrong kind
    and files that are not what they should be.
    """
    return _Reader(read_toml(path, "the plan")).plan()


_MOST_FILES = 1_000


class _Reader:
    """One file on its way to a plan."""

    def __init__(self, file: TomlFile) -> None:
        self._file, self._said = file, file.content
        self._named: list[Path] = []

    def plan(self) -> Plan:
        self._check()
        top, audit = self._said, self._section("audit")
        folders = self._policies()
        servings = self._loaded("policy" if "policy" in top else "policies", load_servings, folders)
        correction, cascade = self._section("correction"), self._section("cascade")
        chooser = self._section("chooser")
        correcting = self._loaded("correction", load_correction, self._path(correction))
        self._check_second(correcting, correction)
        plan = Plan(
            policies={name: serving.policy for name, serving in servings.items()},
            strategy=self._strategy(),
            dial=self._dial(),
            exit_profile=top.get("exit_profile"),
            max_thinking_tokens=self._count("max_thinking_tokens"),
            answer_reserve=self._count("answer_reserve"),
            loops=top.get("loops", True),
            correction=correcting,
            second_policy=None if correcting is None or correcting.second is None else
            self._loaded("correction", load_second_policy, self._path(correction)),
            second_model=correction.get("model"),
            cascade=self._loaded("cascade", load_cascade, self._path(cascade)),
            large_model=cascade.get("large"),
            large_policy=self._loaded(
                "cascade", load_policy,
                self._beside(cascade["large_policy"]) if "large_policy" in cascade else None,
            ),
            second_tokenizer=correction.get("tokenizer", cascade.get("tokenizer")),
            chooser=self._path(chooser),
            chooser_models=tuple(map(str, chooser.get("models", ()))),
            chooser_tokenizers=tuple(map(str, chooser.get("tokenizers", ()))),
            audit=None if not audit else LogSettings(
                self._beside(audit["log"]) if "log" in audit else None,
                self._share(audit), audit.get("store_text", False),
            ),
            experiment=self._experiment(),
            store=self._store(),
            upstream=self._upstream(),
            price=read_price(
                self._file, self._share(audit),
                lambda name: self._loaded("price", load_impact, self._noted(name)),
                {name: serving.policy for name, serving in servings.items()},
            ),
            queue=read_queue(self._file),
            versions={n: s.version for n, s in servings.items() if s.version is not None},
            folders=tuple(folders),
            digest=self._digest(),
        )  # fmt: skip
        parts = [name for name in ("rules", "guard", "combine", "policies") if name in top]
        self._loaded(next(iter(parts), ""), lambda _: plan.compose(), self._file)
        if plan.policies or plan.cascade is not None:
            said = [name for name in DIALS if name in top]
            self._loaded(next(iter(said), ""), lambda _: plan.spot(), self._file)
        return plan

    def _experiment(self) -> Design | None:
        """Its arms' plans are the files that it names."""
        if "experiment" not in self._said:
            return None

        def wrong(why: str, *path: str | int) -> NoReturn:
            self._wrong(why, "experiment", *path)

        design = design_of(self._section("experiment"), wrong)
        arms = []
        for place, arm in enumerate(design.arms):
            if arm.plan is not None:
                file = self._beside(arm.plan)
                if not file.is_file():
                    wrong(f"plan: no file {file}", "arms", place, "plan")
                arm = replace(arm, plan=str(file))
            arms.append(arm)
        return replace(design, arms=tuple(arms))

    def _store(self) -> StoreSettings:
        said = self._section("store")
        url, days = said.get("url"), said.get("keep_days")
        if days is not None and not 0 < days < 1e6:
            self._wrong("keep_days must be above 0", "store", "keep_days")
        if url is not None and "://" not in url:
            url = str(self._beside(url))
        return StoreSettings(url, days)

    def _upstream(self) -> Upstream:
        said = self._section("upstream")
        urls = said.get("urls", [])
        if not all(isinstance(url, str) for url in urls):
            self._wrong("urls: a list of addresses", "upstream", "urls")
        for name in ("top_logprobs", "timeout"):
            if said.get(name, 1) <= 0:
                self._wrong(f"{name} must be above 0", "upstream", name)
        if said.get("cut", "auto") not in ("auto", "here", "engine"):
            self._wrong('cut: "auto", "here" or "engine"', "upstream", "cut")
        weights = said.get("weights", [])
        if not all(type(weight) in (int, float) and 0 < weight < 1e6 for weight in weights):
            self._wrong("weights: a list of numbers above 0", "upstream", "weights")
        if weights and len(weights) != len(urls):
            self._wrong("weights: one for each of urls", "upstream", "weights")
        keys = self._beside(said["keys"]) if "keys" in said else None
        return Upstream(**{**said, "urls": tuple(urls), "weights": tuple(weights), "keys": keys})

    def _check(self) -> None:
        """Every key is known and of its kind, and what belongs together is there."""
        for name, value in self._said.items():
            if name and name in KEYS:
                if not isinstance(value, dict):
                    self._wrong(f"{name} is a section: write [{name}]", name)
                for key, inner in value.items():
                    self._check_key(name, key, inner)
            else:
                self._check_key("", name, value)
        top = self._said
        if "policy" in top and "policies" in top:
            self._wrong("name policy or policies, not both", "policies")
        if "cascade" in top and ("policy" in top or "policies" in top):
            self._wrong("a cascade stops the model by itself: leave the policy out", "cascade")
        for name in ("combine", "price_factors", "guard", "rules", "correction"):
            if "cascade" in top and name in top:
                self._wrong(f"nothing stands over a cascade: leave {name} out", name)
        for name in ("combine", "price_factors", "guard", "rules", "correction", "cascade"):
            if "chooser" in top and name in top:
                self._wrong(f"nothing stands over a chooser's models: leave {name} out", name)
        for name in ("effort", "max_em_loss"):
            if "chooser" in top and name in top:
                self._wrong(f"a chooser has no operating points: {_SAY}", name)
        chooser = top.get("chooser", {})
        given = chooser.get("tokenizers")
        if given is not None and len(given) != len(chooser.get("models", ())):
            self._wrong("tokenizers: one for each of models", "chooser", "tokenizers")
        if not {"policy", "policies", "cascade", "chooser"} & set(top):
            self._wrong("name a policy, policies, a cascade or a chooser")
        needs = {"guard": ("folder",), "rules": ("file",), "correction": ("folder",),
                 "cascade": ("folder", "large"), "chooser": ("folder", "models"),
                 "audit": () if "store" in top else ("log",)}  # fmt: skip
        for name, keys in needs.items():
            missing = [key for key in keys if name in top and key not in top[name]]
            if missing:
                self._wrong(f"[{name}] lacks {' and '.join(missing)}", name)

    def _check_second(self, found: Correction | None, said: Mapping[str, Any]) -> None:
        if found is None or found.off:
            return
        if found.second is not None and "model" not in said:
            self._wrong("[correction] lacks model: the second one that refines", "correction")
        if found.second is None and "model" in said:
            self._wrong("this correction was fitted for the same model to think on: leave model"
                        " out, or fit it with --second", "correction", "model")  # fmt: skip

    def _check_key(self, section: str, key: str, value: Any) -> None:
        known = KEYS[section]
        where = (section, key) if section else (key,)
        if key not in known:
            there = [*known, *(() if section else (f"[{n}]" for n in KEYS if n))]
            self._wrong(f"{key or repr(key)}: unknown; there are {', '.join(there)}", *where)
        kind = known[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._wrong(f"{key} must be {_KINDS[kind]}", *where)

    def _policies(self) -> list[Path]:
        if "policy" in self._said:
            return [self._beside(self._said["policy"])]
        named = self._said.get("policies", [])
        if not all(isinstance(one, str) for one in named):
            self._wrong("policies must be a list of folders", "policies")
        return [self._beside(one) for one in named]

    def _strategy(self) -> Strategy:
        top, guard = self._said, self._section("guard")
        combine = top.get("combine")
        if combine is not None and combine not in ("mean", "vote"):
            combine = str(self._noted(combine))
        rules = self._section("rules").get("file")
        if rules is not None and not self._beside(rules).is_file():
            self._wrong(f"cannot read the rules {self._beside(rules)}: no file", "rules", "file")
        strategy: Strategy = self._loaded(
            "guard" if guard else "rules" if rules else "combine",
            lambda _: read_strategy(
                combine=combine,
                price_factors=[float(x) for x in top.get("price_factors", ())],
                guard=self._path(guard),
                max_risk=guard.get("max_risk", MAX_RISK),
                rules=None if rules is None else self._noted(rules),
            ),
            self._file,
        )
        return strategy

    def _dial(self) -> Dial:
        said = {name: self._said[name] for name in DIALS if name in self._said}
        dial: Dial = self._loaded(next(iter(said), ""), lambda _: Dial(**said), self._file)
        return dial

    def _count(self, key: str) -> int | None:
        value = self._said.get(key)
        if value is not None and value < 1:
            self._wrong(f"{key} must be at least 1", key)
        return value

    def _share(self, audit: Mapping[str, Any]) -> float:
        share = float(audit.get("share", 0.0))
        if not 0 <= share <= 1:
            self._wrong("share must lie in [0, 1]", "audit", "share")
        return share

    def _section(self, name: str) -> Mapping[str, Any]:
        return dict(self._said.get(name, {}))

    def _path(self, section: Mapping[str, Any]) -> Path | None:
        return None if "folder" not in section else self._noted(section["folder"])

    def _noted(self, name: str) -> Path:
        self._named.append(self._beside(name))
        return self._named[-1]

    def _beside(self, name: str) -> Path:
        """The path of a name that the file says, relative to it."""
        try:
            os.fsencode(name)
            path = self._file.path.parent / Path(name).expanduser()
            path.lstat()
        except FileNotFoundError:
            pass  # what needs the file says so
        except (OSError, RuntimeError, ValueError) as error:
            where = next(iter(self._places(name)), ())
            why = (error.strerror if isinstance(error, OSError) else None) or error
            self._wrong(f"{name!r} is no path: {why}", *where)
        return path

    def _places(self, name: str) -> Iterator[KeyPath]:
        """Where the file says a name."""
        for key, value in self._said.items():
            if value == name:
                yield (key,)
            yield from ((key, part) for part, one in inside(value) if one == name)

    def _loaded(self, key: str, load: Any, given: Any) -> Any:
        """What ``load`` makes of a file that ``key`` names; its errors get the key's line."""
        if given is None:
            return None
        try:
            return load(given)
        except UserError as error:
            if re.match(r"[^:]*:\d+: ", str(error)):
                raise
            self._wrong(str(error), *([key] if key else []))

    def _digest(self) -> str:
        digest = sha256(self._file.text.encode())
        for path in self._named:
            for one in sorted(self._files(path)):
                try:
                    digest.update(one.read_bytes() if one.is_file() else b"")
                except OSError as error:
                    self._wrong(f"cannot read {one}: {error.strerror}")
        return digest.hexdigest()

    def _files(self, path: Path) -> list[Path]:
        """A file, or those of a folder; not of a folder of everything."""
        if not path.is_dir():
            return [path]
        found: list[Path] = []
        for place, _, names in os.walk(path):
            found += [Path(place, name) for name in names]
            if len(found) > _MOST_FILES:
                self._wrong(f"{path} holds more than {_MOST_FILES:,} files: is this the folder?")
        return found

    def _wrong(self, why: str, *where: str | int) -> NoReturn:
        raise self._file.wrong(why, *where)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def describe(plan: Plan) -> Sequence[str]:
    """What a plan does, a line each, in words."""
    lines = []
    if plan.cascade is not None:
        lines.append(f"a cascade decides; it hands over to {plan.large_model}")
    elif plan.policies:
        names = ", ".join(plan.policies)
        strategy = plan.strategy
        how = strategy.combine if isinstance(strategy.combine, str) else "blend"
        combined = strategy.combine is not None
        lines.append(f"the policies {names} decide by {how}" if combined else f"{names} decides")
        if strategy.guard is not None:
            lines.append(f"a guard takes back stops riskier than {strategy.max_risk:g}")
        composed = plan.compose()
        if composed is not None and composed.rules is not None:
            lines.append(f"{len(composed.rules.rules)} rules have the last word")
    if plan.policies or plan.cascade is not None:
        lines += _dialed(plan)
    profile = plan.exit_profile or plan.recorded.get("profile") or "the model's own"
    lines.append(f"thinking ends with the exit text of the profile {profile}")
    cap = plan.max_thinking_tokens or plan.recorded.get("max_tokens")
    if cap is not None:
        lines.append(f"at most {cap} tokens of thinking")
    if plan.answer_reserve is not None:
        lines.append(f"{plan.answer_reserve} tokens are kept for the answer")
    if not plan.loops:
        lines.append("a thinking that repeats itself goes on")
    if plan.correction is not None:
        if plan.correction.off:
            lines.append("the correction is off: nothing paid when it was fitted")
        elif plan.second_model is not None:
            lines.append(f"doubtful exits are refined by {plan.second_model}")
        else:
            lines.append("doubtful exits are taken back, and the model thinks on")
    if plan.chooser is not None:
        lines.append(f"a chooser picks whose answer to use: {', '.join(plan.chooser_models)}")
    if plan.experiment is not None:
        names = ", ".join(arm.name for arm in plan.experiment.arms)
        lines.append(f"the gateway tries the arms {names} of {plan.experiment.name}")
    if plan.audit is not None:
        audit = plan.audit
        where = audit.log or "the gateway's store"
        lines.append(f"requests are logged in {where}, {audit.share:.1%} of them audited")
    return [*lines, *told_of(plan.price, plan.queue)]


def _dialed(plan: Plan) -> list[str]:
    """Where on the trade-off requests are served that say nothing."""
    dial, policy, spot = plan.dial, plan.policy, plan.spot()
    lines = []
    if dial.effort is not None:
        points = getattr(policy, "operating_points", {})
        promise = promised(points[dial.effort]) if dial.effort in points else "exits at once"
        lines.append(f"requests are served at effort {dial.effort}: {promise}")
    elif dial.max_em_loss is not None:
        lines.append(f"requests may lose {100 * dial.max_em_loss:g} points of exact match")
    elif dial.answer_worth is not None:
        lines.append(f"a right answer is worth {dial.answer_worth:g}, a million tokens cost"
                     f" {dial.price_per_million:g}")  # fmt: skip
    low, high = (plan.compose() or policy).price_range
    price = spot.token_price if dial.token_price is not None else nearest_price(
        spot.token_price, (low, high)
    )  # fmt: skip
    if spot.stops == "policy":
        lines.append(f"the token price is {price:.3g}, of {low:.3g} to {high:.3g}")
        lines += _beyond(plan, replace(spot, token_price=price))
    return lines


def _beyond(plan: Plan, spot: Spot) -> list[str]:
    """Where the price, or rules that raise it, leave what is certified."""
    if plan.cascade is not None:
        return []
    composed, price, loss = plan.compose(), spot.token_price, spot.max_em_loss
    line = uncovered(plan.policy if composed is None else composed.policy, price, loss)
    if line is not None or composed is None or composed.rules is None:
        return [] if line is None else [line]
    rules, found = composed.rules, []
    for rule in rules.rules:
        if line := uncovered(rules.under([rule]), price, loss):
            found.append(f"under the rule {rule.name!r} {line}")
    dearer = [rule for rule in rules.rules if rule.price is not None and rule.price > 1]
    if not found and (line := uncovered(rules.under(dearer), price, loss)):
        found.append(f"where several rules raise the price, {line}")
    return found
