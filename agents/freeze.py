"""Freeze: a run folder's best weights become a policy folder, with its operating points."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlbudget.agents.tuned_rule import can_freeze, why_not
from rlbudget.errors import UserError
from rlbudget.files import json_ready
from rlbudget.policy import network
from rlbudget.policy.folder import Policy, make_policy, save_policy
from rlbudget.policy.observation import OBSERVATION_VERSION
from rlbudget.policy.operating import Swept, choose_points
from rlbudget.policy.seen import from_text

BEST, RUN = "best.safetensors", "run.json"
RULES = "rules"
"""folder within a run's, with a run folder for each rule that can be frozen"""
RUN_VERSION = 1


def freeze(
    run_dir: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    standalone: bool = False,
    unfinished: bool = False,
    rule: str | None = None,
) -> Policy:
    """Write the best policy of a training run to the folder ``out`` and return it.

    ``standalone`` adds ``policy.py``, which serves the folder with numpy alone. The same run gives
    the same bytes. ``unfinished`` takes a run that was interrupted, too, and the card says so.
    ``rule`` freezes a rule in place of what was trained, as tuned on the run's training questions.
    Raises ``UserError`` for a folder that holds no finished run, for a rule that it does not hold
    and for an ``out`` that may not be written (``save_policy``).
    """
    source = Path(run_dir) if rule is None else _run_of_rule(Path(run_dir), rule)
    policy = policy_of_run(source, unfinished=unfinished)
    save_policy(out, policy, overwrite=overwrite, standalone=standalone)
    return policy


def _run_of_rule(run_dir: Path, rule: str) -> Path:
    read_run(run_dir)
    reason = why_not(rule)
    if reason is not None:
        raise UserError(f"the rule {rule} cannot be frozen: {reason}")
    known = sorted(path.parent.name for path in (run_dir / RULES).glob(f"*/{RUN}"))
    if not known:
        raise UserError(
            f"{run_dir} holds no rules: rlbudget train keeps them where it comes to its end without"
            " --members 1, --em-floor and --token-budget"
        )
    if rule not in known:
        lacks = "its traces lack what it needs" if can_freeze(rule) else "there is no such rule"
        raise UserError(f"{run_dir} holds no rule {rule!r} ({lacks}); it holds {', '.join(known)}")
    return run_dir / RULES / rule


def policy_of_run(run_dir: str | Path, *, unfinished: bool = False) -> Policy:
    """The best policy of a training run, nothing written; otherwise as ``freeze``."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run folder; rlbudget train makes one")
    run = read_run(run_dir)
    if run.get("swept") is None:
        if not unfinished:
            raise UserError(
                f"{run_dir}: this training did not come to its end ({_how_far(run)}): let it finish"
                " with --resume, or take what it has with freeze --unfinished"
            )
        run["unfinished"] = _how_far(run)
    try:
        data = (run_dir / BEST).read_bytes()
    except FileNotFoundError:
        raise UserError(_not_a_run(run_dir, BEST)) from None
    except OSError as error:
        raise UserError(f"cannot read {run_dir / BEST}: {error.strerror}") from None
    try:
        tensors = network.read_tensors(data, where=str(run_dir / BEST))
        return make_policy(
            tensors,
            features=run["features"],
            preset=run["preset"],
            price_range=tuple(run["price_range"]),
            clip=run["clip"],
            trained=json_ready({k: v for k, v in run.items() if k not in _OWN}),
            operating_points=_points(run.get("swept")),
            seen=None if run.get("seen") is None else from_text(run["seen"]),
            stops_from=run.get("stops_from"),
        )
    except KeyError as error:
        raise UserError(f"{run_dir / RUN} lacks {error}; train again") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{run_dir}: these weights cannot be frozen: {error}") from None


_OWN = {"version", "preset", "features", "observation_version", "clip", "price_range", "activation",
        "swept", "seen", "stops_from"}  # fmt: skip
"""What a policy's config says in its own place."""


def _how_far(run: Mapping[str, Any]) -> str:
    config = run.get("config")
    total = config.get("total_timesteps") if isinstance(config, dict) else None
    return f"policy of step {run.get('timesteps', '?')} of {total or '?'}"


def _points(swept: Mapping[str, Any] | None) -> dict[str, dict[str, Any]] | None:
    """What efforts mean by the validation; None for a run that did not come to its end."""
    if swept is None:
        return None
    return choose_points([Swept(**row) for row in swept["prices"]], swept["questions"])


def read_run(run_dir: Path) -> dict[str, Any]:
    """``run.json``; ``UserError`` for one that is missing, damaged or of another rlbudget."""
    try:
        run = json.loads((run_dir / RUN).read_bytes())
    except FileNotFoundError:
        raise UserError(_not_a_run(run_dir, RUN)) from None
    except (OSError, ValueError):
        raise UserError(f"{run_dir / RUN} is damaged; train again") from None
    if not isinstance(run, dict) or run.get("version") != RUN_VERSION:
        raise UserError(f"{run_dir / RUN} is not that of a run of this rlbudget; train again")
    made = run.get("observation_version")
    if made != OBSERVATION_VERSION:
        raise UserError(
            f"{run_dir} was trained on observations of version {made}, but this rlbudget makes"
            f" version {OBSERVATION_VERSION}; train again"
        )
    if run.get("activation") != "tanh":
        raise UserError(f"{run_dir}: activation {run.get('activation')!r}; only tanh is frozen")
    return run


def _not_a_run(run_dir: Path, name: str) -> str:
    return (
        f"{run_dir} holds no {name}: it is not the folder of a training run, or the run ended"
        " before its first evaluation; train again or let it finish with --resume"
    )
