"""The conformance suite in llama-cpp-python; started by ``runs/integrations/llama_cpp.sh``.

Writes ``runs/results/llama_cpp_check.json``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rlbudget.decoding.core import LLAMA_CPP, bind
from rlbudget.integrations.llama_cpp import BudgetProcessor, eos_ids
from rlbudget.policy.folder import load_policy
from runs.common import write_result
from runs.integrations.conformance import POLICY, conforms, load_reference

F32 = 0
"""GGML's number of the type: with the cache's default f16 a token in a thousand may differ."""


def main() -> None:
    from llama_cpp import Llama, LogitsProcessorList
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="the model's tokenizer")
    parser.add_argument("file", help="the model as GGUF")
    parser.add_argument("--n", type=int, default=100, help="questions (default: 100)")
    arguments = parser.parse_args()
    suite = load_reference()
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    llama: Any = Llama(
        arguments.file, n_ctx=1024, type_k=F32, type_v=F32, flash_attn=False, verbose=False
    )
    plan = bind(
        load_policy(POLICY),
        tokenizer,
        LLAMA_CPP,
        vocabulary_size=llama.n_vocab(),
        eos_ids=eos_ids(llama, tokenizer),
        token_price=suite.token_price,
    )
    exits = []
    for at, question in enumerate(suite.questions[: arguments.n], 1):
        budget = BudgetProcessor(plan)
        llama.create_completion(
            plan.profile.prompt(question, tokenizer),
            logits_processor=LogitsProcessorList([budget]),
            max_tokens=plan.max_thinking + plan.reserve,
            temperature=0,
        )
        exits.append([budget.ending.thinking_tokens, budget.ending.reason])
        print(f"\rllama-cpp-python {at}", end="", file=sys.stderr, flush=True)
    write_result(
        "llama_cpp_check",
        [conforms("llama-cpp-python", exits, suite)],
        details={
            "other_exits": [
                [one, other] for one, other in zip(exits, suite.exits, strict=False) if one != other
            ]
        },
    )


if __name__ == "__main__":
    main()
