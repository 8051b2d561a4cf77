"""What a served model gives, what it cannot, and what a recording of it costs."""

from __future__ import annotations

from collections.abc import Iterator

from rlbudget.agents.rules import PROBE, RULES
from rlbudget.cli.findings.finding import odd, some
from rlbudget.cli.through import Prices
from rlbudget.decoding.record_served import ServedStats
from rlbudget.models.served import ServedModel
from rlbudget.models.served_write import Spent
from rlbudget.signals.repeats import TOKEN_REPEATS
from rlbudget.signals.tokens import EXIT_SIGNALS, SIGNALS

_KINDS = {
    "vllm": "vLLM", "sglang": "SGLang", "llama-server": "llama-server",
    "openai": "an OpenAI-compatible server",
}  # fmt: skip


def of_served(model: ServedModel) -> Iterator[str]:
    """The model and how it is asked, then what this costs: signals, presets, baselines."""
    several = len(model.servers)
    where = f"{several} servers" if several > 1 else model.servers[0].name
    room = f", context {model.context:,}" if model.context is not None else ""
    yield (
        f"{model.name} at {where}: {_KINDS[model.kind]}, {_prefixes(model)},"
        f" {some(model.top, 'log-probability').replace('ys', 'ies')} a token{room}"
    )
    lost = [name for name in (*SIGNALS, *_exit_signals(model)) if name not in given(model)]
    if lost:
        rules = [
            rule.name for rule in RULES
            if not set(rule.needs) <= given(model) | ({PROBE} if model.top else set())
        ]  # fmt: skip
        presets = "" if model.top else "; the presets probe and turns"
        yield (
            f"it does not give {', '.join(lost)}: left out of the traces{presets}"
            + (f"; rules that cannot be measured: {', '.join(rules)}" if rules else "")
        )
    if not model.by_ids:
        yield odd(
            "the server takes text only",
            do="a prefix that is sent again is tokenised anew and may be cut otherwise than it was"
            " written; exits are those of the text. A server with token ids is exact",
        )


def given(model: ServedModel) -> set[str]:
    """The signals that its traces hold."""
    looks = {"exit_entropy", "probe_tail"} if model.top else set()
    return {*model.signals, *looks, TOKEN_REPEATS}


def _exit_signals(model: ServedModel) -> tuple[str, ...]:
    return tuple(name for name in EXIT_SIGNALS if name != "option_tokens")


def _prefixes(model: ServedModel) -> str:
    return "prefixes as token ids" if model.by_ids else "prefixes as text"


def of_spending(done: ServedStats, prices: Prices, *, whole: int | None = None) -> Iterator[str]:
    """What the requests of a recording were, or those of ``whole`` questions at that rate."""
    n, spent = done.stats.n, done.spent
    if not n:
        return
    times = 1.0 if whole is None else whole / n
    name = "its requests" if whole is None else f"all {whole:,} questions would take about"
    tokens = (
        f"{round(spent.sent * times):,} prompt tokens ({_cached(spent)}),"
        f" {round(spent.written * times):,} written"
    )
    yield f"{name}: {round(spent.requests * times):,} requests, {tokens}"
    if spent.faults:
        yield f"{some(spent.faults, 'request')} had to be asked again"
    if whole is not None:
        hours = done.stats.seconds * times / 3600
        yield (
            f"at this rate {_time(hours)}; with more questions than these {n:,} the servers are"
            " fuller and the rate is higher"
        )
    if prices.sent is not None or prices.written is not None:
        yield f"money: {_money(spent, prices) * times:,.2f}"


def _cached(spent: Spent) -> str:
    if spent.told:
        return f"{spent.cached / spent.told:.0%} of them cached, as the server tells"
    return f"a prefix cache saves up to {spent.again / max(spent.sent, 1):.0%} of them"


def _money(spent: Spent, prices: Prices) -> float:
    """Where the server does not tell what it had cached nothing was."""
    share = spent.cached / spent.told if spent.told else 0.0
    sent = prices.sent or 0.0
    cached = sent if prices.cached is None else prices.cached
    per_sent = (1 - share) * sent + share * cached
    return (spent.sent * per_sent + spent.written * (prices.written or 0.0)) / 1e6


def _time(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
