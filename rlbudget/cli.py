"""The ``rlbudget`` command: one dataclass a subcommand, parsed by tyro, run by ``main``."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from rlbudget.console import err, out, progress
from rlbudget.errors import UserError
from rlbudget.observation import Preset

if TYPE_CHECKING:
    from rlbudget.controller import StopPolicy
    from rlbudget.policy import Policy

OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
OptionalStr = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Metadata = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...", help_behavior_hint="")]
OptionalRange = Annotated[
    tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH", help_behavior_hint="")
]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True)
class Quickstart:
    """Run the whole way on the embedded model: record, train, freeze, evaluate, decode."""

    out: Path = Path("runs/quickstart")
    """Folder for traces, run, policy, evaluation and report."""
    seed: int = 0
    """Seed of the questions, the decodes, the split and the training."""
    n: int = 2400
    """Questions to record; 30% of them are held out."""


@dataclass(frozen=True)
class Record:
    """Record full decodes of a model, with the answer a stop at each checkpoint would give."""

    model: str
    """"embedded", "smollm2", a folder of Hugging Face weights, or a hub name."""
    task: str
    """"embedded", "smollm2", "reasoning-gym:FAMILY", "gsm8k:FILE.jsonl", "squad:FILE.jsonl" or
    FILE.jsonl."""
    n: int
    """Questions to record, one decode each."""
    out: Path
    """Folder of the traces (Parquet parts)."""
    profile: OptionalStr = None
    """How the model is prompted and made to answer: embedded, smollm2, think or plain."""
    stride: OptionalInt = None
    """Thinking tokens between checkpoints; by default the profile's."""
    max_tokens: OptionalInt = None
    """Hard cap on thinking tokens; by default the profile's."""
    temperature: OptionalFloat = None
    """Sampling temperature, 0 for greedy; by default the profile's."""
    samples: OptionalInt = None
    """Draw so many samples of each question instead, to learn when to stop drawing."""
    probe_tokens: int = 8
    """Tokens of the trial answer recorded at each checkpoint, 0 for none."""
    batch_size: int = 128
    """Decodes at once."""
    store_text: Flag = False
    """Keep the text of the thinking in the traces."""
    seed: int = 0
    """Seed of the questions and of the sampling."""
    resume: Flag = False
    """Go on with the traces that are in the folder."""


@dataclass(frozen=True)
class Import:
    """Import traces of any model from the JSONL interchange."""

    file: tyro.conf.Positional[Path]
    """The JSONL file, one trace a line."""
    out: Path
    """Folder of the traces (Parquet parts)."""
    skip_bad: Flag = False
    """Leave bad lines out and count them, instead of stopping at the first."""


@dataclass(frozen=True)
class Train:
    """Train a PPO stopping policy on recorded traces."""

    traces: tyro.conf.Positional[Path]
    """Folder of the traces."""
    out: Path
    """Run folder: TensorBoard events, the best weights, run.json."""
    preset: Preset = "free"
    """free: no extra token; probe: always a trial answer, charged; look: where it asks for one."""
    context: Flag = False
    """Let the policy look at the question as well: its length, numbers, clauses."""
    em_floor: OptionalFloat = None
    """Least exact match, such as 0.9: training looks for the price that spends fewest tokens."""
    token_budget: OptionalFloat = None
    """Most tokens a question, all counted: the price for it is looked for in the same way."""
    signals: Literal["all", "top"] = "all"
    """top: only those that top-20 log-probabilities give, for OpenAI-compatible servers."""
    token_price: OptionalRange = None
    """Range of prices to learn, reward per token; by default from the traces' lengths."""
    total_timesteps: OptionalInt = None
    """Environment steps; by default the agent's."""
    advantages: Literal["exact", "sampled"] = "exact"
    """exact: computed from the record, at every checkpoint; sampled: plain PPO."""
    seed: int = 0
    """Seed of the training."""
    split_seed: int = 0
    """Seed of the split into training, validation and held-out questions."""
    resume: Flag = False
    """Go on from the run folder's latest snapshot."""


@dataclass(frozen=True)
class Freeze:
    """Turn a run's best weights into a policy folder that needs only numpy."""

    run: tyro.conf.Positional[Path]
    """Run folder of `rlbudget train`."""
    out: Path
    """Policy folder."""
    overwrite: Flag = False
    """Replace a policy that is already there."""


@dataclass(frozen=True)
class Evaluate:
    """Measure every rule and policy on the same held-out questions, all tokens counted."""

    traces: tyro.conf.Positional[Path]
    """Folder of the traces."""
    out: Path
    """Folder for evaluation.json, the table and the frontier figure."""
    policy: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A policy folder to measure beside the rules."""
    seed: int = 0
    """Seed of the split, where no policy fixes it, and of the bootstrap."""
    draws: int = 2000
    """Bootstrap draws."""
    folds: int = 1
    """Cross-validate by question: policies are trained anew in each of so many folds."""
    learners: Flag = False
    """Fit the learners PPO is held to as well: logistic head, fitted-Q, exact gradient."""
    write_cards: Flag = False
    """Put each policy's measured rows into the README.md of its folder."""


@dataclass(frozen=True)
class Calibrate:
    """Certify the highest price at which a policy keeps a bound on lost answers."""

    policy: tyro.conf.Positional[Path]
    """Policy folder."""
    traces: tyro.conf.Positional[Path]
    """Folder of traces; questions the policy has seen are left out."""
    out: Path
    """Policy folder with the certificate."""
    max_em_loss: float = 0.01
    """Exact match that may be lost, as a share of all questions."""
    confidence: float = 0.9
    """Chance, over the calibration questions, that the bound holds."""
    mode: Literal["loss", "harm"] = "loss"
    """loss: answers lost minus answers gained; harm: answers lost, stricter."""
    seed: int = 0
    """Seed of the order of the questions."""
    overwrite: Flag = False
    """Replace a policy that is already there."""


@dataclass(frozen=True)
class Decode:
    """Answer one question live under a policy."""

    model: str
    """"embedded", "smollm2", a folder of Hugging Face weights, or a hub name."""
    policy: Path
    """Policy folder."""
    question: tyro.conf.Positional[str]
    """The question."""
    profile: OptionalStr = None
    """How the model is prompted and made to answer: embedded, smollm2, think or plain."""
    token_price: OptionalFloat = None
    """Reward lost per token; by default the certified one, else the middle of the range."""
    max_tokens: OptionalInt = None
    """Hard cap on thinking tokens; by default that of the policy's traces."""
    temperature: OptionalFloat = None
    """Sampling temperature, 0 for greedy; by default the profile's."""
    seed: int = 0
    """Seed of the sampling."""
    rules: OptionalPath = None
    """TOML file of hybrid rules over the policy."""
    task: str = ""
    """Task of the request, for the rules."""
    metadata: Metadata = ()
    """KEY=VALUE of the request, for the rules; a value that is a number counts as one."""


@dataclass(frozen=True)
class Retrain:
    """Train on from the served policy of a registry; promote the result if it is good enough."""

    registry: tyro.conf.Positional[Path]
    """Folder of the registry."""
    traces: tyro.conf.Positional[Path]
    """Folder of new traces; 30% of their questions are kept for the contest."""
    margin: float = 0.005
    """Utility that may be lost at most, with 95% confidence, for a version to be promoted."""
    total_timesteps: OptionalInt = None
    """Environment steps; by default the agent's."""
    seed: int = 0
    """Seed of the split and of the training."""


@dataclass(frozen=True)
class RegistryAdd:
    """Keep a policy as the next version and serve it if nothing is served yet."""

    registry: tyro.conf.Positional[Path]
    """Folder of the registry; made if it is not there."""
    policy: tyro.conf.Positional[Path]
    """Policy folder."""
    promote: Flag = False
    """Serve it at once, whatever is served now."""


@dataclass(frozen=True)
class RegistryList:
    """Show what is served and what happened."""

    registry: tyro.conf.Positional[Path]
    """Folder of the registry."""


@dataclass(frozen=True)
class RegistryRollback:
    """Serve again what was served before."""

    registry: tyro.conf.Positional[Path]
    """Folder of the registry."""


@dataclass(frozen=True)
class RegistryCommand:
    """Every version of a policy, and which one is served: add, list, roll back."""

    action: (
        Annotated[RegistryAdd, tyro.conf.subcommand("add")]
        | Annotated[RegistryList, tyro.conf.subcommand("list")]
        | Annotated[RegistryRollback, tyro.conf.subcommand("rollback")]
    )


@dataclass(frozen=True)
class RulesCheck:
    """Check a file of hybrid rules; mistakes are named with their lines."""

    rules: tyro.conf.Positional[Path]
    """TOML file."""
    policy: list[Path]
    """Policy folders that rules may name, by the folder's name; the first is the usual one."""


@dataclass(frozen=True)
class RulesExplain:
    """Say which hybrid rules match a question and what follows from them."""

    rules: tyro.conf.Positional[Path]
    """TOML file."""
    question: tyro.conf.Positional[str]
    """The question."""
    policy: list[Path]
    """Policy folders that rules may name, by the folder's name; the first is the usual one."""
    task: str = ""
    """Task of the request."""
    metadata: Metadata = ()
    """KEY=VALUE of the request; a value that is a number counts as one."""


@dataclass(frozen=True)
class Rules:
    """Hybrid rules over a policy: check a file, or explain what it does to a question."""

    action: (
        Annotated[RulesCheck, tyro.conf.subcommand("check")]
        | Annotated[RulesExplain, tyro.conf.subcommand("explain")]
    )


Command = (
    Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
    | Annotated[Record, tyro.conf.subcommand("record")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Freeze, tyro.conf.subcommand("freeze")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Rules, tyro.conf.subcommand("rules")]
    | Annotated[Retrain, tyro.conf.subcommand("retrain")]
    | Annotated[RegistryCommand, tyro.conf.subcommand("registry")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit status 2 and one line on stderr for a user's mistake."""
    command = parse(arguments)
    try:
        _run(command)
    except UserError as mistake:
        fail(str(mistake))
    except OSError as fault:
        where = f": {fault.filename}" if fault.filename else ""
        fail(f"{fault.strerror or fault}{where}")
    except KeyboardInterrupt:
        print("rlbudget: interrupted; what was written is kept", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> None:
    """One line on stderr, exit status 2."""
    print("rlbudget: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def parse(arguments: Sequence[str] | None = None) -> Command:
    """Parse a command line. tyro's boxed message becomes one line."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(
                Command,
                prog="rlbudget",
                description="Learn when a reasoning model may stop thinking.",
                args=arguments,
                config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        fail(_one_line(shown.getvalue()))
        raise


def _one_line(boxed: str) -> str:
    """What tyro's box says, without its frame, its help texts and its pointer to the help.

    Where stdout is no UTF-8 tyro draws the frame with spaces and dashes, the title inside it.
    """
    plain = "\u2502" not in boxed
    rows = boxed.splitlines()[2:] if plain else boxed.splitlines()
    lines = [row[2:-1].rstrip() for row in rows if row.startswith(" " if plain else "\u2502")]
    sections = re.split(r"\n?(?:\u2500|-){9,}\n?", "\n".join(lines))
    said = [
        " ".join(line.strip() for line in section.splitlines() if not line.startswith(" " * 6))
        for section in sections
        if section and not section.startswith(("Argument helptext", "For full helptext"))
    ]
    return "; ".join(said) + "; see --help"


def _run(command: Command) -> None:
    match command:
        case Quickstart():
            from rlbudget.quickstart import quickstart

            quickstart(command.out, seed=command.seed, n=command.n)
        case Record():
            _record(command)
        case Import():
            _import(command)
        case Train():
            _train(command)
        case Freeze():
            from rlbudget.freeze import freeze

            freeze(command.run, command.out, overwrite=command.overwrite)
            err.print(f"Policy written to {command.out}")
        case Evaluate():
            _evaluate(command)
        case Calibrate():
            _calibrate(command)
        case Decode():
            _decode(command)
        case Rules():
            _rules(command.action)
        case Retrain():
            _retrain(command)
        case RegistryCommand():
            _registry(command.action)


def _record(command: Record) -> None:
    from rlbudget.models import load_model
    from rlbudget.record import record
    from rlbudget.record_samples import record_samples
    from rlbudget.tasks import load_task

    task = load_task(command.task, n=command.n, seed=command.seed)
    model = load_model(command.model, profile=command.profile)
    if command.samples is not None:
        with progress("Sampling") as advance:
            stats = record_samples(
                model, task, command.out, samples=command.samples, max_tokens=command.max_tokens,
                temperature=command.temperature, seed=command.seed,
                batch_size=command.batch_size, resume=command.resume, progress=advance,
            )  # fmt: skip
        err.print(f"{stats.n} questions sampled to {command.out}")
        return
    with progress("Recording") as advance:
        stats = record(
            model,
            task,
            command.out,
            stride=command.stride,
            max_tokens=command.max_tokens,
            temperature=command.temperature,
            probe_tokens=command.probe_tokens,
            batch_size=command.batch_size,
            store_text=command.store_text,
            seed=command.seed,
            resume=command.resume,
            progress=advance,
        )
    err.print(f"{stats.n} traces recorded to {command.out}")


def _import(command: Import) -> None:
    from rlbudget.interchange import import_jsonl

    with progress("Importing") as advance:
        stats = import_jsonl(command.file, command.out, skip_bad=command.skip_bad, progress=advance)
    bad = f", {stats.bad} bad lines left out" if stats.bad else ""
    err.print(f"{stats.n} traces imported to {command.out}{bad}")


def _train(command: Train) -> None:
    from rlbudget.training import train_on

    with progress("Training") as advance:
        result = train_on(
            command.traces,
            command.out,
            preset=command.preset,
            context=command.context,
            em_floor=command.em_floor,
            token_budget=command.token_budget,
            signals=command.signals,
            token_price=command.token_price,
            total_timesteps=command.total_timesteps,
            advantages=command.advantages,
            seed=command.seed,
            split_seed=command.split_seed,
            resume=command.resume,
            progress=advance,
        )
    err.print(f"Run written to {result.run_dir}; freeze it with: rlbudget freeze {result.run_dir}")


def _evaluate(command: Evaluate) -> None:
    from rlbudget.evaluate import evaluate_folder

    evaluate_folder(
        command.traces,
        policies=command.policy,
        out=command.out,
        seed=command.seed,
        draws=command.draws,
        write_cards=command.write_cards,
        learners=command.learners,
        folds=command.folds,
    )


def _calibrate(command: Calibrate) -> None:
    from rlbudget.calibrate import calibrate

    policy = calibrate(
        command.policy,
        command.traces,
        command.out,
        max_em_loss=command.max_em_loss,
        confidence=command.confidence,
        mode=command.mode,
        seed=command.seed,
        overwrite=command.overwrite,
    )
    found = policy.config["calibration"]
    what = "answers lost minus gained" if command.mode == "loss" else "answers lost"
    out.print(
        f"Certified on {found['questions']} questions: at token prices up to"
        f" {found['token_price']:.3g}, {what} are at most {found['max_em_loss']:.2%} of the"
        f" questions, with confidence {found['confidence']:g}.",
        soft_wrap=True,
    )
    out.print(
        f"There it saves {found['savings']:.1%} of all tokens and changes exact match by"
        f" {-100 * found['em_loss']:+.2f} points on the calibration questions.",
        soft_wrap=True,
    )
    err.print(f"Policy written to {command.out}")


def _decode(command: Decode) -> None:
    from rlbudget.decode import decode
    from rlbudget.models import load_model
    from rlbudget.policy import load_policy

    policy = load_policy(command.policy)
    ruled: StopPolicy = policy
    if command.rules is not None:
        from rlbudget.strategies.hybrid import Request, load_rules

        rules = load_rules(command.rules, {command.policy.name: policy})
        request = Request(command.question, command.task, _metadata(command.metadata))
        ruled = rules.for_request(request)
        for line in rules.explain(request):
            err.print(line, markup=False, soft_wrap=True)
    decoded = decode(
        load_model(command.model, profile=command.profile),
        command.question,
        ruled,
        token_price=_price(policy, command.token_price),
        seed=command.seed,
        temperature=command.temperature,
        max_tokens=command.max_tokens,
    )
    out.print(decoded.text, markup=False)
    out.print(f"\n[bold]Answer:[/bold] {decoded.answer}")
    where = f"at token {decoded.stopped_at}" if decoded.stopped else "at the natural end"
    out.print(
        f"Tokens: {decoded.total_tokens} = {decoded.thinking_tokens} thinking"
        f" + {decoded.probe_tokens} probe + {decoded.answer_tokens} answer."
        f" Stopped {where} ({decoded.reason})."
    )
    if decoded.message:
        err.print(f"rlbudget: {decoded.message}", markup=False, soft_wrap=True)


def _rules(command: RulesCheck | RulesExplain) -> None:
    from rlbudget.policy import load_policy
    from rlbudget.strategies.hybrid import Request, load_rules

    rules = load_rules(command.rules, {path.name: load_policy(path) for path in command.policy})
    if isinstance(command, RulesCheck):
        out.print(f"{command.rules}: {len(rules.rules)} rules, no mistake")
        return
    request = Request(command.question, command.task, _metadata(command.metadata))
    for line in rules.explain(request):
        out.print(line, markup=False, soft_wrap=True)


def _metadata(pairs: Sequence[str]) -> dict[str, str | float]:
    metadata: dict[str, str | float] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--metadata takes KEY=VALUE, not {pair!r}")
        try:
            metadata[key] = float(value)
        except ValueError:
            metadata[key] = value
    return metadata


def _retrain(command: Retrain) -> None:
    from rlbudget.strategies.registry import Registry
    from rlbudget.strategies.retrain import retrain

    with progress("Training") as advance:
        done = retrain(
            Registry(command.registry), command.traces, margin=command.margin,
            total_timesteps=command.total_timesteps, seed=command.seed, progress=advance,
        )  # fmt: skip
    out.print(f"version {done.version}, {done.contest}", markup=False, soft_wrap=True)
    out.print(f"{'promoted' if done.promoted else 'not promoted'}: {command.registry}")


def _registry(command: RegistryAdd | RegistryList | RegistryRollback) -> None:
    from rlbudget.policy import load_policy
    from rlbudget.strategies.registry import Registry

    registry = Registry(command.registry)
    if isinstance(command, RegistryAdd):
        version = registry.add(load_policy(command.policy), str(command.policy.name))
        if command.promote or registry.served() is None:
            registry.promote(version)
    elif isinstance(command, RegistryRollback):
        registry.rollback()
    for event in registry.history():
        why = f": {event.why}" if event.why else ""
        out.print(f"{event.time} {event.action} {event.version}{why}", markup=False, soft_wrap=True)
    out.print(f"served: {registry.served() or 'none'}")


def _price(policy: Policy, asked: float | None) -> float:
    """The price to decode at; a price above the certified one is served, but said to be."""
    certified = policy.config["calibration"] is not None
    if certified and asked is not None and asked > policy.default_price:
        err.print(
            f"rlbudget: token price {asked:g} is above the certified {policy.default_price:.3g}:"
            " the bound on lost answers does not cover it",
            soft_wrap=True,
        )
    return policy.default_price if asked is None else asked


if __name__ == "__main__":
    main()
