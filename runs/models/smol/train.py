"""Teach SmolLM2-135M-Instruct to reason by a LoRA adapter.

    python -m runs.models.smol.train --out out/smol

Deterministic by seed: the learning rate follows a fixed number of steps, and a run that is
killed goes on from its last saved point when started again with the same ``--out``. The log says,
at every validation: step, loss, exact match of the model's own samples per family on reserved
questions, which are never trained on, drawn with a seed of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlbudget.models.profiles import find_profile
from rlbudget.models.smollm2 import smollm2_folder
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.models.vocabulary import build_vocabulary
from rlbudget.tasks.load import load_task
from rlbudget.tasks.reasoning_gym import SMOLLM2_FAMILIES
from runs.models.pace import rate_at, say
from runs.models.smol.sequences import Sequence, batches, sequences

VALIDATION_SEED = 77_002
FIRST_STEPS = 300
FIRST = dict(sorted({**SMOLLM2_FAMILIES, "gsm_symbolic": {}}.items()))
"""Families of the first steps. Worked word problems teach it to write, but in an hour it learns to
solve none of them: the other steps are for what it can learn."""
SAVE_EVERY = 50
BASE = "SmolLM2-135M-Instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps")
    parser.add_argument("--sequences", type=int, default=5000, help="generated sequences")
    parser.add_argument("--tokens", type=int, default=1200, help="tokens in a batch")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--every", type=int, default=300, help="steps between validations")
    parser.add_argument("--questions", type=int, default=48, help="of a validation")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    started = time.time()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    base = smollm2_folder(adapter=None)
    tokenizer: Any = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    network: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=False
    )
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear")
    model: Any = get_peft_model(network, lora)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0)
    saved = args.out / "training.pt"
    done, spent = 0, 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        set_peft_model_state_dict(model, state["adapter"])
        optimizer.load_state_dict(state["optimizer"])
        done, spent = state["step"], state["seconds"]
    log = args.out / "smol_reasoner.log"
    say(log, f"sequences={args.sequences} from_step={done}")
    stages = [
        Stage(
            sequences(tokenizer, families, args.sequences, args.seed + i),
            network.lm_head.weight.detach(),
            args.tokens,
            args.seed,
            tokenizer.pad_token_id,
        )
        for i, families in enumerate((FIRST, SMOLLM2_FAMILIES))
    ]
    for step in range(done):
        next(stages[step >= FIRST_STEPS].feed)
    losses, seen = [], 0
    model.train()
    for step in range(done + 1, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * rate_at(step, args.steps, warm_up=min(20, args.steps // 10))
        stage = stages[step > FIRST_STEPS]
        batch = next(stage.feed)
        hidden = network.model(batch.inputs, use_cache=False).last_hidden_state
        logits = torch.nn.functional.linear(hidden[batch.learned], stage.head)
        loss = torch.nn.functional.cross_entropy(logits, stage.place[batch.targets])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seen += batch.inputs.numel()
        if step % 10 == 0:
            elapsed = time.time() - started
            say(log, f"step={step} loss={np.mean(losses[-10:]):.4f} tokens={seen} "
                      f"wall={spent + elapsed:.0f}s")  # fmt: skip
        if step % SAVE_EVERY == 0 or step == args.steps:
            state = {"adapter": get_peft_model_state_dict(model), "step": step,
                     "optimizer": optimizer.state_dict(),
                     "seconds": spent + time.time() - started}  # fmt: skip
            torch.save(state, saved.with_suffix(".tmp"))
            os.replace(saved.with_suffix(".tmp"), saved)
        if step % args.every == 0 or step == args.steps:
            model.eval()
            say(log, f"step={step} {_validate(network, tokenizer, args.questions)}")
            model.train()
    # A copy in half the bytes: what is shipped.
    for parameter in trained:
        parameter.data = parameter.data.bfloat16()
    model.save_pretrained(args.out / "adapter")
    config = args.out / "adapter" / "adapter_config.json"
    said = json.loads(config.read_text())
    said["base_model_name_or_path"] = BASE  # not a folder of this machine
    said["target_modules"] = sorted(said["target_modules"])
    config.write_text(json.dumps(said, indent=2) + "\n")


class Stage:
    """Batches without end, and the part of the vocabulary that their loss is taken over.

    That part is the tokens of the data and every 24th of the rest. All of it would cost a quarter
    of the time; what never occurs stays as unlikely as the pretrained model finds it.
    """

    def __init__(
        self, data: list[Sequence], head: torch.Tensor, tokens: int, seed: int, pad: int
    ) -> None:
        used = {token for row in data for token in row.ids} | set(range(0, len(head), 24))
        kept = torch.tensor(sorted(used))
        self.feed = batches(data, tokens, seed, pad)
        self.head = head[kept].contiguous()
        self.place = torch.full((len(head),), -1)
        self.place[kept] = torch.arange(len(kept))


def _validate(network: Any, tokenizer: Any, n: int) -> str:
    profile = find_profile("smollm2")
    task = load_task("smollm2", n=n, seed=VALIDATION_SEED)
    reasoner = TransformersModel(
        name="smollm2",
        network=network,
        tokenizer=tokenizer,
        profile=profile,
        vocabulary=build_vocabulary(
            tokenizer, profile, network.config.vocab_size, [tokenizer.eos_token_id]
        ),
    )
    batch = reasoner.begin([q.question for q in task.questions], list(range(n)))
    while not batch.done:
        batch.advance()
    right: dict[str, list[int]] = defaultdict(list)
    lengths = []
    for row, question in enumerate(task.questions):
        end = batch.final[row]
        right[question.meta["family"]].append(task.score(question, end.answer))
        lengths.append(end.thinking_tokens)
    em = np.mean([value for values in right.values() for value in values])
    by_family = {family: round(float(np.mean(values)), 2) for family, values in right.items()}
    return f"em={em:.3f} thinking={np.mean(lengths):.0f} families={json.dumps(by_family)}"


if __name__ == "__main__":
    main()
