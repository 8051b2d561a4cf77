"""From traces to a policy: train, freeze, evaluate, calibrate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import tyro

from rlbudget.agents.config import MEMBERS
from rlbudget.agents.freeze import freeze, policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.cli.arguments import (
    Files,
    Flag,
    Folder,
    Folders,
    N,
    OptionalMoney,
    OptionalN,
    OptionalName,
    OptionalNumber,
    OptionalShare,
    PriceRange,
    Share,
    ThePolicy,
    TheTraces,
)
from rlbudget.cli.findings.finding import report
from rlbudget.cli.findings.learning import (
    efforts_table,
    of_certificate,
    of_evaluation,
    of_freezing,
    of_points,
)
from rlbudget.cli.findings.training import next_steps, of_training, training_tables
from rlbudget.console import note, progress, show, tell
from rlbudget.errors import UserError
from rlbudget.evaluate.calibrate import calibrate
from rlbudget.evaluate.folder import evaluate_folder
from rlbudget.policy.observation import Preset
from rlbudget.strategies.plan import Plans, load_plan


@dataclass(frozen=True)
class Train:
    """Train a PPO stopping policy on recorded traces."""

    traces: TheTraces
    """Folder of the traces."""
    out: Folder
    """Run folder: TensorBoard events, the best weights, run.json."""
    preset: Preset = "free"
    """free: no extra token; turns: a trial answer, charged, at turns of thought ("wait"); probe: at
    every checkpoint."""
    context: Flag = False
    """Add the question to the observation: its length, numbers and clauses."""
    choices: Flag = False
    """Let probe and turns see how the model chooses among answer options, charged; a decode is then
    given them (--option), which servers and engines cannot read."""
    exits: Flag = False
    """Let probe and turns see the entropy of the exit's first token, a token more each time, and
    how sure the trial answer's tokens after the first are."""
    repeats: Flag = False
    """Let the policy see how much of the thinking was written before, token for token: free."""
    tasks: Flag = False
    """Tell the policy the request's task as well (`decode --task`; of traces, their family)."""
    em_floor: OptionalShare = None
    """Least exact match, such as 0.9: training looks for the price that spends fewest tokens."""
    token_budget: OptionalNumber = None
    """Most tokens a question, all counted: training looks for the price in the same way."""
    signals: Literal["all", "top", "text"] = "all"
    """top: only those that top-20 log-probabilities give, for OpenAI-compatible servers; text: only
    those of the text, for servers that give none (chosen where the traces hold no others)."""
    token_price: PriceRange = None
    """Range of prices to learn, reward per token; by default from the traces' lengths."""
    total_timesteps: OptionalN = None
    """Checkpoints to train on, of each member; by default the agent's."""
    advantages: Literal["exact", "sampled"] = "exact"
    """exact: computed from the record, at every checkpoint; sampled: plain PPO."""
    members: N = MEMBERS
    """Members of each kind in the cross-fitted ensemble that is trained; 1: a single policy, chosen
    on the validation questions, as --em-floor and --token-budget train anyway."""
    seed: N = 0
    """Seed of the training."""
    split_seed: N = 0
    """Seed of the split into training, validation and held-out questions."""
    resume: Flag = False
    """Continue from the run folder's latest snapshot."""

    def execute(self) -> None:
        """Run it."""
        with progress("Training") as advance:
            result = train_on(
                self.traces,
                self.out,
                preset=self.preset,
                context=self.context,
                tasks=self.tasks,
                choices=self.choices,
                exits=self.exits,
                repeats=self.repeats,
                em_floor=self.em_floor,
                token_budget=self.token_budget,
                signals=self.signals,
                token_price=self.token_price,
                total_timesteps=self.total_timesteps,
                advantages=self.advantages,
                members=self.members,
                seed=self.seed,
                split_seed=self.split_seed,
                resume=self.resume,
                progress=advance,
            )
        note(f"Run written to {result.run_dir}")
        config = policy_of_run(result.run_dir).config
        for heading, table in training_tables(config):
            tell(heading)
            show(table)
            tell("")
        report(of_training(config))
        for line in next_steps(config, result.run_dir):
            tell(line)


@dataclass(frozen=True)
class Freeze:
    """Turn a run's best weights into a policy folder, and find what each effort means."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """Run folder of `rlbudget train`."""
    out: Folder
    """Policy folder."""
    overwrite: Flag = False
    """Replace a policy that is already there."""
    standalone: Flag = False
    """Add policy.py, a module that serves the folder with numpy alone, without rlbudget."""
    rule: OptionalName = None
    """Freeze this rule in place of the policy (deer, confidence, fixed, ...: any that evaluate
    lists), as it was tuned on the run's training questions."""
    unfinished: Flag = False
    """Take the best policy of a training that was interrupted; its card says so."""

    def execute(self) -> None:
        """Run it."""
        policy = freeze(
            self.run,
            self.out,
            overwrite=self.overwrite,
            standalone=self.standalone,
            unfinished=self.unfinished,
            rule=self.rule,
        )
        note(f"Policy written to {self.out}")
        what, *odd = of_freezing(policy.config)
        note(what)
        if policy.operating_points:
            show(efforts_table(policy.operating_points))
        report(odd)
        folder = quote(str(self.out))
        tell(f"Next: rlbudget evaluate TRACES --policy {folder} --out EVALUATION")


@dataclass(frozen=True)
class Evaluate:
    """Measure every rule and policy on the same held-out questions, all tokens counted."""

    traces: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TRACES ...")]
    """Folders of traces, the oldest first."""
    out: Folder
    """Folder for report.html, table.txt, evaluation.json and the frontier figure."""
    policy: Folders = ()
    """A policy folder to measure beside the rules."""
    seed: N = 0
    """Seed of the split, where no policy fixes it, and of the bootstrap."""
    draws: N = 2000
    """Bootstrap draws."""
    folds: N = 1
    """Cross-validate by question: policies are trained anew in each of so many folds. A question
    keeps its fold as traces arrive."""
    last: OptionalN = None
    """With folds: measure on so many of the latest traces only."""
    as_they_are: Flag = False
    """With folds: measure the given policies, train none; for traces they have not seen."""
    learners: Flag = False
    """Also fit the learners PPO is compared with: logistic head, fitted-Q, exact gradient."""
    write_cards: Flag = False
    """Put each policy's measured rows into the README.md of its folder."""
    plan: Files = ()
    """A plan (TOML) to measure: its policies, and each part that stands over them."""
    price_per_million: OptionalMoney = None
    """Money for a million output tokens, such as 0.60 or $0.60: the report then says what is saved
    on 1,000 questions."""
    tokens_per_second: OptionalNumber = None
    """Output tokens of one answer in a second: the report then says how much sooner it is there."""

    def execute(self) -> None:
        """Run it."""
        if not self.traces:
            raise UserError("evaluate needs a folder of traces")
        plans = Plans(tuple(load_plan(file) for file in self.plan))
        for line in plans.unmeasured:
            note(line)
        evaluation = evaluate_folder(
            self.traces,
            policies=[*self.policy, *(f for f in plans.folders if f not in self.policy)],
            out=self.out,
            seed=self.seed,
            draws=self.draws,
            write_cards=self.write_cards,
            learners=self.learners,
            folds=self.folds,
            strategy=plans if plans.plans else None,
            last=self.last,
            as_they_are=self.as_they_are,
            price_per_million=self.price_per_million,
            tokens_per_second=self.tokens_per_second,
        )
        report(of_evaluation(evaluation))


@dataclass(frozen=True)
class Calibrate:
    """Certify the highest price at which a policy keeps a bound on lost answers."""

    policy: ThePolicy
    """Policy folder."""
    traces: TheTraces
    """Folder of traces; questions that the policy or its ancestors have seen are left out."""
    out: Folder
    """Policy folder with the certificate."""
    max_em_loss: Share = 0.01
    """Exact match that may be lost, as a share of all questions."""
    confidence: Share = 0.9
    """Chance, over the calibration questions, that the bound holds."""
    mode: Literal["loss", "harm"] = "loss"
    """loss: answers lost minus answers gained; harm: answers lost, stricter."""
    overwrite: Flag = False
    """Replace a policy that is already there."""

    def execute(self) -> None:
        """Run it."""
        policy = calibrate(
            self.policy,
            self.traces,
            self.out,
            max_em_loss=self.max_em_loss,
            confidence=self.confidence,
            mode=self.mode,
            overwrite=self.overwrite,
        )
        found = policy.config["calibration"]
        left_out = found["left_out"]
        tell(
            f"{left_out} questions that the policy or its ancestors have seen are left out;"
            f" {found['questions']} are left."
        )
        what = "answers lost minus gained" if self.mode == "loss" else "answers lost"
        tell(
            f"Certified on {found['questions']} questions: at token prices up to"
            f" {found['token_price']:.3g}, {what} are at most {found['max_em_loss']:.2%} of the"
            f" questions, with confidence {found['confidence']:g}."
        )
        tell(
            f"There it saves {found['savings']:.1%} of all tokens and changes exact match by"
            f" {-100 * found['em_loss']:+.2f} points on the calibration questions."
        )
        report(of_certificate(found, policy.price_range))
        show(efforts_table(policy.operating_points))
        report(of_points(policy.operating_points))
        note(f"Policy written to {self.out}")
