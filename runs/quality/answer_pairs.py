r"""Right and wrong answers to questions whose reference answer is known, made by rule.

    python -m runs.quality.answer_pairs [--data FOLDER] [--show 60]

``right(target)`` gives other ways to write the target, ``wrong(target, others)`` answers that look
like it and are not; both by kind, the same for the same target and seed. ``--show`` prints some of
each, drawn at random, to be read: a right one must be right, a wrong one wrong.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runs.common import ROOT
from runs.quality import answers_right, answers_wrong
from runs.quality.answer_envelopes import OF_FORMULA, OF_PROSE, Envelope
from runs.quality.answer_shapes import shape_of

DATA = ROOT.parent / "shared" / "data"
_ENVELOPES = 18
_IN_BOTH = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer, the reference answer it is scored against, and what is right."""

    kind: str
    target: str
    answer: str
    wanted: int
    """1 if the answer is right, else 0"""
    bare: bool
    """whether the answer is a formula alone: nothing but its spelling is then asked for"""


def right(target: str, *, seed: int = 0) -> list[Pair]:
    """Rewritings of a target: its formulas and words alone, in envelopes, and sentences."""
    rng, shape = random.Random(f"right {seed} {target}"), shape_of(target)
    formulas = {"the target itself": target, **answers_right.formulas(shape)}
    found = [Pair(kind, target, text, 1, bare=True) for kind, text in formulas.items()]
    everywhere = OF_FORMULA | OF_PROSE
    for name in rng.sample(list(everywhere), _ENVELOPES):
        found.append(Pair(f"in: {name}", target, everywhere[name](target), 1, bare=False))
    for name in rng.sample(list(everywhere), _IN_BOTH):
        kind, text = rng.choice(list(formulas.items()))
        found.append(Pair(f"{kind}, in an envelope", target, everywhere[name](text), 1, bare=False))
    for kind, text in answers_right.sayings(shape).items():
        found.append(Pair(kind, target, text, 1, bare=False))
        envelope = rng.choice(list(OF_PROSE.values()))
        found.append(Pair(f"{kind}, in an envelope", target, envelope(text), 1, bare=False))
    for kind, text in answers_right.sentences(shape).items():
        found.append(Pair(f"sentence: {kind}", target, text, 1, bare=False))
    return found


def wrong(target: str, others: Sequence[str], *, seed: int = 0) -> list[Pair]:
    """Answers that are not the target: each alone or, by chance, in an envelope.

    ``others`` are the targets of all questions; one that differs is an answer too.
    """
    rng, shape = random.Random(f"wrong {seed} {target}"), shape_of(target)
    formulas = answers_wrong.formulas(shape, others, rng)
    found = []
    for kind, text in formulas.items():
        bare = rng.random() < 0.4
        envelope = rng.choice(list((OF_FORMULA | OF_PROSE).values()))
        found.append(Pair(kind, target, text if bare else envelope(text), 0, bare=bare))
    alone_or_said: list[Envelope] = [str, *OF_PROSE.values()]
    for kind, text in answers_wrong.sayings(shape, rng).items():
        envelope = rng.choice(alone_or_said)
        found.append(Pair(kind, target, envelope(text), 0, bare=False))
    for kind, text in answers_wrong.sentences(shape).items():
        found.append(Pair(f"sentence: {kind}", target, text, 0, bare=False))
    other = formulas.get("another question's answer", formulas.get("first number +1", ""))
    if other:
        for kind, text in answers_wrong.mentions(shape, other).items():
            found.append(Pair(f"mention: {kind}", target, text, 0, bare=False))
    return found


def all_pairs(targets: Sequence[str], *, seed: int = 0) -> list[Pair]:
    """Both sets of all targets, each pair once."""
    distinct = list(dict.fromkeys(targets))
    pairs = [pair for target in targets for pair in _both(target, distinct, seed)]
    return list(dict.fromkeys(pairs))


def _both(target: str, others: Sequence[str], seed: int) -> Iterator[Pair]:
    yield from right(target, seed=seed)
    yield from wrong(target, others, seed=seed)


def read_targets(folder: Path) -> list[str]:
    """The reference answers of MATH-500, in the file's order."""
    lines = (folder / "math500" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["answer"] for line in lines if line.strip()]


def main() -> None:
    """Print how many there are, and some to read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with math500/test.jsonl")
    parser.add_argument("--show", type=int, default=60, help="pairs of each set to print")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs that are shown")
    args = parser.parse_args()
    pairs = all_pairs(read_targets(args.data))
    for wanted, name in ((1, "right"), (0, "wrong")):
        these = [pair for pair in pairs if pair.wanted == wanted]
        print(f"{name}: {len(these)} pairs of {len({p.kind for p in these})} kinds")
        for pair in random.Random(args.seed).sample(these, min(args.show, len(these))):
            print(f"  {pair.target!r:36} {pair.answer[-150:]!r}  [{pair.kind}]")


if __name__ == "__main__":
    main()
