"""Train the embedded reasoning model from nothing.

    python -m runs.models.reasoner.train --out out/reasoner

Deterministic by seed: the learning rate follows a fixed number of steps, and a
run that is killed goes on from its last saved point when started again with the same ``--out``.
The log says, at every validation: step, loss, exact match of the first answer and of the natural
answer per family on reserved questions, which are never trained on, drawn with a seed of their
own: they are validation questions, not the ones that are published.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlbudget.tasks.reasoning_gym import EMBEDDED_FAMILIES, draw, score
from runs.models.pace import rate_at, say
from runs.models.reasoner.data import (
    BOS,
    END,
    EOS,
    PAD,
    STAGES,
    THINK,
    Sequences,
    batches,
    generate,
    train_tokenizer,
)
from runs.models.reasoner.muon import Muon
from runs.models.reasoner.sampling import Decoded, sample

WIDTHS = (64, 96, 128, 160, 192, 256, 320, 448)
FIRST = re.compile(r" so (-?\d+)\.")
VALIDATION_SEED = 77_001


def main() -> None:
    """Parse arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9500, help="optimiser steps")
    parser.add_argument("--sequences", type=int, default=160_000, help="generated sequences")
    parser.add_argument("--tokens", type=int, default=3072, help="tokens in a batch")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--start", type=Path, help="run folder to take weights and tokens from")
    parser.add_argument("--stage", choices=sorted(STAGES), default="full", help="questions")
    parser.add_argument("--hidden", type=int, default=160)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1000, help="steps between validations")
    parser.add_argument("--temperature", type=float, default=1.0, help="of validation samples")
    parser.add_argument(
        "--muon-rate", type=float, default=1e-2, help="highest rate of the matrices"
    )
    parser.add_argument(
        "--muon",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train the matrices by Muon, not AdamW",
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    """Train, log, save; see the module's docstring."""
    started, cpu_started = time.time(), time.process_time()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer_file = args.out / "tokenizer.json"
    if args.start and not tokenizer_file.exists():
        tokenizer_file.write_bytes((args.start / "tokenizer.json").read_bytes())
    if not tokenizer_file.exists():
        train_tokenizer(args.seed).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    data = _cached(args.out / "sequences.npz", tokenizer_file, args)
    generated = time.time() - started
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=args.hidden,
        intermediate_size=round(args.hidden * 2.7 / 16) * 16,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        num_key_value_heads=args.hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = LlamaForCausalLM(config)
    if args.start:
        model = LlamaForCausalLM.from_pretrained(args.start / "model", trust_remote_code=False)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    chosen = {id(p) for p in matrices} if args.muon else set()
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    ]
    if args.muon:
        optimizers.append(Muon(matrices, lr=args.muon_rate))
    done, spent = 0, 0.0
    saved = args.out / "training.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        done, spent = state["step"], state["seconds"]
    log = args.out / "reasoner.log"
    say(
        log,
        f"parameters={model.num_parameters()} sequences={args.sequences} "
        f"tokens={len(data.tokens)} generated_in={generated:.0f}s from_step={done}",
    )

    def mean_loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    # One graph a width, and again for each after a validation: 8, the default, is too few.
    torch._dynamo.config.recompile_limit = 64
    # The loss is compiled, not the model: compiled graphs keep their outputs alive in cycles,
    # and a batch's logits that are kept fill any memory within the hour.
    run = torch.compile(mean_loss, dynamic=False) if args.compile else mean_loss
    feed = batches(data, tokens=args.tokens, widths=WIDTHS, seed=args.seed + done)
    losses: list[torch.Tensor] = []
    seen = 0
    for step in range(done + 1, args.steps + 1):
        for optimizer, rate in zip(optimizers, (args.rate, args.muon_rate), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_at(step, args.steps, warm_up=min(200, args.steps // 10))
        inputs, targets = (torch.from_numpy(part) for part in next(feed))
        loss = run(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        seen += inputs.numel()
        if step % 50 == 0:
            gc.collect()
        if step % 100 == 0:
            elapsed = time.time() - started
            say(log, f"step={step} loss={float(torch.stack(losses[-100:]).mean()):.4f} "
                      f"tokens={seen} wall={spent + elapsed:.0f}s "
                      f"cpu={time.process_time() - cpu_started:.0f}s")  # fmt: skip
        if step % args.every == 0 or step == args.steps:
            model.eval()  # type: ignore[no-untyped-call]
            say(log, f"step={step} {_validate(model, tokenizer, args.temperature, args.stage)}")
            model.train()
            export(model, tokenizer_file, args.out / "model")
            state = {"model": model.state_dict(), "step": step,
                     "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                     "seconds": spent + time.time() - started}  # fmt: skip
            torch.save(state, saved.with_suffix(".tmp"))
            os.replace(saved.with_suffix(".tmp"), saved)


def _cached(file: Path, tokenizer_file: Path, args: argparse.Namespace) -> Sequences:
    if not file.exists():
        data = generate(tokenizer_file, args.sequences, args.seed, stage=args.stage)
        part = file.with_suffix(".part.npz")
        np.savez(part, **{name: getattr(data, name) for name in Sequences.__slots__})
        os.replace(part, file)
    with np.load(file) as stored:
        return Sequences(*(stored[name] for name in Sequences.__slots__))


def export(model: LlamaForCausalLM, tokenizer_file: Path, out: Path) -> None:
    """Write the folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load."""
    model.save_pretrained(out)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(tokenizer_file), bos_token=BOS, eos_token=EOS, pad_token=PAD,
        additional_special_tokens=[THINK, END], clean_up_tokenization_spaces=False,
    ).save_pretrained(out)  # fmt: skip


def first_answer(tokenizer: Tokenizer, decoded: Decoded) -> str:
    """The first answer stated in the thinking, or an empty text."""
    found = FIRST.search(tokenizer.decode(decoded.thinking))
    return found.group(1) if found else ""


def _validate(model: LlamaForCausalLM, tokenizer: Tokenizer, temperature: float, stage: str) -> str:
    items = draw(STAGES[stage], 200, VALIDATION_SEED, reserved=True)
    decoded = sample(model, tokenizer, items, seed=0, temperature=temperature)
    report = {}
    for family in EMBEDDED_FAMILIES:
        rows = [d for d in decoded if d.item.family == family]
        first = np.mean([score(family, d.item.entry, first_answer(tokenizer, d)) for d in rows])
        natural = np.mean([d.right for d in rows])
        report[family] = f"{first:.2f}>{natural:.2f}"
    lengths = [len(d.thinking) for d in decoded]
    em = np.mean([d.right for d in decoded])
    spread = np.std(lengths) / np.mean(lengths)
    return (
        f"em={em:.3f} thinking={np.mean(lengths):.0f} cv={spread:.2f} "
        f"first>natural={json.dumps(report)}"
    )


if __name__ == "__main__":
    main()
