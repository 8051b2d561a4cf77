"""How long vLLM's own ``generate`` takes for prompts and numbers of tokens, all in one go.

    .venv-vllm/bin/python -m runs.integrations.vllm_offline MODEL REQUESTS.json --context 1024

``REQUESTS.json`` is a list of [prompt ids, tokens]. Prints seconds and tokens, in vLLM's own venv,
without the time that loading takes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any


def main() -> None:
    from vllm import LLM, SamplingParams

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("requests", type=Path)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--at-once", type=int, required=True)
    parser.add_argument("--block", type=int)
    given = parser.parse_args()
    requests = json.loads(given.requests.read_text())
    block: dict[str, Any] = {} if given.block is None else {"block_size": given.block}
    llm = LLM(
        model=given.model, dtype="float32", enforce_eager=True, max_model_len=given.context,
        max_num_seqs=given.at_once, **block,
    )  # fmt: skip
    prompts: list[Any] = [{"prompt_token_ids": ids} for ids, _ in requests]
    params = [
        SamplingParams(temperature=0.0, max_tokens=n, min_tokens=n, ignore_eos=True, logprobs=20,
                       detokenize=False)
        for _, n in requests
    ]  # fmt: skip
    llm.generate(prompts[:1], params[:1], use_tqdm=False)
    begun = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begun
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(json.dumps({"seconds": seconds, "tokens": tokens}))


if __name__ == "__main__":
    main()
