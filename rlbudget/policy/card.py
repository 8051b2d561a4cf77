"""The model card of a policy folder: what it is, how to call it, what it was measured to do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.files import write_text
from rlbudget.policy import network
from rlbudget.policy.prices import middle_price
from rlbudget.signals.tokens import PAID_SIGNALS
from rlbudget.traces.agreement import SAID, agrees

_COLUMNS = (
    ("relative price", "relative_price", "g"),
    ("token price", "token_price", ".3g"),
    ("exact match", "exact_match", ".3f"),
    ("95% interval of its change", "exact_match_delta_ci95", "+.3f"),
    ("tokens", "tokens", ".1f"),
    ("of the full decode", "token_fraction", ".0%"),
    ("utility", "utility", ".4f"),
    ("oracle gap closed", "oracle_gap_closed", ".3f"),
)


def write_card(folder: str | Path, evaluation: Mapping[str, Any], *, method: str) -> None:
    """Rewrite the card of a policy folder with the rows of ``method`` in an evaluation.

    ``evaluation`` is what ``evaluation.json`` holds. The folder's digests do not cover the
    card. Raises ``UserError`` if the folder is no policy or the evaluation lacks the method.
    """
    folder = Path(folder)
    try:
        config = dict(network.load(folder).config)
    except ValueError as error:
        raise UserError(str(error)) from None
    if all(row["method"] != method for row in evaluation["results"]):
        known = ", ".join(sorted({row["method"] for row in evaluation["results"]}))
        raise UserError(f"the evaluation has no method {method!r}; it has: {known}")
    write_text(folder / "README.md", model_card(config, evaluation, method=method))


def _of_rule(rule: str, config: Mapping[str, Any]) -> str:
    """What a frozen rule is, and what it pays for."""
    looked = {feature.partition(".")[0] for feature in config["features"]}
    pays = config["preset"] != "free" or looked & set(PAID_SIGNALS)
    return (
        f"It is the rule `{rule}`, tuned to each price on the training questions, as a policy."
        + (" It looks aside where the rule does, and the tokens of that are charged." if pays
           else " It needs nothing but numbers that are free while decoding.")
    )  # fmt: skip


def model_card(
    config: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None = None,
    *,
    method: str = "",
) -> str:
    """The card as Markdown; without an evaluation its table is that of the validation."""
    trained = config["trained"]
    low, high = config["price_range"]
    hidden = " and ".join(str(n) for n in config["layers"][1:-1]) or "no"
    probes = {
        "free": "It needs nothing but numbers that are free while decoding.",
        "probe": "It looks at a trial answer at every checkpoint, whose tokens are charged.",
        "turns": 'It looks at a trial answer at every turn of thought (a word like "wait"), whose'
        " tokens are charged.",
    }[config["preset"]]
    if trained.get("rule"):
        probes = _of_rule(str(trained["rule"]), config)
    return f"""---
library_name: rlbudget
tags: [early-exit, reasoning, token-budget]
---
# A stopping policy

It says at every checkpoint of a reasoning model's decode whether to stop thinking and answer.
{probes} It is a network with {hidden} hidden units on {len(config["features"])} features
(preset `{config["preset"]}`, observation version {config["observation_version"]}) and on the
token price, the reward lost per token, anywhere from {low:g} to {high:g}: the higher the price,
the earlier it stops. It stops where its chance to stop is above {config["threshold"]:g}.

## Use

```python
import rlbudget

policy = rlbudget.load_policy("this folder")
decision = policy(observation, token_price={middle_price(config["price_range"]):.2g})
decision.stop, decision.stop_probability
```

{_alone(config)}
An observation is float32, in the order of `features` in `config.json`. What the policy was not
trained on it refuses: another length, NaN, a price outside the range.

## Measured

{_measured(trained, evaluation, method)}

## Efforts

{_efforts(config.get("operating_points"))}

## Certified

{_certified(config.get("calibration"))}

## Made from

{_unfinished(trained)}{_facts(trained)}
It knows the model, the task and the settings of those traces; on others, evaluate it before it
decides anything.
"""


def _unfinished(trained: Mapping[str, Any]) -> str:
    how_far = trained.get("unfinished")
    return f"**A training that did not come to its end** ({how_far}).\n\n" if how_far else ""


def _alone(config: Mapping[str, Any]) -> str:
    if network.CODE not in config.get("digests", {}):
        return "`rlbudget freeze --standalone` adds a module that does this with numpy alone."
    return f"""With numpy alone, from inside the folder: `from policy import decide`, then
`decide(observation, token_price={middle_price(config["price_range"]):.2g})`."""


def _efforts(points: Mapping[str, Mapping[str, Any]] | None) -> str:
    if not points:
        return "None: a price is dialled itself. `rlbudget freeze` of a finished run finds them."
    rows = [{"effort": effort, **point} for effort, point in points.items()]
    head = ("effort", "may lose", "token price", "lost", "saved", "questions", "certified")
    lines = [_line(head), _line("---:" for _ in head)]
    for row in rows:
        price = f"{row['token_price']:.3g}" if row["token_price"] else "never stops"
        certified = "yes" if row["certified"] else "no"
        lines.append(_line((
            row["effort"], f"{row['max_em_loss']:.1%}", price, f"{row['em_loss']:.1%}",
            f"{row['savings']:.0%}", str(row["questions"]), certified,
        )))  # fmt: skip
    table = "\n".join(lines)
    return (
        "What an effort means, by exact match that may be lost and by what was lost and saved on"
        " the questions that chose its price: those of the validation, or of the calibration where"
        f" there was one. `none` exits before the first thought.\n\n{table}"
    )


def _certified(certificate: Mapping[str, Any] | None) -> str:
    if not certificate:
        return "Nothing: `rlbudget calibrate` certifies a bound on lost answers."
    what = "answers lost minus answers gained" if certificate["mode"] == "loss" else "answers lost"
    return (
        f"At token prices up to {certificate['token_price']:.3g}, {what} are at most"
        f" {certificate['max_em_loss']:.2%} of the questions, with confidence"
        f" {certificate['confidence']:g} over the draw of the {certificate['questions']}"
        " calibration questions, for questions and decodes of the same kind."
        f"{_meaning(certificate)}"
    )


def _meaning(said: Mapping[str, Any] | None) -> str:
    """What exact match is, where it is not what one takes it for."""
    return f" {SAID}" if agrees(said) else ""


def _measured(trained: Mapping[str, Any], evaluation: Mapping[str, Any] | None, method: str) -> str:
    if evaluation is not None:
        full = evaluation["full"]
        rows = [row for row in evaluation["results"] if row["method"] == method]
        return (
            f"On {evaluation['held_out_questions']} held-out questions. The full decode has exact"
            f" match {full['exact_match']:.3f} with {full['tokens']['total']:.1f} tokens; tokens"
            f" are thinking, probe and answer.{_meaning(evaluation)}\n\n{_table(rows)}"
        )
    prices = (trained.get("validation") or {}).get("prices")
    if not prices:
        return "Not yet: `rlbudget evaluate` measures it."
    if trained.get("out_of_fold"):
        return _out_of_fold(trained)
    return (
        "On the validation questions, which also chose these weights; `rlbudget evaluate`"
        " measures it on held-out ones."
        f"{_meaning((trained.get('traces') or {}).get('recorded'))}\n\n{_table(prices)}"
    )


def _out_of_fold(trained: Mapping[str, Any]) -> str:
    found = trained["out_of_fold"]
    rule = found["rule"]
    at = [
        (
            f"{row['relative_price']:g}",
            *(_cell(row[name], ".3f") for name in ("oracle_gap_closed", "oracle_gap_closed_ci90")),
            row["rule"],
            *(_cell(row[name], ".3f") for name in ("rule_oracle_gap_closed", "never")),
        )
        for row in found["prices"]
    ]
    saved = [
        (
            f"{row['max_em_loss']:.1%}",
            *(_cell(row[name], ".0%") for name in ("savings", "savings_ci90")),
            *(_cell(row[name], ".1%") for name in ("em_loss", "em_loss_ci90")),
            *(_cell(row[name], form) for name, form in _OF_RULE),
        )
        for row in found["savings"]
    ]
    return (
        f"On the {found['questions']} training questions, each asked by the members that were not"
        f" trained on it. Of the oracle's gap {_with_interval(found)} is closed; by the rule"
        f" {rule['name']}, the best by this measure, {_with_interval(rule)} (in brackets 90%"
        " intervals, here and below). `rlbudget evaluate` measures the policy itself on held-out"
        f" questions.{_meaning((trained.get('traces') or {}).get('recorded'))}\n\n"
        f"{_table(trained['validation']['prices'])}\n\n"
        f"{_lines(_AT, at)}\n\n{_lines(_SAVED, saved)}"
    )


_AT = ("relative price", "gap closed", "90% interval", "best rule", "it closes", "never stopping")
_SAVED = ("may lose", "saved", "90% interval", "lost", "90% interval", "a rule saves", "it loses")
_OF_RULE = (("rule_savings", ".0%"), ("rule_em_loss", ".1%"))


def _with_interval(found: Mapping[str, Any]) -> str:
    gap, interval = found["oracle_gap_closed"], found["oracle_gap_closed_ci90"]
    return f"{_cell(gap, '.2f')} [{_cell(interval, '.2f')}]"


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_line(head), _line("---:" for _ in head), *map(_line, rows)])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [column for column in _COLUMNS if any(column[1] in row for row in rows)]
    lines = [
        _line(title for title, _, _ in columns),
        _line("---:" for _ in columns),
        *(_line(_cell(row.get(key), form) for _, key, form in columns) for row in rows),
    ]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        value = value["total"]
    if isinstance(value, list | tuple):
        return " to ".join(_cell(part, form) for part in value)
    return format(value, form)


def _facts(trained: Mapping[str, Any]) -> str:
    facts = {k: v for k, v in trained.items() if k not in ("validation", "out_of_fold")}
    return "\n".join(
        f"- {name}: `{json.dumps(value, ensure_ascii=False)}`" for name, value in facts.items()
    )
