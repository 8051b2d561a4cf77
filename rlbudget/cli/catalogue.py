"""The subcommands in their groups, and the help of the whole command: plain text of 80 columns."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Entry:
    """One subcommand."""

    name: str
    """what is typed, one word or two"""
    module: str
    """in ``rlbudget.cli``; imported when the command is run or its help is asked for"""
    line: str
    """what it does"""
    options: str
    """of an example that parses"""

    @property
    def arguments(self) -> str:
        """The dataclass of its arguments in its module, whose ``execute`` runs it."""
        return self.name.title().replace(" ", "")

    @property
    def example(self) -> str:
        """A command line that parses, without the leading ``rlbudget``."""
        return f"{self.name} {self.options}"


GROUPS: dict[str, tuple[Entry, ...]] = {
    "Make traces": (
        Entry("quickstart", "quickstart", "every step on the embedded model, in minutes",
              "--out quickstart"),
        Entry("record", "recording", "full decodes of a model, with the answer of every stop",
              "--model MODEL --task questions.jsonl --out traces"),
        Entry("annotate", "annotating", "traces of thinking that your logs already hold",
              "requests.jsonl --model MODEL --out traces"),
        Entry("import", "recording", "traces of any model from a JSONL file",
              "traces.jsonl --out traces"),
        Entry("traces merge", "store", "folders of traces as one, each trace once",
              "shards --out traces"),
        Entry("traces stat", "store", "what a folder of traces holds and what is odd about it",
              "traces"),
        Entry("traces validate", "store", "read all of it and check every trace",
              "traces"),
        Entry("score", "scoring", "score a file of answers, or recorded traces again",
              "answers.jsonl --scorer math"),
    ),
    "Learn": (
        Entry("train", "learning", "train a stopping policy with PPO on traces",
              "traces --out run"),
        Entry("freeze", "learning", "turn a run's best weights into a policy folder",
              "run --out policy"),
        Entry("evaluate", "learning", "compare rules and policies on held-out questions",
              "traces --policy policy --out evaluation"),
        Entry("calibrate", "learning", "certify the price that keeps a bound on lost answers",
              "policy new-traces --out certified"),
    ),
    "Strategies over a policy": (
        Entry("impact", "steering", "fit the risk that a stop loses the answer (a guard)",
              "policy traces --out guard.safetensors"),
        Entry("predict", "steering", "fit how likely a stop's answer is right (a steered price)",
              "policy traces --out predictor.safetensors"),
        Entry("blend", "steering", "fit how much each policy of an ensemble counts",
              "policy-a policy-b traces --out blend.json"),
        Entry("cascade", "cascades", "train a small model to hand over to a large one",
              "small large --ratio 0.1 --out cascade.safetensors"),
        Entry("choose", "choosing", "learn whose answer to use among several models",
              "small large --ratio 0.1 --ratio 1 --out chooser"),
        Entry("correct", "steering", "learn which early exits to take back",
              "policy traces --out correction.safetensors"),
        Entry("rules check", "rules", "check a file of hybrid rules",
              "rules.toml --policy policy"),
        Entry("rules explain", "rules", "say what the rules do to a question",
              'rules.toml "What is 2 + 3?" --policy policy'),
    ),
    "Serve": (
        Entry("decode", "serving", "answer one question live under a policy or a plan",
              '--model MODEL --policy policy "What is 2 + 3?"'),
        Entry("serve", "gateway", "an OpenAI-compatible endpoint that stops in time",
              "--policy policy --upstream http://127.0.0.1:8000/v1"),
        Entry("plan check", "serving", "say what a plan does and what an engine cannot give",
              "plan.toml --engine vllm"),
    ),
    "The loop": (
        Entry("feedback", "loop", "tell a decision log whether an answer was right",
              "log --request-id 5f3a --right"),
        Entry("stream", "loop", "what each policy of a log saves and loses",
              "log"),
        Entry("experiment start", "experimenting", "draw an arm for each request of a gateway",
              "s.db --name a --arm now --arm b:token_price=2e-3"),
        Entry("experiment status", "experimenting", "each arm beside the control, with intervals",
              "rlbudget.sqlite3"),
        Entry("experiment stop", "experimenting", "stop an arm, or the experiment",
              "rlbudget.sqlite3 --arm dear"),
        Entry("experiment promote", "experimenting", "serve an arm to everybody",
              "rlbudget.sqlite3 --arm dear"),
        Entry("store export", "store", "turn audited requests of a gateway's store into traces",
              "rlbudget.sqlite3 --out new-traces"),
        Entry("store prune", "store", "delete what is older than a number of days",
              "rlbudget.sqlite3 --days 90"),
        Entry("harvest", "loop", "turn audited requests of a log into traces",
              "log --out new-traces"),
        Entry("retrain", "loop", "train the served policy further; promote the better",
              "registry new-traces"),
        Entry("rolling", "loop", "harvest, evaluate, retrain and propose, on a schedule",
              "log registry --out new-traces --rounds 1"),
        Entry("registry promote", "loop", "serve a version, such as one that was proposed",
              "registry 2"),
        Entry("registry add", "loop", "keep a policy as the next version",
              "registry policy"),
        Entry("registry list", "loop", "what is served and what happened",
              "registry"),
        Entry("registry rollback", "loop", "serve again what was served before",
              "registry"),
    ),
}  # fmt: skip
"""The groups of the help, in the order of the way from a model to production."""

ENTRIES = {entry.name: entry for group in GROUPS.values() for entry in group}
"""name -> subcommand"""

_HEAD = """usage: rlbudget COMMAND [OPTIONS]

Learn when a reasoning model may stop thinking."""

_FOOT = """FOLDER and FILE are paths, N is a whole number, X a number, SHARE one from 0 to
1. Lengths, strides and budgets are in tokens. PRICE is a token price: the exact
match that a token costs (2e-4: a right answer is worth 5,000 tokens).

  rlbudget COMMAND --help  the options of a command, with their units
  rlbudget --version       the version"""


def top_help(under: str = "") -> str:
    """Every subcommand in its group, or those whose name begins with the word ``under``."""
    parts = [_HEAD]
    for title, group in GROUPS.items():
        shown = [
            f"  {entry.name:<18} {entry.line}\n      rlbudget {entry.example}"
            for entry in group
            if entry.name.startswith(under)
        ]
        if shown:
            parts.append("\n".join([f"{title}:", *shown]))
    return "\n\n".join([*parts, _FOOT])


def unknown(typed: str) -> str:
    """What to say of a command that is none, with the nearest one where there is one near."""
    near = get_close_matches(typed, [*ENTRIES, *groups()], n=1)
    meant = f"did you mean {near[0]}?" if near else "see rlbudget --help"
    return f"no command {typed!r}; {meant}"


def groups() -> dict[str, list[str]]:
    """The first word of the commands of two words -> the second words."""
    found: dict[str, list[str]] = {}
    for name in ENTRIES:
        first, _, second = name.partition(" ")
        if second:
            found.setdefault(first, []).append(second)
    return found
