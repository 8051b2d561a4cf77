"""The vLLM integration against the decoder of this project, in the real engine.

    bash runs/integrations/vllm.sh [--questions N] [--overhead] [--name NAME]   # a toy made here
    bash runs/integrations/vllm.sh --model FOLDER [--overhead] [--name NAME]    # SmolLM2

The toy has random weights. So has its policy, but it sees the model's own signals normalised and
stops at about one checkpoint in eight, so that exits lie everywhere. A model is served with the
policy and the questions of the conformance suite, which itself is in ``vllm_suite.py``. Checked,
all greedy:

* the engine's tokens under the policy are those that ``rlbudget.decode`` gives, and where two
  first choices are so close that the kernels differ, those that ``Request`` gives on the logits
  of the engine's own tokens;
* ``rlbudget_off`` leaves the engine's own decode;
* over HTTP, wrong arguments are answered with 400 and the server goes on.

``--overhead`` checks nothing, but times a policy that never stops beside an engine without the
integration, in turns, and beside both requests with ``rlbudget_off``: what vLLM itself spends once
it has any such processor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlbudget.decoding.core import VLLM, Core, bind
from rlbudget.decoding.decode import decode
from rlbudget.decoding.decoded import Ending
from rlbudget.decoding.request import Request
from rlbudget.models import load_model
from rlbudget.models.sampling import token_signals
from rlbudget.models.transformers_model import EMBEDDED, TransformersModel
from rlbudget.policy.folder import Policy, load_policy, make_policy, save_policy
from rlbudget.policy.observation import Observer, feature_names
from rlbudget.signals.tokens import SIGNALS
from runs.common import KEPT, write_result
from runs.integrations.suite import load_suite
from runs.integrations.vllm_process import PROCESSOR, vllm_server

PRICES = (1e-5, 1e-2)
PRICE = 1e-3
TOY_CAP = 96
CONTEXT = 1024
BATCH, ROUNDS = 16, 16
MEMORY = 0.2
"""Share of the machine's memory that must be free, for others work on it too."""
OWN = 8
"""Decodes that are compared with the model's own, which is slow."""
TIE = 1e-3
"""Logits nearer than this may come out in another order from other kernels."""


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        policies = Path(place) / "policies"
        suite = load_suite("plan") if options.model else None
        if suite is None:
            folder = toy_model(Path(place) / "model")
            model = load_model(str(folder), profile="embedded")
            questions = sums(options.questions)
            policy = stopping_policy(model, questions[:16], TOY_CAP)
            subject = Subject(model, policy, questions, PRICE, TOY_CAP)
        else:
            folder, policy = Path(options.model), load_policy(KEPT / "policy")
            model = load_model(str(folder), profile="smollm2")
            questions = [one.question for one in suite.first(options.questions).requests]
            cap = model.profile.max_tokens
            subject = Subject(model, policy, questions, suite.plan.dial.price(policy), cap)
        save_policy(policies / "main", policy)
        save_policy(policies / "never", changed(policy, threshold=1.0))
        os.environ["RLBUDGET_POLICY"] = f"main={policies / 'main'},never={policies / 'never'}"
        if options.overhead:
            rows = [overhead(folder, subject)]
        else:
            rows = check_decodes(folder, subject, toy=suite is None) + check_http(folder, subject)
    if options.name:
        write_result(options.name, rows, seeds=[0], details={"toy": suite is None})
    else:
        print(json.dumps({"rows": rows}))
    sys.exit(not all(row["met"] for row in rows))


@dataclass(frozen=True, slots=True)
class Subject:
    """What is served and asked."""

    model: TransformersModel
    policy: Policy
    questions: list[str]
    price: float
    cap: int
    """on thinking, tokens"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the vLLM integration in the real engine.")
    parser.add_argument("--model", help="folder of the SmolLM2 reasoner (default: a toy is made)")
    parser.add_argument("--questions", type=int, default=100, help="decodes to compare")
    parser.add_argument("--overhead", action="store_true", help="time it, check nothing")
    parser.add_argument("--name", help="write runs/results/NAME.json")
    return parser.parse_args()


def toy_model(folder: Path) -> Path:
    """Random weights, the embedded model's tokenizer, and a head size that vLLM's CPU has."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED, trust_remote_code=False)
    known = json.loads((EMBEDDED / "config.json").read_text())
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=known["vocab_size"],
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
    )
    # Parts of characters are made unlikely: there is no checkpoint inside one, and random weights
    # write little else.
    texts = [tokenizer.decode([token]) for token in range(known["vocab_size"])]
    with torch.no_grad():
        network.lm_head.weight[["\ufffd" in text for text in texts]] = 0.0
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sums(n: int) -> list[str]:
    """n questions."""
    rng = np.random.default_rng(0)
    return [
        " ".join(str(k) if i == 0 else f"{'+-'[k % 2]} {k}" for i, k in enumerate(terms))
        for terms in rng.integers(1, 100, (n, 4)).tolist()
    ]


def stopping_policy(model: TransformersModel, questions: list[str], most: int) -> Policy:
    """Random weights, normalised and bent so that about one checkpoint in eight is a stop."""
    features, rng = feature_names(SIGNALS, "free"), np.random.default_rng(0)
    batch = model.begin(questions, [0] * len(questions), temperature=0.0, max_tokens=most)
    observer, seen = Observer(features, len(questions)), []
    while not batch.done:
        batch.advance()
        rows = np.asarray(batch.at_checkpoint, dtype=np.int64)
        if len(rows):
            tokens = batch.thinking_tokens(rows)
            seen.append(observer.update(rows, tokens, batch.signals(rows)))
    observations = np.concatenate(seen)
    sizes = [len(features) + 1, 32, 2]
    tensors = {
        "obs_mean": observations.mean(axis=0),
        "obs_std": observations.std(axis=0) + 1e-3,
    }
    for name, inputs, outputs in zip(
        ("mlp_extractor.policy_net.0", "action_net"), sizes, sizes[1:], strict=False
    ):
        tensors[f"{name}.weight"] = rng.normal(0, 2 * inputs**-0.5, (outputs, inputs))
        tensors[f"{name}.bias"] = np.zeros(outputs)
    recorded = {"profile": model.profile.name, "stride": model.profile.stride, "max_tokens": most}
    policy = make_policy(
        {name: value.astype(np.float32) for name, value in tensors.items()},
        features=features,
        preset="free",
        price_range=PRICES,
        trained={"traces": {"recorded": recorded}},
    )
    chances = np.sort(policy.stop_probabilities(observations, PRICE))
    # In the widest gap around the quantile, so that rounding does not decide.
    near = chances[int(0.84 * len(chances)) : int(0.92 * len(chances)) + 2]
    widest = int(np.diff(near).argmax())
    return changed(policy, threshold=float(near[widest : widest + 2].mean()))


def changed(policy: Policy, *, threshold: float) -> Policy:
    return make_policy(
        policy.tensors,
        features=policy.features,
        preset=policy.preset,
        price_range=policy.price_range,
        threshold=threshold,
        trained=policy.config["trained"],
    )


def engine(folder: Path, *, ours: bool) -> Any:
    from vllm import LLM

    return LLM(
        model=str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=CONTEXT,
        max_num_seqs=BATCH,
        gpu_memory_utilization=MEMORY,
        logits_processors=[PROCESSOR] if ours else None,
    )


def generate(llm: Any, prompts: list[list[int]], most: int, **extra: Any) -> list[list[int]]:
    """Greedy tokens; ``extra`` are the request's own arguments."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.0, max_tokens=most, extra_args=extra or None, skip_special_tokens=False
    )
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def check_decodes(folder: Path, subject: Subject, *, toy: bool) -> list[dict[str, Any]]:
    model, questions = subject.model, subject.questions
    plan = bind(
        subject.policy,
        model.tokenizer,
        VLLM,
        vocabulary_size=len(model.vocabulary.markers),
        eos_ids=model.vocabulary.eos_ids.tolist(),
        token_price=subject.price,
    )
    prompts = [model.prompt_ids(question) for question in questions]
    most = subject.cap + plan.reserve + 16
    llm = engine(folder, ours=True)
    said = generate(llm, prompts, most, rlbudget_token_price=subject.price)
    off = generate(llm, prompts[:OWN], most, rlbudget_off=True)
    replayed, ties, exits = 0, 0, []
    for prompt, ids in zip(prompts, said, strict=True):
        wrong, close, done = replay(subject, plan, prompt, ids, most)
        replayed += not wrong
        ties += close
        exits.append([done.thinking_tokens, done.reason])
    plain = own_decodes(model, prompts[:OWN], most)
    untouched = sum(a == b for a, b in zip(off, plain, strict=True))
    n = len(questions)
    reasons, places = [reason for _, reason in exits], {place for place, _ in exits}
    print(f"ends: {({r: reasons.count(r) for r in set(reasons)})}, close calls: {ties}",
          file=sys.stderr)  # fmt: skip
    agreed = [as_decoded(subject, said, ties)] if toy else []
    return [
        {
            "row": "decodes in vLLM that are those of Request on the engine's own tokens",
            "wanted": n, "reached": replayed, "met": replayed == n,
        },
        *agreed,
        {
            "row": "stops by the policy among them, and different places",
            "wanted": ">= 1 in 4, >= 4",
            "reached": [reasons.count("policy"), len(places)],
            "met": 4 * reasons.count("policy") >= n and len(places) >= 4,
        },
        {
            "row": "decodes with rlbudget_off that are the model's own",
            "wanted": f">= {len(plain) - ties} of {len(plain)}", "reached": untouched,
            "met": untouched >= len(plain) - ties,
        },
    ]  # fmt: skip


def as_decoded(subject: Subject, said: list[list[int]], ties: int) -> dict[str, Any]:
    """The row on exits and answers beside those of ``rlbudget.decode``."""
    model, n = subject.model, len(said)
    same = 0
    for question, ids in zip(subject.questions, said, strict=True):
        expected = decode(
            model, question, subject.policy, token_price=subject.price, temperature=0.0,
            max_tokens=subject.cap,
        )  # fmt: skip
        same += model.vocabulary.text(ids, special=True).startswith(expected.text)
    return {
        "row": "decodes in vLLM whose exit and answer are those of rlbudget.decoding.decode",
        "wanted": f">= {n - ties} of {n}", "reached": same, "met": same >= n - ties,
    }  # fmt: skip


@torch.inference_mode()
def replay(
    subject: Subject, plan: Core, prompt: list[int], ids: list[int], most: int
) -> tuple[bool, bool, Ending]:
    """Whether ``Request`` would have chosen another token somewhere, whether a choice was so
    close that other kernels may choose otherwise, and where it ended."""  # fmt: skip
    model = subject.model
    logits = model.network(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
    signals = token_signals(
        logits, torch.tensor(ids), torch.from_numpy(model.vocabulary.end_first_ids)
    )
    request = Request(plan, token_price=subject.price, max_new_tokens=most)
    wrong, close = False, False
    for row, token, values in zip(logits, ids, signals, strict=True):
        forced = request.forced(int(row.argmax()))
        if forced is None:
            if request.thinking:
                row[model.vocabulary.eos_ids] = -torch.inf
            first, second = row.topk(2).values.tolist()
            wrong |= float(row[token]) < first - TIE
            close |= first - second < TIE
        else:
            wrong |= token != forced
        request.push(token, values)
    return wrong, close, request.ending


@torch.inference_mode()
def own_decodes(model: TransformersModel, prompts: list[list[int]], most: int) -> list[list[int]]:
    """What the network decodes greedily by itself."""
    out = []
    for prompt in prompts:
        ids = model.network.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=most,
            eos_token_id=model.vocabulary.eos_ids.tolist(), pad_token_id=0,
        )  # fmt: skip
        out.append(ids[0, len(prompt) :].tolist())
    return out


def check_http(folder: Path, subject: Subject) -> list[dict[str, Any]]:
    wrong: list[dict[str, Any]] = [
        {"rlbudget_token_price": 1e9},
        {"rlbudget_token_price": "x"},
        {"rlbudget_policy": "none"},
        {"rlbudget_nonsense": 1},
        {"rlbudget_off": 3},
    ]
    right: list[dict[str, Any]] = [
        {},
        {"rlbudget_off": True},
        {"rlbudget_policy": "never", "rlbudget_token_price": subject.price},
    ]
    prompt = subject.model.prompt_ids(subject.questions[0])
    own = ("--logits-processors", PROCESSOR, "--gpu-memory-utilization", str(MEMORY))
    with vllm_server(folder, CONTEXT, *own) as address:
        ask = partial(status, address, str(folder), prompt)
        refused = [ask(200, xargs) for xargs in wrong] + [ask(3, {})]
        answered = [ask(200, xargs) for xargs in right]
    return [
        {
            "row": "wrong requests over HTTP that are answered with 400",
            "wanted": len(refused), "reached": refused.count(400), "met": set(refused) == {400},
        },
        {
            "row": "right requests after them that are answered",
            "wanted": len(right), "reached": answered.count(200), "met": set(answered) == {200},
        },
    ]  # fmt: skip


def status(address: str, name: str, prompt: list[int], most: int, xargs: dict[str, Any]) -> int:
    body = {"model": name, "prompt": prompt, "max_tokens": most, "temperature": 0}
    if xargs:
        body["vllm_xargs"] = xargs
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        print(f"{error.code}: {said.strip()[:300]}", file=sys.stderr)
        return error.code


def overhead(folder: Path, subject: Subject) -> dict[str, Any]:
    """Percent more time a step with the integration, 16 requests of equal length."""
    from vllm import SamplingParams

    model, questions = subject.model, subject.questions[:BATCH]
    prompts = [{"prompt_token_ids": model.prompt_ids(question)} for question in questions]
    length = min(subject.cap // 2, 96)  # all of it thinking: the part that costs
    engines = {"without": engine(folder, ours=False), "with": engine(folder, ours=True)}
    reserve = len(model.vocabulary.exit_ids) + model.profile.max_answer_tokens
    print(f"{length} tokens a request, {reserve} kept for the answer", file=sys.stderr)
    asked: dict[str, tuple[Any, dict[str, Any] | None]] = {
        "without": (engines["without"], None),
        "off": (engines["with"], {"rlbudget_off": True}),
        "with": (engines["with"], {"rlbudget_policy": "never"}),
    }
    times: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(ROUNDS + 1):
        names = [*asked]
        names = names[turn % 3 :] + names[: turn % 3]  # none is always first after another
        for name in names:
            llm, extra = asked[name]
            params = SamplingParams(
                temperature=0.0, max_tokens=length + 2 * reserve, ignore_eos=True, extra_args=extra,
            )  # fmt: skip
            start = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            spent = time.perf_counter() - start
            if turn:  # the first is for warming up
                times[name].append(spent / max(len(o.outputs[0].token_ids) for o in outputs))
    percent, low, high = more(times["with"], times["without"])
    return {
        "row": "percent more time a step of 16 requests takes with a policy that never stops",
        "wanted": "<= 3",
        "reached": f"{percent:.2f} [{low:.2f}, {high:.2f}]",
        "met": high <= 3,
        "milliseconds_a_step": {
            name: round(1000 * statistics.median(values), 3) for name, values in times.items()
        },
        "percent_more": {
            f"{one} over {other}": [round(value, 2) for value in more(times[one], times[other])]
            for one, other in (("with", "without"), ("with", "off"), ("off", "without"))
        },
        "milliseconds_of_each_turn": {
            name: [round(1000 * value, 2) for value in values] for name, values in times.items()
        },
    }


def more(times: list[float], others: list[float]) -> tuple[float, float, float]:
    """Percent more time, turn by turn: the median, and its 95% interval by order statistics.

    The interval holds whatever the distribution of the noise, if the turns are independent.
    """
    percent = sorted(100 * (one / other - 1) for one, other in zip(times, others, strict=True))
    n = len(percent)
    beyond = 0  # values on each side of the interval
    while sum(math.comb(n, k) for k in range(beyond + 1)) <= 0.025 * 2**n:
        beyond += 1
    beyond = max(beyond - 1, 0)
    return statistics.median(percent), percent[beyond], percent[n - 1 - beyond]


if __name__ == "__main__":
    main()
