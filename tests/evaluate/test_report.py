"""The report in a real browser: it renders, hovering works, nothing leaves the file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from frozen_nets import random_policy
from synthetic import make_table, renamed
from trace_makers import make_trace

from rlbudget.agents.rules.about import ABOUT
from rlbudget.evaluate.about import about
from rlbudget.evaluate.evaluation import as_json, assess
from rlbudget.evaluate.figure import draw_frontier
from rlbudget.evaluate.palette import FAINT
from rlbudget.evaluate.report import MOST_CASES, Cases, cases_of, write_report
from rlbudget.evaluate.worth import Rates, served, worth
from rlbudget.files import json_ready
from rlbudget.policy.outcomes import NATURAL_END
from rlbudget.policy.replay import replay
from rlbudget.traces.columns import table_of
from rlbudget.traces.trace import Trace

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
STRANGE = '</script><script>alert(1)</script> <b>&amp; "quoted" \u2028 ∑'


def told_traces(n: int = 60) -> list[Trace]:
    """Traces with text; the full answer of every other one is right, the exits of the rest."""
    made = []
    for i in range(n):
        trace = make_trace(i, checkpoints=5)
        exits = tuple(
            replace(c, exit=replace(c.exit, exact_match=i % 2)) for c in trace.checkpoints
        )
        thinking = f"Quick look {STRANGE}" + " and on" * 20
        meta = {**trace.meta, "thinking": thinking, "cuts": [10, 20, 30, 40, 50]}
        final = replace(trace.final, exact_match=1 - i % 2)
        made.append(replace(trace, checkpoints=exits, meta=meta, final=final, question=STRANGE))
    return made


@pytest.fixture(scope="module")
def cases() -> Cases:
    return cases_of(random_policy(seed=3), told_traces(), 1e-2)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, cases: Cases) -> Path:
    train, held_out = renamed(make_table(150, seed=1), "a"), renamed(make_table(80, seed=2), "b")
    policies = {"mine": random_policy(seed=3)}
    done = assess(train, held_out, policies, draws=50)
    evaluation = as_json(done)
    way = served(evaluation, done, policies, held_out)
    evaluation |= worth(way, done.full, done.resampling, Rates(0.6, "$", 50.0))
    evaluation |= {"about": about(done.methods, policies), "notes": [STRANGE]}
    file = tmp_path_factory.mktemp("report") / "report.html"
    write_report(file, json_ready(evaluation), {"mine": cases}, 0.1)
    return file


def test_cases_are_the_answers_that_change(cases: Cases) -> None:
    traces = told_traces()
    stops = replay(random_policy(seed=3), table_of(traces), 1e-2).stops
    changed = [i for i, stop in enumerate(stops) if stop != NATURAL_END]
    assert cases.n_lost == sum(i % 2 == 0 for i in changed)
    assert cases.n_gained == sum(i % 2 == 1 for i in changed)
    assert len(cases.lost) == min(cases.n_lost, MOST_CASES)
    assert cases.natural == pytest.approx(1 - len(changed) / len(traces))
    assert sum(bin_["share"] for bin_ in cases.stops) == pytest.approx(len(changed) / len(traces))
    assert sum(bin_["checkpoints"] for bin_ in cases.calibration) == 5 * len(traces)
    shown = (cases.lost + cases.gained)[0]
    assert shown["before"] + shown["after"] == traces[0].meta["thinking"]


def test_contexts_divide_the_decodes() -> None:
    traces = [
        replace(trace, question="What is it, then? " * (1 + i % 7) + str(i), meta={"family": f})
        for i, (trace, f) in enumerate(zip(told_traces(), "ab" * 1000, strict=False))
    ]
    policy = random_policy(seed=3)
    done = replay(policy, table_of(traces), 1e-2).outcome
    contexts = cases_of(policy, traces, 1e-2).contexts
    by = {context.by for context in contexts}
    assert by == {"family", "length", "numbers", "clauses"} - ({"numbers"} - by)
    for name in by:
        groups = [context for context in contexts if context.by == name]
        assert len(groups) == (2 if name == "family" else len({g.group for g in groups})) > 1
        assert sum(group.traces for group in groups) == len(traces)
        together = sum(group.traces * group.tokens for group in groups) / len(traces)
        assert together == pytest.approx(done.thinking.mean())
        right = sum(group.traces * group.exact_match for group in groups) / len(traces)
        assert right == pytest.approx(done.exact_match.mean())


def test_the_file_is_small_and_names_no_other(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert len(text.encode()) < 5 * 2**20
    assert text.count("</script>") == 1
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", text)
    data = re.search(r"const report = (\{.*\});\n", text)
    assert data is not None
    assert json.loads(data.group(1))["evaluation"]["notes"] == [STRANGE]


def test_the_figure_has_the_colours_of_the_page(report: Path, tmp_path: Path) -> None:
    data = re.search(r"const report = (\{.*\});\n", report.read_text(encoding="utf-8"))
    assert data is not None
    shown = json.loads(data.group(1))
    draw_frontier(shown["evaluation"], tmp_path)
    drawing = (tmp_path / "frontier.svg").read_text()
    drawn = {line["method"] for line in shown["evaluation"]["frontier"]}
    for name, style in shown["styles"].items():
        if name in drawn and style["shown"]:
            assert f"stroke: {style['colour']}" in drawing, name
    hidden = {name for name in drawn if not shown["styles"][name]["shown"]}
    assert hidden
    assert f"stroke: {FAINT[0]}; stroke-width: 0.6" in drawing


@pytest.fixture
def page(report: Path) -> Iterator[tuple[Any, list[str], list[str]]]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium: install Debian's package")
    said: list[str] = []
    asked: list[str] = []
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        yield page, said, asked
        browser.close()


def test_it_renders_and_hovers_in_a_browser(page: tuple[Any, list[str], list[str]]) -> None:
    shown, said, asked = page
    dot = shown.locator("#frontier circle[data-method=mine]").first
    dot.scroll_into_view_if_needed()
    dot.hover(force=True)
    tip = shown.locator("#tip")
    tip.wait_for(state="visible")
    assert tip.inner_text().splitlines()[0] == "mine"
    assert "token price" in tip.inner_text()
    rows = shown.locator("#table tbody tr")
    assert rows.count() == len({*shown.evaluate("evaluation.summary.map((r) => r.method)")})
    before = shown.locator("#table").inner_text()
    shown.locator("#price").select_option("0.5")
    assert shown.locator("#table").inner_text() != before
    shown.locator("details summary").first.click()
    assert "stopped here" in shown.locator("details pre:has(.cut)").first.inner_text()
    assert STRANGE.split("<")[0] in shown.locator("details pre:has(.cut)").first.inner_text()
    assert said == []
    assert len(asked) == 1
    assert asked[0].startswith("file:")


def test_a_name_in_the_legend_hides_its_line(page: tuple[Any, list[str], list[str]]) -> None:
    shown, said, _ = page
    dots = shown.locator("#frontier circle[data-method=fixed]")
    assert dots.count() > 0
    name = shown.locator("#legend button", has_text="fixed")
    name.click()
    assert dots.count() == 0
    assert name.get_attribute("aria-pressed") == "false"
    assert said == []


def test_a_name_is_explained_under_the_pointer_and_under_the_keyboard(
    page: tuple[Any, list[str], list[str]],
) -> None:
    shown, said, _ = page
    tip = shown.locator("#tip")
    shown.locator("#legend button", has_text="fixed").hover()
    assert tip.inner_text() == ABOUT["fixed"]
    name = shown.locator("#table .term", has_text="fixed")
    name.focus()
    shown.mouse.wheel(0, 40)
    shown.wait_for_timeout(200)
    assert tip.is_visible()
    assert tip.inner_text() == ABOUT["fixed"]
    below = tip.bounding_box()["y"] - name.bounding_box()["y"]
    assert 0 < below < 60
    assert name.get_attribute("aria-describedby") == "tip"
    shown.keyboard.press("Escape")
    assert tip.is_hidden()
    assert said == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(
    page: tuple[Any, list[str], list[str]], width: int
) -> None:
    shown, said, _ = page
    shown.set_viewport_size({"width": width, "height": 800})
    shown.emulate_media(color_scheme="dark")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """[...document.querySelectorAll("svg text")].filter((text) => {
      const [box, sheet] = [text, text.ownerSVGElement].map((it) => it.getBoundingClientRect());
      return box.left < sheet.left - 1 || box.right > sheet.right + 1;
    }).map((text) => text.textContent)"""
    assert shown.evaluate(beyond) == []
    assert said == []


def test_money_and_time_have_tiles(page: tuple[Any, list[str], list[str]]) -> None:
    shown, _, _ = page
    tiles = shown.locator("#figures").inner_text()
    assert "to pay for 1,000 questions" in tiles
    assert "median" in tiles
