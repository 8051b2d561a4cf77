"""The conformance suite (``suite.py``) with a real vLLM, on this machine's CPU.

    bash runs/integrations/vllm.sh suite FOLDER [--only engine|client]

FOLDER is that of the SmolLM2 reasoner. The logits processor inside the engine, under ``plan.toml``;
and the client of any OpenAI-compatible server under ``plan_top.toml``, before a vLLM that knows
nothing of rlbudget. Written by ``python -m runs.integrations.vllm_suite`` in vLLM's own venv.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from runs.integrations.suite import Suite, keep, load_suite, others, plan_file, row_of
from runs.integrations.suite_client import check_client
from runs.integrations.vllm_process import PROCESSOR, vllm_server

AT_ONCE = 16
CONTEXT = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="the model")
    parser.add_argument("--n", type=int, default=100, help="questions (default: 100)")
    parser.add_argument("--only", choices=("engine", "client"), help="one of the two")
    arguments = parser.parse_args()
    if arguments.only != "engine":
        suite = load_suite("plan_top").first(arguments.n)
        with vllm_server(arguments.folder, CONTEXT, "--max-num-seqs", str(AT_ONCE)) as address:
            check_client(
                "OpenAI client, vLLM", f"{address}/v1", arguments.folder, suite, at_once=AT_ONCE
            )
    if arguments.only != "client":
        suite = load_suite("plan").first(arguments.n)
        found = in_engine(arguments.folder, suite)
        keep("vLLM", [row_of("vLLM", found, suite)], differences=others(found, suite))


def in_engine(folder: str, suite: Suite) -> list[list[Any]]:
    """Exits inside the engine, read off its tokens, which do not tell the reason."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from rlbudget.decoding.core import VLLM, bind

    os.environ["RLBUDGET_PLAN"] = str(plan_file(suite.name))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    core = bind(
        suite.plan, tokenizer, VLLM, vocabulary_size=len(tokenizer),
        eos_ids=[tokenizer.eos_token_id],
    )  # fmt: skip
    llm = LLM(
        model=folder, dtype="float32", enforce_eager=True, max_model_len=CONTEXT,
        max_num_seqs=AT_ONCE, logits_processors=[PROCESSOR],
    )  # fmt: skip
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=core.max_thinking + core.reserve + 16,
            skip_special_tokens=False,
            extra_args={
                "rlbudget_question": asked.question,
                "rlbudget_task": asked.task,
                "rlbudget_metadata": json.dumps(asked.metadata),
            },
        )
        for asked in suite.requests
    ]
    prompts: list[Any] = [
        {"prompt_token_ids": core.profile.prompt(asked.question, tokenizer)}
        for asked in suite.requests
    ]
    outputs = llm.generate(prompts, params, use_tqdm=True)
    places = [thinking(core, list(output.outputs[0].token_ids)) for output in outputs]
    return [[place, reason] for place, (_, reason) in zip(places, suite.exits, strict=True)]


def thinking(core: Any, ids: list[int]) -> int:
    """Tokens before the end of the thinking."""
    for at, token in enumerate(ids):
        if spelled := core.tags.end_length(token, ids[max(at - 23, 0) : at + 1]):
            return int(max(at + 1 - spelled, at // core.stride * core.stride))
    return len(ids)


if __name__ == "__main__":
    main()
