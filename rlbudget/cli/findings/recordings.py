"""What a recording or an import brought, and what is odd about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlbudget.cli.findings.finding import odd, some
from rlbudget.cli.findings.survey import Survey
from rlbudget.traces.agreement import FIELD, FULL_DECODE, SAID

if TYPE_CHECKING:
    from rlbudget.decoding.annotate import AnnotateStats
    from rlbudget.decoding.record import RecordStats

FEW_QUESTIONS = 500
"""below this a third of them, held out, tells no two methods apart"""
ENOUGH_QUESTIONS = 1700
"""of which 500 are held out"""
MOSTLY = 0.5
CLUMP = 0.1
"""share of decodes of exactly the greatest length that points to a cap"""
DEAR = 0.25
"""share of exits that cost more than the full decode"""
FAMILIES = range(2, 13)
"""numbers of families that are listed"""
FEW_OF_A_FAMILY = 5


def of_recording(survey: Survey, spent: RecordStats | None = None) -> Iterator[str]:
    """The facts of a folder of traces, then what is odd. ``spent`` is unknown after an import."""
    yield from _facts(survey)
    if spent is not None:
        yield _cost(spent)
    if survey.setting(FIELD) == FULL_DECODE:
        yield SAID
    else:
        yield from _about_answers(survey)
    yield from _about_ends(survey)
    if not survey.samples:
        yield from _about_exits(survey)
        yield from _about_signals(survey)
    yield from _about_settings(survey)
    n = survey.questions
    if n < FEW_QUESTIONS:
        yield odd(
            f"{some(n, 'question')} {'is' if n == 1 else 'are'} few: {round(0.3 * n)} would be held"
            " out",
            do=f"take {ENOUGH_QUESTIONS:,} to hold out 500, which tells apart policies that"
            " differ by two points",
        )


def of_annotation(survey: Survey, spent: AnnotateStats) -> Iterator[str]:
    """The same of traces of a log, with the rows that were left out."""
    if spent.left_out.n:
        yield f"rows left out: {spent.left_out}"
    yield (
        f"read {spent.tokens:,} logged tokens and wrote {spent.exit_tokens:,} of exit answers in"
        f" {spent.seconds:,.1f} s"
    )
    yield from of_recording(survey)


def _facts(survey: Survey) -> Iterator[str]:
    n = survey.traces
    decodes = "orders of samples" if survey.samples else "full decodes"
    yield (
        f"{some(survey.questions, 'question')}, {n:,} {decodes}: exact match"
        f" {survey.exact_match:.1%}, {survey.tokens:,.1f} tokens each"
        f" ({survey.thinking / n:,.1f} thinking, {survey.answering / n:,.1f} answer)"
    )
    if survey.samples:
        return
    if survey.told:
        cap = survey.setting("max_tokens")
        of = f" of {cap} tokens" if cap else ""
        yield f"{survey.capped / survey.told:.1%} were cut at the cap{of}"
    if survey.checkpoints:
        stride = survey.setting("stride")
        every = f", one every {stride} tokens" if stride else ""
        yield (
            f"{survey.checkpoints / n:,.1f} checkpoints a decode{every}; an exit there is right"
            f" {survey.exits_right / survey.checkpoints:.1%} of the time and its answer takes"
            f" {survey.exit_tokens / survey.checkpoints:,.1f} tokens"
        )
    if len(survey.families) in FAMILIES:
        each = ", ".join(f"{name} {right / n:.1%}" for name, (n, right) in survey.families.items())
        yield f"exact match by family: {each}"


def _cost(spent: RecordStats) -> str:
    if not spent.n:
        return "nothing was left to record"
    whole = spent.tokens + spent.exit_tokens
    return (
        f"spent {spent.tokens:,} tokens on full decodes and {spent.exit_tokens:,} on exit answers"
        f" in {spent.seconds:,.1f} s ({whole / max(spent.seconds, 1e-9):,.0f} a second)"
    )


def _about_answers(survey: Survey) -> Iterator[str]:
    scorer = survey.setting("scorer")
    with_ = f" by the scorer {scorer}" if scorer else ""
    if survey.right == 0:
        yield odd(
            f"every full decode is scored wrong{with_}",
            do="compare answers and targets; if they agree to your eye choose another scorer, if"
            " not another profile or easier questions. A policy learns nothing from this",
        )
    elif survey.right == survey.traces:
        yield odd(
            f"every full decode is scored right{with_}",
            do="look whether wrong answers could be; if the questions are just easy add harder"
            " ones, since how much may be lost cannot be learned from these",
        )
    else:
        wrong = [
            name for name, (n, right) in survey.families.items()
            if n >= FEW_OF_A_FAMILY and not right
        ]  # fmt: skip
        if wrong:
            yield odd(
                f"every answer is scored wrong in {_listed(wrong)}",
                do="compare answers and targets of these; leave them out if the model cannot"
                " solve them",
            )


def _about_ends(survey: Survey) -> Iterator[str]:
    cap = survey.setting("max_tokens") or str(survey.longest)
    higher = "record with a higher --max-tokens, or with the profile by whose text the model ends"
    if survey.told and survey.capped == survey.told:
        yield odd(
            f"no decode ended by itself, all were cut at the cap of {cap} tokens",
            do=f"{higher}: nothing here shows what a full decode gives",
        )
    elif survey.told and survey.capped > MOSTLY * survey.told:
        yield odd(
            f"{survey.capped / survey.told:.0%} of the decodes were cut at the cap of {cap} tokens",
            do=f"{higher}: what they are compared with is no natural end",
        )
    elif (
        not survey.told and not survey.samples
        and survey.at_longest > max(1, CLUMP * survey.traces)
    ):  # fmt: skip
        yield odd(
            f"{survey.at_longest / survey.traces:.0%} of the decodes end at exactly"
            f" {survey.longest} thinking tokens, and none says whether it ended by itself",
            do='they were probably cut there: write "natural": true or false into meta, and'
            " decode with a higher cap",
        )


def _about_exits(survey: Survey) -> Iterator[str]:
    stride = survey.setting("stride")
    every = f" (one every {stride} tokens)" if stride else ""
    if survey.bare > MOSTLY * survey.traces:
        yield odd(
            f"{survey.bare:,} of {survey.traces:,} decodes end before their first"
            f" checkpoint{every}",
            do="take a smaller stride, a quarter of the mean thinking of"
            f" {survey.thinking / survey.traces:,.1f} tokens or less: where there is no"
            " checkpoint there is nothing to decide",
        )
    if not survey.checkpoints:
        return
    if not survey.exits_right and survey.right:
        yield odd(
            "no exit is scored right, though full decodes are",
            do="read some exit answers: the exit text does not make this model answer. Choose"
            " another --profile",
        )
    if survey.exits_right == survey.checkpoints:
        yield odd(
            "every exit is scored right, the very first ones too",
            do="there is nothing to learn: a small constant budget does. Look whether a wrong"
            " answer could be scored right, or take harder questions",
        )
    yield from _about_exit_answers(survey)


def _about_exit_answers(survey: Survey) -> Iterator[str]:
    mean, thinking = survey.exit_tokens / survey.checkpoints, survey.thinking / survey.traces
    do = (
        "the model reasons on in its answer: choose a --profile whose exit text asks for the"
        " answer alone, or answers of fewer tokens"
    )
    if mean > thinking:
        yield odd(
            f"an exit's answer takes {mean:,.1f} tokens, more than the thinking of a full decode"
            f" ({thinking:,.1f})",
            do=do,
        )
    elif survey.dear_exits > DEAR * survey.checkpoints:
        yield odd(
            f"{survey.dear_exits / survey.checkpoints:.0%} of the exits cost more tokens than"
            " the full decode",
            do=do,
        )


def _about_signals(survey: Survey) -> Iterator[str]:
    if not survey.checkpoints:
        return
    if not survey.seen:
        yield odd(
            "the checkpoints hold no signal",
            do="write the numbers that your server gives into signals (docs/traces.md): without"
            " them a policy sees the number of tokens alone",
        )
    several = survey.checkpoints > 1
    constant = [name for name, (low, high) in survey.ranges.items() if several and low == high]
    if constant:
        yield odd(
            f"the same value at every checkpoint: {_listed(constant)}",
            do="a constant tells a policy nothing; mend what writes it, or leave it out",
        )
    partial = [name for name, n in survey.seen.items() if n < survey.checkpoints]
    if partial:
        yield odd(
            f"missing at some checkpoints: {_listed(partial)}",
            do="a policy refuses a checkpoint without a signal it was trained on; write it"
            " everywhere, or leave it out",
        )
    if survey.probes < survey.checkpoints:
        share = f"only {survey.probes / survey.checkpoints:.0%} of the checkpoints hold a"
        what = f"{share} trial answer" if survey.probes else "no checkpoint holds a trial answer"
        yield odd(
            what,
            do="the presets probe and turns, and the rules that count answers, cannot be"
            " used; record with --probe-tokens 8, or import a probe at every checkpoint",
        )


def _about_settings(survey: Survey) -> Iterator[str]:
    for name, values in survey.settings.items():
        if len(values) > 1 and name != "probe_tokens":
            yield odd(
                f"the traces were made with several values of {name}"
                f" ({_listed([value for value, _ in values.most_common()])})",
                do="a policy serves one: keep a folder for each",
            )


def _listed(names: list[str]) -> str:
    """The first few names."""
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
