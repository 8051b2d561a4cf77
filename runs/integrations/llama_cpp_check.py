"""The conformance suite (``suite.py``) in llama-cpp-python; started by ``llama_cpp.sh``.

python -m runs.integrations.llama_cpp_check FOLDER FILE [--n 100]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rlbudget.integrations.llama_cpp import LLAMA_CPP, BudgetProcessor, bind, eos_ids
from runs.integrations.suite import keep, load_suite, others, row_of

F32 = 0
"""GGML's number of the type: with the cache's default f16 a token in a thousand may differ."""
ENGINE = "llama-cpp-python"


def main() -> None:
    from llama_cpp import Llama, LogitsProcessorList
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="the model's tokenizer")
    parser.add_argument("file", help="the model as GGUF")
    parser.add_argument("--n", type=int, default=100, help="questions (default: 100)")
    arguments = parser.parse_args()
    suite = load_suite("plan").first(arguments.n)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder, trust_remote_code=False)
    llama: Any = Llama(
        arguments.file, n_ctx=1024, type_k=F32, type_v=F32, flash_attn=False, verbose=False
    )
    core = bind(
        suite.plan,
        tokenizer,
        LLAMA_CPP,
        vocabulary_size=llama.n_vocab(),
        eos_ids=eos_ids(llama, tokenizer),
    )
    exits = []
    for at, asked in enumerate(suite.requests, 1):
        budget = BudgetProcessor(
            core, question=asked.question, task=asked.task, metadata=asked.metadata
        )
        llama.create_completion(
            core.profile.prompt(asked.question, tokenizer),
            logits_processor=LogitsProcessorList([budget]),
            max_tokens=core.max_thinking + core.reserve,
            temperature=0,
        )
        exits.append([budget.ending.thinking_tokens, budget.ending.reason])
        print(f"\r{ENGINE} {at}", end="", file=sys.stderr, flush=True)
    keep(ENGINE, [row_of(ENGINE, exits, suite)], differences=others(exits, suite))


if __name__ == "__main__":
    main()
