"""The sections of a plan that only a gateway reads, and what is wrong in them, by its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from frozen_nets import FREE, random_policy

from rlbudget.errors import UserError
from rlbudget.policy.folder import save_policy
from rlbudget.strategies.online import PriceSettings
from rlbudget.strategies.plan import describe, load_plan


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    save_policy(folder / "policy", random_policy(FREE))
    return folder


def written(home: Path, text: str) -> Path:
    file = home / "plan.toml"
    file.write_text(f'policy = "policy"\n{text}')
    return file


QUEUE = """
[queue]
capacity = 8
rate = 0.5
tokens_per_minute = 9000
[queue.classes.critical]
priority = -10
price_factor = 0.5
exempt = true
[queue.classes.bulk]
priority = 20
cap = 4
"""


def test_price_and_queue_are_read(home: Path) -> None:
    said = '[audit]\nlog = "log"\nshare = 0.05\n[price]\nmode = "em-floor"\ntarget = 0.9\n'
    plan = load_plan(written(home, said + QUEUE))
    assert plan.price == PriceSettings("em-floor", 0.9)
    assert plan.queue is not None
    assert plan.queue.default == "bulk"
    assert plan.queue.classes["critical"].exempt
    assert plan.queue.classes["bulk"].cap == 4
    text = "\n".join(describe(plan))
    for part in ("exact match of 0.9", "8 requests at once", "critical, bulk", "9000 tokens"):
        assert part in text


def test_a_queue_needs_no_classes(home: Path) -> None:
    queue = load_plan(written(home, "[queue]\ncapacity = 2\n")).queue
    assert queue is not None
    assert list(queue.classes) == [queue.default]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[price]\nmode = 'dear'", 3, "em-floor"),
        ("[price]\nmodes = 'fixed'", 3, "unknown"),
        ("[price]\nmode = 'token-budget'", 3, "lacks target"),
        ("[price]\ntarget = 3", 3, "no target"),
        ("[price]\nmode = 'em-floor'\ntarget = 90\nfeedback = true", 4, "exact match"),
        ("[price]\nmode = 'em-floor'\ntarget = 0.9", 3, "[audit]"),
        ("[price]\nmode = 'token-budget'\ntarget = 0", 4, "above 0"),
        ("[price]\nwindow = 3", 3, "at least 50"),
        ("[price]\nlatency = inf", 3, "above 0"),
        ("[price]\nlatency = nan", 3, "above 0"),
        ("[price]\nwindow = true", 3, "a whole number"),
        ("price = 3", 2, "[price]"),
        ("[queue]\nrate = 1", 2, "capacity"),
        ("[queue]\ncapacity = 0", 3, "at least 1"),
        ("[queue]\ncapacity = 2\nrate = 0", 4, "above 0"),
        ("[queue]\ncapacity = 2\nclasses = 3", 4, "a section"),
        ("[queue]\ncapacity = 2\ndefault = 'bulk'", 4, "no class"),
        ("[queue]\ncapacity = 2\n[queue.classes]\nbulk = 3", 5, "[queue.classes.bulk]"),
        ("[queue]\ncapacity = 2\n[queue.classes.bulk]\nweight = 1", 5, "unknown"),
        ("[queue]\ncapacity = 2\n[queue.classes.bulk]\ncap = 3", 5, "capacity, 2"),
        ("[queue]\ncapacity = 2\n[queue.classes.bulk]\nreserved = 3", 5, "between 0 and"),
        ("[queue]\ncapacity = 2\n[queue.classes.a]\nreserved = 2\n[queue.classes.b]", 4, "whole"),
        ("[queue]\ncapacity = 2\n[queue.classes.bulk]\npriority = nan", 5, "finite"),
        ("[queue]\ncapacity = 2\n[queue.classes.bulk]\npriority = 'high'", 5, "a number"),
        ("[queue]\ncapacity = 2\n[queue.classes.bulk]\nprice_factor = 0", 5, "(0, 1000]"),
        ('[queue]\ncapacity = 2\n[queue.classes."a\\nb"]\ncap = 1', 4, "no name"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(home: Path, text: str, line: int, said: str) -> None:
    file = written(home, text)
    with pytest.raises(UserError) as error:
        load_plan(file)
    assert str(error.value).startswith(f"{file}:{line}: ")
    assert said in str(error.value)
