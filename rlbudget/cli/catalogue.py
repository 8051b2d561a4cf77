"""The subcommands in their groups: where each is, what it does in a line, and an example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One subcommand. ``name`` is what is typed, of one word or two."""

    name: str
    module: str
    """in ``rlbudget.cli``; imported when the command is run or its help is asked for"""
    arguments: str
    """the dataclass of its arguments in that module, whose ``execute`` runs it"""
    line: str
    example: str
    """a command line that parses, without the leading ``rlbudget``"""


GROUPS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    (
        "Make traces",
        (
            Entry("quickstart", "quickstart", "Quickstart",
                  "the whole way on the embedded model, in minutes",
                  "quickstart --out quickstart"),
            Entry("record", "recording", "Record",
                  "full decodes of a model, with the answer of every stop",
                  "record --model MODEL --task questions.jsonl --out traces"),
            Entry("import", "recording", "Import",
                  "traces of any model from a JSONL file",
                  "import traces.jsonl --out traces"),
            Entry("score", "scoring", "Score",
                  "score a file of answers, or recorded traces anew",
                  "score answers.jsonl --scorer math"),
        ),
    ),
    (
        "Learn",
        (
            Entry("train", "learning", "Train",
                  "train a stopping policy with PPO on traces",
                  "train traces --out run"),
            Entry("freeze", "learning", "Freeze",
                  "turn a run's best weights into a policy folder",
                  "freeze run --out policy"),
            Entry("evaluate", "learning", "Evaluate",
                  "compare rules and policies on held-out questions",
                  "evaluate traces --policy policy --out evaluation"),
            Entry("calibrate", "learning", "Calibrate",
                  "certify the price that keeps a bound on lost answers",
                  "calibrate policy new-traces --out certified"),
        ),
    ),
    (
        "Strategies over a policy",
        (
            Entry("impact", "steering", "Impact",
                  "fit the risk that a stop loses the answer (a guard)",
                  "impact policy traces --out guard.safetensors"),
            Entry("blend", "steering", "Blend",
                  "fit how much each policy of an ensemble counts",
                  "blend policy-a policy-b traces --out blend.json"),
            Entry("cascade", "cascades", "TrainCascade",
                  "train a small model to hand over to a large one",
                  "cascade small large --ratio 0.1 --out cascade.safetensors"),
            Entry("correct", "correcting", "Correct",
                  "learn which early exits to take back",
                  "correct policy traces --out correction.safetensors"),
            Entry("rules check", "rules", "RulesCheck",
                  "check a file of hybrid rules",
                  "rules check rules.toml --policy policy"),
            Entry("rules explain", "rules", "RulesExplain",
                  "say what the rules do to a question",
                  'rules explain rules.toml "What is 2 + 3?" --policy policy'),
        ),
    ),
    (
        "Serve",
        (
            Entry("decode", "serving", "Decode",
                  "answer one question live under a policy",
                  'decode --model MODEL --policy policy "What is 2 + 3?"'),
        ),
    ),
    (
        "The loop",
        (
            Entry("feedback", "loop", "Feedback",
                  "tell a decision log whether an answer was right",
                  "feedback log --request-id 5f3a --right"),
            Entry("stream", "loop", "Stream",
                  "what each policy of a log saves and loses",
                  "stream log"),
            Entry("harvest", "loop", "Harvest",
                  "turn audited requests of a log into traces",
                  "harvest log --out new-traces"),
            Entry("retrain", "loop", "Retrain",
                  "train on from what is served; promote the better",
                  "retrain registry new-traces"),
            Entry("registry add", "loop", "RegistryAdd",
                  "keep a policy as the next version",
                  "registry add registry policy"),
            Entry("registry list", "loop", "RegistryList",
                  "what is served and what happened",
                  "registry list registry"),
            Entry("registry rollback", "loop", "RegistryRollback",
                  "serve again what was served before",
                  "registry rollback registry"),
        ),
    ),
)  # fmt: skip
"""The groups of the help, in the order of the way from a model to production."""

ENTRIES = {entry.name: entry for _, group in GROUPS for entry in group}
"""name -> subcommand"""
