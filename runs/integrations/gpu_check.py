"""What runs on another device: recording, the integrations inside ``generate``, their overhead.

Started by ``runs/integrations/gpu_check.sh``, which says what it needs; or

::

    python -m runs.integrations.gpu_check --device cuda

Greedy decodes on the device are compared with ``rlbudget.decode`` on the same device, the V2
class's torch code with the same code on the CPU. Prints one JSON object as its last line and
keeps it as ``runs/results/gpu_check.json`` only where the device is a CUDA one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import torch

from rlbudget.decoding.core import VLLM
from rlbudget.decoding.decode import decode
from rlbudget.decoding.device.slots import Rows, Slots
from rlbudget.decoding.record import record
from rlbudget.integrations.hf import BudgetProcessor, core_for
from rlbudget.integrations.hf_generate import BudgetGenerate
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.tasks import load_task
from runs.common import row, write_result
from runs.integrations.integration_overhead import BATCHES, inputs_of, never_stops, overhead

SEED = 0
SIZES = (1, 16, 64)
PRICE = 1e-3
CAP = 96
SLOTS, STEPS, PROMPT = 16, 200, 7
SOMETIMES = 0.5
"""a threshold that the chances of a random network lie around"""


def recording(device: str, dtype: str | None, n: int) -> dict[str, Any]:
    """Record on the device; what came of it."""
    model = load_model("embedded", device=device, dtype=dtype)
    told: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        stats = record(model, load_task("embedded", n=n, seed=SEED), folder, max_tokens=CAP,
                       on_halved=told.append)  # fmt: skip
        seconds = time.perf_counter() - begun
    print(f"recorded {stats.n} in {seconds:.1f} s", flush=True)
    return {
        "traces": stats.n,
        "seconds": round(seconds, 2),
        "tokens_a_second": round((stats.tokens + stats.exit_tokens) / seconds),
        "halved": told,
    }


def agreement(model: TransformersModel, questions: list[str]) -> dict[str, int]:
    """Of how many questions each way inside generate thinks as long as ``decode`` does."""
    policy = never_stops(SOMETIMES)
    settings: dict[str, Any] = {
        "profile": model.profile.name, "token_price": PRICE, "max_thinking_tokens": CAP,
    }  # fmt: skip
    room = model.profile.max_answer_tokens + len(model.vocabulary.exit_ids)
    wanted = [
        decode(model, question, policy, token_price=PRICE, temperature=0.0, max_tokens=CAP,
               stride=model.profile.stride).thinking_tokens
        for question in questions
    ]  # fmt: skip
    generate: dict[str, Any] = {
        "do_sample": False, "max_new_tokens": CAP + room,
        "pad_token_id": int(model.vocabulary.eos_ids[0]),
    }  # fmt: skip
    processor = BudgetProcessor.for_model(model.network, model.tokenizer, policy, **settings)
    ids = model.network.generate(
        **inputs_of(model, questions), **generate, logits_processor=[processor]
    )
    inside = BudgetGenerate.for_model(model.network, model.tokenizer, policy, **settings)
    model.network.generate(**inputs_of(model, questions), **generate, custom_generate=inside)
    reports = {"processor": processor.report(ids), "custom_generate": inside.report()}
    return {
        name: sum(one.thinking_tokens == w for one, w in zip(report, wanted, strict=True))
        for name, report in reports.items()
    }


def same_as_on_the_cpu(model: TransformersModel, device: str) -> tuple[int, int]:
    """(tokens that the V2 class's torch code lets through alike, all) on the device and the CPU."""
    plan = core_for(model.network, model.tokenizer, never_stops(SOMETIMES), VLLM, token_price=PRICE,
                    profile=model.profile.name, max_thinking_tokens=CAP)  # fmt: skip
    size = len(plan.vocabulary.markers)
    generator = torch.Generator().manual_seed(SEED)
    logits = 3 * torch.randn(STEPS, SLOTS, size, generator=generator)
    chosen = []
    for name in ("cpu", device):
        place = torch.device(name)
        slots = Slots(plan, SLOTS, 10**4, place)
        slots.begin(range(SLOTS))
        where = torch.arange(SLOTS, device=place)
        prompts = torch.full((SLOTS,), PROMPT, device=place)
        tokens, written = torch.zeros_like(where), []
        for step in range(STEPS):
            seen = logits[step].to(place, copy=True)
            slots.step(Rows(seen, where, tokens, prompts + step, prompts, prompts))
            tokens = seen.argmax(dim=1)
            written.append(tokens.cpu())
        chosen.append(torch.stack(written))
        if int(slots.failures):
            raise SystemExit(f"{int(slots.failures)} requests broke down on {name}")
    return int((chosen[0] == chosen[1]).sum()), chosen[0].numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--n", type=int, default=64, help="questions")
    parser.add_argument("--tokens", type=int, default=64, help="tokens a run of the overhead")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    device, dtype = arguments.device, arguments.dtype
    if device == "cpu":
        torch.set_num_threads(2)
    model = load_model("embedded", device=device, dtype=dtype)
    drawn = load_task("embedded", n=max(arguments.n, *SIZES), seed=SEED).questions
    questions = [question.question for question in drawn]
    recorded = recording(device, dtype, arguments.n)
    rows = [
        row(f"traces recorded on {device}", str(arguments.n), str(recorded["traces"]),
            recorded["traces"] == arguments.n)
    ]  # fmt: skip
    n = min(arguments.n, 32)
    print("comparing with decode", flush=True)
    for name, same in agreement(model, questions[:n]).items():
        rows.append(row(f"{name}: thinks as long as decode", f">= 0.97 of {n}", str(same),
                        same >= 0.97 * n))  # fmt: skip
    print("comparing V2's code with the CPU's", flush=True)
    same, of = same_as_on_the_cpu(model, device)
    rows.append(row("V2's torch code on the device: tokens as on the CPU", f">= 0.99 of {of}",
                    str(same), same >= 0.99 * of))  # fmt: skip
    print("measuring the overhead", flush=True)
    measured = [
        overhead(model, questions[:size], arguments.tokens, arguments.runs) for size in SIZES
    ]
    for found in measured:
        most = BATCHES.get(found["batch_size"])
        if most is None:
            continue  # nothing is wanted of this size: it stands among the measurements
        rows.append(row(f"what the processor adds to a token, batch {found['batch_size']}",
                        f"<= {most:.0%}", f"{found['overhead']:.1%}",
                        found["overhead"] <= most))  # fmt: skip
    write_result(
        "gpu_check",
        rows,
        keep=torch.device(device).type == "cuda",
        seeds=[SEED],
        device=torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device,
        dtype=str(model.network.dtype),
        recording=recorded,
        overhead=measured,
    )


if __name__ == "__main__":
    main()
