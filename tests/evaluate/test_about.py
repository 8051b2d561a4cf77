"""Every method has a sentence that says what it does, and a line of its own."""

from __future__ import annotations

from typing import get_args

from frozen_nets import random_policy

from rlbudget.agents.rules import REPEAT_RULES, RULES, SAMPLING_RULES, TEXT_RULES
from rlbudget.agents.rules.about import ABOUT
from rlbudget.evaluate.about import PRESETS, about
from rlbudget.evaluate.palette import BEST_RULES, styles
from rlbudget.policy.observation import Preset

KNOWN = {rule.name for rule in (*RULES, *REPEAT_RULES, *TEXT_RULES, *SAMPLING_RULES)}


def test_every_rule_and_preset_has_one_sentence() -> None:
    assert set(ABOUT) == KNOWN | {"logistic", "zelt"}
    assert set(PRESETS) == set(get_args(Preset))
    for said in ABOUT.values():
        assert said.count(". ") == 0
        assert said[0].isupper()
        assert said.endswith(".")
        assert len(said) <= 140


def test_every_kind_of_method_is_explained() -> None:
    told = about(["mine", "deer", "oracle", "fitted-q-probe", "mine+guard", "mean"],
                 {"mine": random_policy()})  # fmt: skip
    assert told["mine"].startswith("Learned from your traces: it sees")
    assert told["deer"] == ABOUT["deer"]
    assert "fitted-Q" in told["fitted-q-probe"]
    assert "under your plan: guard may change" in told["mine+guard"]
    assert len(set(told.values())) == len(told)


def test_no_two_lines_that_are_drawn_look_alike_on_white_on_dark_or_grey() -> None:
    rules = [{"method": name, "kind": "rule", "mean_oracle_gap_closed": i / 100}
             for i, name in enumerate(sorted(KNOWN))]  # fmt: skip
    mine = [{"method": f"mine{i}", "kind": "learned", "mean_oracle_gap_closed": None}
            for i in range(5)]  # fmt: skip
    oracle = {"method": "oracle", "kind": "bound", "mean_oracle_gap_closed": 1.0}
    found = styles({"summary": [*rules, *mine, oracle]})
    assert set(found) == KNOWN | {f"mine{i}" for i in range(5)} | {"oracle"}
    shown = [style for style in found.values() if style.shown]
    assert len(shown) == 5 + BEST_RULES + len(("full", "fixed", "oracle"))
    for one in ("colour", "dark"):
        assert len({(getattr(s, one), s.dash, s.marker) for s in found.values()}) == len(found)
        assert len({getattr(style, one) for style in shown}) >= len(shown) - 1
        paper = "#ffffff" if one == "colour" else "#0d1117"
        for style in shown:
            assert contrast(getattr(style, one), paper) >= 3
    # Without colour dashes and markers are left; full is a single point.
    learned = [style for name, style in found.items() if name.startswith("mine")]
    rest = [style for name, style in found.items() if style.shown and style not in learned]
    for kind in (learned, rest):
        assert len({(style.dash, style.marker) for style in kind}) == len(kind)


def contrast(colour: str, paper: str) -> float:
    """As WCAG 2 reckons it."""
    high, low = sorted((luminance(colour), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
