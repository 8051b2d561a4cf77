from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frozen_nets import FREE, random_policy
from synthetic import make_table, puzzle

from rlbudget.agents.actor import actor_of
from rlbudget.agents.config import PPOConfig
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.ppo import _columns_of, _continue_from, make_ppo
from rlbudget.agents.training import train_on
from rlbudget.cli.main import main
from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy, save_policy
from rlbudget.strategies.feedback.entries import Entries
from rlbudget.strategies.feedback.log import Feedback
from rlbudget.strategies.feedback.registry import Registry
from rlbudget.strategies.feedback.retrain import Contest, contest, retrain
from rlbudget.strategies.feedback.rolling import FOLDS, one_round
from rlbudget.traces.store import TraceWriter, load_table, load_traces
from rlbudget.traces.table import split_questions
from rlbudget.traces.trace import Trace

STEPS = 10_000


def _policies(n: int) -> list[Policy]:
    return [random_policy(FREE, seed=seed) for seed in range(n)]


def test_versions_are_kept_served_and_rolled_back_as_a_stack(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    assert registry.versions() == []
    assert registry.served() is None
    policies = _policies(3)
    for policy in policies:
        version = registry.add(policy)
        registry.promote(version)
    assert registry.versions() == [1, 2, 3]
    assert registry.served_policy() == policies[2]
    assert registry.rollback() == 2
    assert registry.rollback() == 1
    assert registry.served_policy() == policies[0]
    with pytest.raises(UserError, match="nothing was served before"):
        registry.rollback()
    registry.promote(3)
    assert registry.rollback() == 1
    actions = [event.action for event in registry.history()]
    assert actions.count("added") == 3
    assert actions.count("rolled back") == 3


def test_mistakes_are_named(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    with pytest.raises(UserError, match="serves no policy"):
        registry.served_policy()
    with pytest.raises(UserError, match="no version 7"):
        registry.promote(7)
    registry.add(_policies(1)[0])
    (tmp_path / "registry" / ".lock").touch()  # what a killed process left
    assert registry.add(_policies(1)[0]) == 2
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        Registry(tmp_path / "file")


def test_a_damaged_version_is_never_served(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.promote(registry.add(_policies(1)[0]))
    second = registry.add(_policies(2)[1])
    (tmp_path / "0002" / "policy.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError):
        registry.promote(second)
    assert registry.served() == 1


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"number": 9, "time": "2026-01-01T00:00:00+00:00", "act')


def _garbled(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"garbage\n")


def _flipped(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0].replace(b"added", b"Added"), *lines[1:]]))


def _repeated(path: Path) -> None:
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])


@pytest.mark.parametrize("damage", [_torn, _garbled, _flipped, _repeated])
def test_damaged_lines_of_the_history_are_skipped_and_counted(
    tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(tmp_path)
    for policy in _policies(2):
        registry.promote(registry.add(policy))
    damage(tmp_path / "history.jsonl")
    main(["registry", "list", str(tmp_path)])
    assert "skipped: 1 torn or damaged lines" in capsys.readouterr().out
    assert registry.served() == 2
    assert registry.rollback() == 1
    assert registry.add(_policies(1)[0]) == 3
    assert registry.served() == 1


def test_a_changed_promotion_serves_nothing_else(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for policy in _policies(3):
        registry.promote(registry.add(policy))
    path = tmp_path / "history.jsonl"
    path.write_bytes(
        path.read_bytes().replace(b'"promoted", "version": 3', b'"promoted", "version": 1')
    )
    journal = registry.journal()
    assert (registry.served(), journal.skipped) == (2, 1)


def test_where_the_disk_is_full_nothing_happened_and_a_rollback_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    for policy in _policies(2):
        registry.promote(registry.add(policy))
    real = os.pwrite

    def full(handle: int, data: bytes, place: int) -> int:
        """Half of a line fits, or all of it where the room that was kept was given back."""
        return real(handle, data if not (tmp_path / ".room").exists() else data[:9], place)

    monkeypatch.setattr(os, "pwrite", full)
    assert registry.rollback() == 1
    monkeypatch.setattr(os, "pwrite", lambda handle, data, place: real(handle, data[:9], place))
    before = registry.journal()
    with pytest.raises(UserError, match="No space left"):
        registry.promote(2)
    assert registry.journal() == before
    monkeypatch.undo()
    registry.promote(2)
    assert registry.served() == 2


def test_a_training_is_refused_before_it_starts_where_another_one_runs(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    for policy in _policies(2):
        registry.promote(registry.add(policy))
    with registry.training():
        with pytest.raises(UserError, match="is writing here"):
            retrain(registry, tmp_path / "no traces are read")
        assert registry.rollback() == 1  # who serves is not kept waiting by a training


def test_what_was_rolled_back_during_a_training_is_not_promoted_over(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for policy in _policies(2):
        registry.promote(registry.add(policy))
    with pytest.raises(UserError, match="version 2 is served by now, not 1"):
        registry.promote(1, instead_of=1)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    policies = _policies(4)
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(Registry(tmp_path).add, policies))
    registry = Registry(tmp_path)
    assert sorted(versions) == registry.versions() == [1, 2, 3, 4]
    assert [registry.policy(v) for v in versions] == policies
    assert [event.version for event in registry.history()] == [1, 2, 3, 4]


def test_a_policy_against_itself_is_not_inferior_where_questions_are_enough() -> None:
    policy, other = _policies(2)
    few, many = make_table(300, seed=2), make_table(1000, seed=2)
    same = contest(policy, policy, few)
    assert same.difference == 0
    assert same.verdict == "cannot tell"
    assert "would need" in str(same)
    assert contest(policy, policy, many, margin=0.02).verdict == "not inferior"
    there, back = contest(policy, other, few), contest(other, policy, few)
    assert there.difference == pytest.approx(-back.difference)
    for margin in (-1, 1, float("nan")):
        with pytest.raises(UserError, match="margin"):
            contest(policy, other, few, margin=margin)


def test_five_questions_promote_nothing_whatever_the_margin() -> None:
    policy, other = _policies(2)
    for n in range(1, 6):
        found = contest(policy, other, make_table(n, seed=2), margin=0.99)
        assert found.verdict == "cannot tell"
        assert not found.promotes


def test_a_retraining_with_too_few_questions_is_refused_before_it_trains(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.promote(registry.add(_policies(1)[0]))
    with pytest.raises(UserError, match=r"at least 6 held-out .* there are 5"):
        retrain(registry, _store(tmp_path / "new", 1, 17))
    assert registry.versions() == [1]


@pytest.mark.parametrize(
    ("interval", "verdict", "promotes"),
    [
        ((0.001, 0.02), "better", True),
        ((-0.004, 0.02), "not inferior", True),
        ((-0.02, 0.02), "cannot tell", False),
        ((-0.02, -0.01), "worse", False),
    ],
)
def test_the_verdict_is_what_the_interval_proves(
    interval: tuple[float, float], verdict: str, promotes: bool
) -> None:
    found = Contest(sum(interval) / 2, interval, 0.005, 100)
    assert found.verdict == verdict
    assert found.promotes is promotes


def _store(folder: Path, seed: int, n: int = 300) -> Path:
    with TraceWriter(folder) as writer:
        for k in range(n):
            writer.add(puzzle(n * seed + k))
    return folder


def test_retraining_goes_on_from_the_served_policy_and_promotes_what_is_good_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = _store(tmp_path / "old", 1), _store(tmp_path / "new", 2)
    train_on(old, tmp_path / "run", total_timesteps=STEPS)
    served = policy_of_run(tmp_path / "run")
    registry = Registry(tmp_path / "registry")
    registry.promote(registry.add(served))
    done = retrain(registry, new, margin=0.05, total_timesteps=STEPS)
    challenger = registry.policy(done.version)
    assert done.promoted is done.contest.promotes
    assert registry.served() == (2 if done.promoted else 1)
    assert challenger.features == served.features
    assert challenger.price_range == served.price_range
    np.testing.assert_array_equal(challenger.tensors["obs_mean"], served.tensors["obs_mean"])
    held_out = split_questions(load_table(new), seed=0).held_out
    assert done.contest == contest(challenger, served, held_out, margin=0.05)
    with pytest.raises(UserError, match="trained on these traces"):
        retrain(registry, new if done.promoted else old, total_timesteps=STEPS)
    save_policy(tmp_path / "policy", served)
    main(["registry", "add", str(tmp_path / "other"), str(tmp_path / "policy")])
    assert "served: 1" in capsys.readouterr().out


def test_a_training_that_starts_from_a_policy_begins_with_its_weights(tmp_path: Path) -> None:
    old = _store(tmp_path / "old", 1, 120)
    train_on(old, tmp_path / "run", total_timesteps=STEPS)
    served = policy_of_run(tmp_path / "run")
    table = load_table(old)
    hidden = tuple(served.config["layers"][1:-1])
    config = PPOConfig(features=served.features, token_price=served.price_range, hidden=hidden)
    columns = _columns_of(served, table)
    model = make_ppo(columns, config)
    _continue_from(model, served)
    actor = actor_of(model)
    for name, tensor in served.tensors.items():
        if name in actor:
            np.testing.assert_array_equal(actor[name].numpy(), tensor)
    small = make_ppo(columns, PPOConfig(hidden=(8,), features=served.features))
    with pytest.raises(UserError, match="another size"):
        _continue_from(small, served)


def _log_of(traces: list[Trace]) -> Entries:
    """A log whose audited requests are these traces, all of whose targets were told."""
    audits = {trace.trace_id: replace(trace, target="") for trace in traces}
    told = {t.trace_id: Feedback(t.trace_id, "2026-01-01", target=t.target) for t in traces}
    return Entries({}, audits, told, 0)


def test_a_round_harvests_evaluates_and_proposes_and_a_command_promotes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = _store(tmp_path / "old", 1)
    train_on(old, tmp_path / "run", total_timesteps=8000)
    registry = Registry(tmp_path / "registry")
    registry.promote(registry.add(policy_of_run(tmp_path / "run")))
    traces = list(load_traces(_store(tmp_path / "new", 2)))
    entries, out = _log_of(traces), tmp_path / "harvested"
    waits = one_round(_log_of(traces[:5]), registry, out, least=20, known=0)
    assert waits.why_not == "5 new traces, of 20 that a round wants"
    nothing = one_round(Entries({}, {}, {}, 0), registry, tmp_path / "none", least=1, known=0)
    assert nothing.why_not is not None
    done = one_round(entries, registry, out, least=20, known=0, margin=0.9, total_timesteps=8000)
    assert done.new == len(traces)
    assert done.rolled is not None
    assert done.rolled.traces == len(traces)
    assert len(done.rolled.em_lost) == FOLDS
    assert done.retrained is not None
    assert done.retrained.contest.promotes  # at such a margin
    assert done.retrained.proposed
    assert registry.served() == 1
    assert registry.history()[-1].action == "proposed"
    main(["registry", "promote", str(registry.folder), "2"])
    assert registry.served() == 2
    main(["registry", "rollback", str(registry.folder)])
    assert registry.served() == 1
    assert "proposed 2" in capsys.readouterr().out
