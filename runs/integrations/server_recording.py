"""Recording through real servers against the transformers recorder: the same traces? how fast?

    bash runs/integrations/llama_server.sh && bash runs/integrations/vllm.sh   # once
    python -m runs.integrations.server_recording vllm|llama-server [--n 200]

The SmolLM2 reasoner, greedy, in float32. Traces of both recorders are compared; of vLLM, its own
counters say how many prompt tokens it computed anew, and its offline ``generate``, a client that
asks one request after another and the transformers recorder say what the time is worth.
``--policy`` trains a policy on the server's traces and on those of transformers, compares what they
save held out, and serves the first through the server: does it exit where the replay does?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.agents.freeze import freeze
from rlbudget.agents.training import train_on
from rlbudget.decoding.record import record
from rlbudget.decoding.record_served import Served, ServedStats, opened, record_served
from rlbudget.integrations import openai
from rlbudget.models import load_model
from rlbudget.models.completions import Prompt
from rlbudget.models.served import Asked, ServedModel
from rlbudget.models.served_prompt import prompt_of
from rlbudget.models.served_write import write
from rlbudget.models.smollm2 import smollm2_folder
from rlbudget.policy.folder import load_policy
from rlbudget.policy.outcomes import RELATIVE_PRICES
from rlbudget.policy.replay import replay
from rlbudget.tasks import Task, load_task
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.table import split_questions
from rlbudget.traces.trace import Trace
from runs.common import ROOT, row, write_part
from runs.integrations.llama_process import llama_server
from runs.integrations.vllm_process import environment, vllm_server

CONTEXT, SEED, WANTED = 1024, 21, 0.99
WIDER = 4
"""requests at once for each question that is under way"""
RESULT = "server_recording"
VLLM = ROOT / ".venv-vllm" / "bin" / "python"


@contextmanager
def serving(engine: str, folder: Path, at_once: int, given: argparse.Namespace) -> Iterator[str]:
    """The address up to ``/v1``."""
    if engine == "vllm":
        more = ["--max-num-seqs", str(WIDER * at_once), "--enable-prompt-tokens-details"]
        more += [] if given.block is None else ["--block-size", str(given.block)]
        with vllm_server(folder, CONTEXT, *more, python=given.vllm) as address:
            yield f"{address}/v1"
        return
    from runs.models.smol_gguf import write_gguf

    with tempfile.TemporaryDirectory() as place:
        write_gguf(folder, file := Path(place) / "model.gguf")
        with llama_server(file, context=CONTEXT, threads=2, slots=at_once) as address:
            yield f"{address}/v1"


def served_of(url: str, folder: Path, at_once: int) -> Served:
    """``at_once`` questions under way, their exits beside each other."""
    asked = Asked(concurrency=WIDER * at_once, questions=at_once)
    return Served([url], tokenizer=str(folder), profile="smollm2", asked=asked)


# (a) The same traces?


@dataclass(frozen=True)
class Compared:
    equal: int
    """questions of which thinking, exits and EM are"""
    n: int
    worst: Mapping[str, float]
    """signal -> greatest difference over the checkpoints of equal questions"""


def compared(here: Sequence[Trace], there: Sequence[Trace]) -> Compared:
    other = {trace.trace_id: trace for trace in there}
    worst: dict[str, float] = {}
    equal = 0
    for one in here:
        two = other[one.trace_id]
        if outcome(one) != outcome(two):
            continue
        equal += 1
        for a, b in zip(one.checkpoints, two.checkpoints, strict=True):
            for name, value in b.signals.items():
                worst[name] = max(worst.get(name, 0.0), abs(value - a.signals[name]))
    return Compared(equal, len(here), worst)


def outcome(trace: Trace) -> list[Any]:
    exits = [(c.thinking_tokens, c.exit.answer, c.exit.exact_match) for c in trace.checkpoints]
    return [trace.final.thinking_tokens, trace.final.exact_match, exits]


def sameness(engine: str, found: Compared) -> list[dict[str, Any]]:
    exact = {name: value for name, value in found.worst.items() if name != "exit_entropy"}
    name, most = max(exact.items(), key=lambda item: item[1], default=("none", 0.0))
    share = found.equal / found.n
    return [
        row(f"{engine}, {found.n} questions, greedy: thinking tokens, exits' answers, EM as by the"
            " transformers recorder", ">= 99% of questions", f"{share:.1%}", share >= WANTED),
        row(f"{engine}: signals of those questions against the transformers recorder",
            "within 1e-3", f"{most:.1e} ({name})", most <= 1e-3),
    ]  # fmt: skip


# (b) What was computed anew


def counters(url: str) -> dict[str, float]:
    """vLLM's counters of prompt tokens."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for name, value in re.findall(r"^vllm:(\w+?)(?:_total)?\{[^}]*\} ([\d.e+]+)$", text, re.M):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def anew(
    before: Mapping[str, float], after: Mapping[str, float], prompts: int, sent: int, block: int
) -> dict[str, Any]:
    """``prompts`` are the tokens of the questions' prompts, ``sent`` those of the exits'."""
    asked = after["prefix_cache_queries"] - before["prefix_cache_queries"]
    hits = after["prefix_cache_hits"] - before["prefix_cache_hits"]
    share = (asked - hits - prompts) / (asked - prompts)
    return {"share": share, "asked": asked, "hits": hits, "prompts": prompts, "exits": sent,
            "block": block}  # fmt: skip


def bound_of(requests: Sequence[tuple[list[int], int]], cue: int, block: int) -> float:
    """Least share of the exits' prompt tokens that blocks of this size leave to be computed."""
    lengths = [len(ids) for ids, _ in requests]
    rest = sum((length - cue) % block + cue for length in lengths)
    return rest / sum(lengths)


# (c) Time


def requests_of(
    folder: Path, task: Task, traces: Sequence[Trace]
) -> tuple[list[tuple[list[int], int]], list[tuple[list[int], int]]]:
    """The (prompt ids, tokens) of all decodes, and of all exits: what any client must ask for."""
    from rlbudget.models.profiles import find_profile
    from rlbudget.models.tokenizer import served_tokenizer
    from rlbudget.models.vocabulary import build_vocabulary

    tokenizer, ends = served_tokenizer(str(folder))
    profile = find_profile("smollm2")
    vocabulary = build_vocabulary(tokenizer, profile, len(tokenizer), ends)
    by_id = {trace.question_id: trace for trace in traces}
    whole, exits = [], []
    for question in task.questions:
        trace = by_id[question.question_id]
        prompt = profile.prompt(question.question, tokenizer)
        thinking = tokenizer(trace.meta["thinking"], add_special_tokens=False)["input_ids"]
        whole.append((prompt, trace.final.thinking_tokens + trace.final.answer_tokens))
        cue = list(vocabulary.exit_ids)
        exits += [
            ([*prompt, *thinking[: c.thinking_tokens], *cue], c.exit.answer_tokens - len(cue))
            for c in trace.checkpoints
        ]
    return whole, exits


def offline(folder: Path, requests: Sequence[Any], at_once: int, given: argparse.Namespace) -> Any:
    """What vLLM's own ``generate`` takes."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "requests.json"
        file.write_text(json.dumps(requests))
        command = [str(given.vllm), "-m", "runs.integrations.vllm_offline", str(folder), str(file),
                   "--context", str(CONTEXT), "--at-once", str(WIDER * at_once)]  # fmt: skip
        command += [] if given.block is None else ["--block", str(given.block)]
        said = subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment()
        )
    return json.loads(next(line for line in said.stdout.splitlines() if line.startswith("{")))


async def one_after_another(
    served: Served, task: Task, traces: Sequence[Trace], at_once: int
) -> float:
    """Seconds of a client that asks for the decode, then for one exit after the other."""
    by_id = {trace.question_id: trace for trace in traces}
    free = asyncio.Semaphore(at_once)

    async def one(model: ServedModel, place: int) -> None:
        question = task.questions[place]
        trace, server = by_id[question.question_id], model.servers[0]
        async with free:
            prompt = await prompt_of(model, server, question.question)
            whole = trace.final.thinking_tokens + trace.final.answer_tokens
            decoded = await write(server, prompt, whole)
            for point in trace.checkpoints:
                thought = [token.id for token in decoded.tokens[: point.thinking_tokens]]
                cue = model.vocabulary.exit_ids
                here = Prompt([*prompt.ids, *thought, *cue], "", True)
                await write(server, here, model.profile.max_answer_tokens)

    async with opened(served) as model:
        begun = time.perf_counter()
        await asyncio.gather(*(one(model, place) for place in range(len(task.questions))))
        return time.perf_counter() - begun


def warm(served: Served) -> None:
    """The first requests of a server take longer: other questions are recorded and thrown away."""
    with tempfile.TemporaryDirectory() as place:
        record_served(served, load_task("smollm2", n=2, seed=SEED + 1), place, temperature=0.0)


def by_ours(task: Task, folder: Path) -> float:
    """Seconds of the transformers recorder; a recording that lies there is taken as it is."""
    told = folder.with_name(folder.name + ".seconds")
    if not told.exists():
        model = load_model("smollm2", dtype="float32")
        begun = time.perf_counter()
        record(model, task, folder, temperature=0.0, seed=SEED, store_text=True, resume=True)
        told.write_text(str(time.perf_counter() - begun))
    return float(told.read_text())


def speed(engine: str, task: Task, folder: Path, given: argparse.Namespace) -> None:
    """(a) to (c) of one engine."""
    at_once = given.at_once
    with tempfile.TemporaryDirectory() as place:
        here = given.here or Path(place) / "here"
        there = given.there or Path(place) / "there"
        by_transformers = by_ours(task, here)
        with serving(engine, folder, at_once, given) as url:
            served = served_of(url, folder, at_once)
            warm(served)
            before = counters(url) if engine == "vllm" else {}
            done: ServedStats = record_served(
                served, task, there, temperature=0.0, seed=SEED, store_text=True,
                resume=given.there is not None,
            )  # fmt: skip
            after = counters(url) if engine == "vllm" else {}
            traces = load_traces(there)
            rows = sameness(engine, compared(load_traces(here), traces))
            details: dict[str, Any] = {
                "questions": len(task.questions), "at_once": at_once,
                "requests": done.spent.requests, "sent": done.spent.sent,
                "written": done.spent.written,
                "worst": compared(load_traces(here), traces).worst,
                "seconds": {"server": done.stats.seconds, "transformers": by_transformers},
            }  # fmt: skip
            if engine == "llama-server":
                details["cached"] = done.spent.cached / max(done.spent.told, 1)
            whole, exits = requests_of(folder, task, traces)
            if engine == "vllm":
                block = given.block or 128
                sent = sum(len(ids) for ids, _ in exits)
                found = anew(before, after, sum(len(ids) for ids, _ in whole), sent, block)
                bound = bound_of(exits, 1, block)
                details["anew"] = {**found, "bound": bound}
                rows.append(row(
                    f"prompt tokens of exits that vLLM computed anew, blocks of {block} (which"
                    f" leave at least {bound:.1%})", "<= 15% where the block size allows",
                    f"{found['share']:.1%}", found["share"] <= max(0.15, 1.05 * bound),
                ))  # fmt: skip
        print(json.dumps({"rows": rows, **details}), file=sys.stderr, flush=True)
        if engine == "vllm":
            with serving(engine, folder, at_once, given) as url:  # a cache that knows nothing yet
                served = served_of(url, folder, at_once)
                warm(served)
                plain = asyncio.run(one_after_another(served, task, traces, at_once))
            details["seconds"]["one after another"] = plain
            alone = offline(folder, [*whole, *exits], at_once, given)
            details["seconds"]["offline"] = alone["seconds"]
            ours = done.stats.seconds
            for name, limit, other in (
                ("vLLM's offline generate of the same tokens", 1.25, alone["seconds"]),
                ("a client that asks one after another", 0.67, plain),
            ):
                rows.append(row(f"recording through vLLM: time over {name}", f"<= {limit}x",
                                f"{ours / other:.2f}x", ours / other <= limit))  # fmt: skip
            rows.append(row("recording through vLLM: time over the transformers recorder", "stated",
                            f"{ours / by_transformers:.2f}x", True))  # fmt: skip
        write_part(RESULT, engine, rows, **details)


# (f) A policy of that server's traces


def policies(engine: str, task: Task, folder: Path, given: argparse.Namespace) -> None:
    """Train on both recordings, compare held out, serve the server's through the server."""
    with tempfile.TemporaryDirectory() as place:
        at = Path(place)
        here = given.here or at / "here"
        by_ours(task, here)
        with serving(engine, folder, given.at_once, given) as url:
            record_served(served_of(url, folder, given.at_once), task, at / "there",
                          temperature=0.0, seed=SEED)  # fmt: skip
            saved = {}
            for name, traces in (("here", here), ("there", at / "there")):
                train_on(traces, at / f"{name}-run", signals="top")
                freeze(at / f"{name}-run", at / f"{name}-policy")
                saved[name] = savings(at / f"{name}-policy", here)
            gaps = [abs(a - b) for a, b in zip(saved["here"], saved["there"], strict=True)]
            exits = asyncio.run(exits_of(url, folder, at, task))
        share = sum(exits) / len(exits)
        write_part(
            RESULT, f"policy, {engine}",
            [
                row(f"policy of traces of {engine}: savings held out against that of"
                    " transformers' traces, mean over prices", "within 3 points",
                    f"{100 * float(np.mean(gaps)):.1f} points (most {100 * max(gaps):.1f})",
                    float(np.mean(gaps)) <= 0.03),
                row(f"the same policy served through {engine}: exits as in replay", ">= 99%",
                    f"{share:.1%} of {len(exits)}", share >= WANTED),
            ],
            questions=len(task.questions), savings=saved,
        )  # fmt: skip


def savings(policy_folder: Path, traces: Path) -> list[float]:
    """Held out, at each relative price, on the transformers traces."""
    policy = load_policy(policy_folder)
    table = split_questions(load_table(traces), seed=0).held_out
    full = float((table.final_thinking_tokens + table.final_answer_tokens).mean())
    found = []
    for price in RELATIVE_PRICES:
        done = replay(policy, table, min(max(price / full, policy.price_range[0]),
                                            policy.price_range[1]))  # fmt: skip
        found.append(1.0 - float(done.outcome.tokens.mean()) / full)
    return found


async def exits_of(url: str, folder: Path, at: Path, task: Task) -> list[bool]:
    """Of each held-out question, whether it ends through the server where the replay ends it."""
    policy = load_policy(at / "there-policy")
    table = split_questions(load_table(at / "there"), seed=0).held_out
    price = float(np.sqrt(policy.price_range[0] * policy.price_range[1]))
    replayed = replay(policy, table, price)
    ends = dict(zip(table.question_ids.tolist(), replayed.outcome.thinking.tolist(), strict=True))
    asked = [q for q in task.questions if q.question_id in ends]
    async with openai.connect(url, policy, str(folder), token_price=price) as server:
        free = asyncio.Semaphore(8)

        async def one(question: str) -> int:
            async with free:
                return (await openai.decode(server, question, temperature=0.0)).thinking_tokens

        found = await asyncio.gather(*(one(q.question) for q in asked))
    return [tokens == ends[q.question_id] for q, tokens in zip(asked, found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", choices=("vllm", "llama-server"))
    parser.add_argument("--n", type=int, default=200, help="questions")
    parser.add_argument("--at-once", type=int, help="questions (default: vllm 16, llama-server 4)")
    parser.add_argument("--here", type=Path, help="keep the transformers recording here, or take"
                        " the one that is")  # fmt: skip
    parser.add_argument("--there", type=Path, help="go on with the server's recording here: it is"
                        " compared, its time means nothing")  # fmt: skip
    parser.add_argument("--block", type=int, help="tokens of a block of vLLM's prefix cache")
    parser.add_argument("--policy", action="store_true", help="the policy instead of the speed")
    parser.add_argument("--vllm", type=Path, default=VLLM, help="python of vLLM's venv")
    given = parser.parse_args()
    given.at_once = given.at_once or {"vllm": 16, "llama-server": 4}[given.engine]
    if given.engine == "vllm" and not given.vllm.exists():
        sys.exit("vLLM's venv is not there: run runs/integrations/vllm.sh once")
    task = load_task("smollm2", n=given.n, seed=SEED)
    (policies if given.policy else speed)(given.engine, task, smollm2_folder(), given)


if __name__ == "__main__":
    main()
