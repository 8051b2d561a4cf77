"""How many recorded questions a policy needs: the embedded model and SmolLM2, cut to few.

    python -m runs.quality.few_questions [--traces FOLDER] [--n 3600] [--units FILE]
        [--numbers 10 20] [--sizes 250 60 1000 120 500] [--presets free] [--rivals] [--report]

A cut is so many questions drawn from those that are not held out; everything is trained and tuned
on them and measured on the same held-out ones. A unit, one cut in one preset, is added to
``--units`` as it is made, and units that are there are not made again, so a run may be ended and
gone on with; ``--report`` makes none and reports those there are. Cuts 0 and 1 chose the method
(``agents.members``, ``agents.doubt``) and are left out by default. Writes
``runs/results/few_questions.json`` and the plot beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlbudget.policy.observation import Preset
from runs.common import OUT, RESULTS, parser_of, recorded, row, write_result
from runs.quality.cuts import Cut, cuts, gaps, make, record_of, units_in

SIZES = (250, 60, 1000, 120, 500)
PRESETS: tuple[Preset, ...] = ("free", "probe", "turns")
SOURCES = ("embedded", "smollm2")
OWN = ("ensemble", "one ppo", "oracle", "fitted-q", "exact-pg")
RIVALS = ("fitted-q", "exact-pg")
AGAINST_RIVALS: tuple[Preset, ...] = ("free", "probe")
DRAWN = {
    "ensemble": ("ensemble", "#0969da", "-"),
    "one ppo": ("one PPO", "#8250df", "-"),
    "best rule": ("best rule in hindsight", "#57606a", "-"),
    "rule by price": ("rule chosen on the training questions", "#57606a", ":"),
}
MANY = 10
"""cuts of each kind that a verdict needs"""

Units = list[dict[str, Any]]


def main() -> None:
    """Make units, put them together, draw, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--units", type=Path, default=OUT / "cuts" / "few.jsonl")
    parser.add_argument("--numbers", type=int, nargs=2, default=(10, 20), help="of cuts")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--rivals", action="store_true", help="fitted-Q and exact gradient, too")
    parser.add_argument("--report", action="store_true", help="make no more units")
    args = parser.parse_args()
    if not args.report:
        with tempfile.TemporaryDirectory() as scratch:
            traces = recorded(args.traces, Path(scratch), args.n)
            made = units_in(args.units)
            for cut in _cuts(traces, args):
                make(cut, args.units, made, with_rivals=args.rivals)
    units = [one for one in units_in(args.units).values() if one.get("source") in SOURCES]
    grouped: dict[tuple[str, str, int], Units] = defaultdict(list)
    for unit in units:
        grouped[unit["source"], unit["preset"], unit["size"]].append(unit)
    means = {"/".join(map(str, key)): _means(of) for key, of in sorted(grouped.items())}
    draw(means, RESULTS / "few_questions.svg")
    write_result(
        "few_questions",
        [*_against(grouped), *_promises(units)],
        cuts={"/".join(map(str, key)): len(of) for key, of in sorted(grouped.items())},
        mean_gap_closed=means,
        figure="few_questions.svg",
    )


def _cuts(traces: Path, args: argparse.Namespace) -> Iterator[Cut]:
    """One cut of each kind, then the next: what there is is of all kinds when it is ended."""
    tables = {source: record_of(source, traces) for source in SOURCES}
    for number in range(*args.numbers):
        for size in args.sizes:
            for preset in args.presets:
                for source, table in tables.items():
                    yield from cuts(source, table, preset, size, range(number, number + 1))


def _gap(unit: dict[str, Any], name: str) -> float:
    sums = {n: np.array(of) for n, of in unit["utility"].items()}
    return float(gaps(sums, name).mean())


def _means(of: Units) -> dict[str, float]:
    """Mean gap closed by what there is in all units, and by the rule that was best in hindsight."""
    names = set.intersection(*(set(unit["utility"]) for unit in of))
    means = {name: float(np.mean([_gap(unit, name) for unit in of])) for name in sorted(names)}
    rules = {name: mean for name, mean in means.items() if name not in OWN}
    return {**means, "best rule": max(rules.values())}


def _against(grouped: dict[tuple[str, str, int], Units]) -> list[dict[str, Any]]:
    rows, wanted = [], ", fitted-Q - .01 and exact-pg - .01"
    for (source, preset, size), of in sorted(grouped.items()):
        whole = [unit for unit in of if all(name in unit["utility"] for name in RIVALS)]
        asked = preset in AGAINST_RIVALS
        if asked and len(whole) >= MANY:
            of = whole
        means = _means(of)
        least = max(means["best rule"], means["one ppo"])
        enough = len(of) >= MANY and (not asked or of is whole)
        least = max([least, *(means[name] - 0.01 for name in RIVALS if name in means)])
        shown = "".join(f", {name} {means[name]:.3f}" for name in RIVALS if name in means)
        few = "" if len(of) >= MANY else f" ({len(of)} cuts only)"
        if asked and of is not whole:
            few = f"{few}; the rivals on {len(whole)} cuts only"
        rows.append(
            row(
                f"{source}, {preset}, {size} questions: mean gap closed, mean of 10 cuts",
                f">= the best rule in hindsight, one PPO{wanted if asked else ''}",
                f"{means['ensemble']:.3f}; best rule {means['best rule']:.3f} (the one chosen on"
                f" the training questions {means['rule by price']:.3f}), one PPO"
                f" {means['one ppo']:.3f}{shown}{few}",
                means["ensemble"] >= least and enough,
            )
        )
    return rows


def _promises(units: Units) -> list[dict[str, Any]]:
    """The out-of-fold interval, and the effort that may lose a point on cuts of 250 questions."""
    covered = [
        low <= _gap(unit, "ensemble") <= high
        for unit in units
        for low, high in [unit["promised"]["oracle_gap_closed_ci90"]]
        if low is not None
    ]
    seconds = [unit["seconds"] for unit in units if unit["size"] == 250]
    points = [unit["points"]["medium"] for unit in units if unit["size"] == 250]
    kept = [point["lost"] <= point["may_lose"] for point in points]
    few = " (too few cuts)"
    return [
        row(
            "the out-of-fold estimate's 90% interval covers the held-out gap closed",
            "80% to 97% of 100 cuts",
            f"{sum(covered)} of {len(covered)}{few if len(covered) < 100 else ''}",
            len(covered) >= 100 and 0.8 <= float(np.mean(covered)) <= 0.97,
        ),
        row(
            "effort medium of 250 questions (may lose a point): held-out loss within the point",
            "in >= 85% of 100 cuts",
            f"{sum(kept)} of {len(kept)}, {np.mean([p['saved'] for p in points] or [0]):.0%} saved"
            f"{few if len(kept) < 100 else ''}",
            len(kept) >= 100 and float(np.mean(kept)) >= 0.85,
        ),
        row(
            "training of 250 questions",
            "<= 60 s on 2 cores",
            f"at most {max(seconds, default=0):.1f} s of one processor",
            0 < max(seconds, default=0) <= 60,
        ),
    ]


def draw(means: dict[str, dict[str, float]], file: Path) -> None:
    """One line a method over the number of questions, a panel for each source and preset."""
    panels = sorted({key.rpartition("/")[0] for key in means})
    if not panels:
        return
    columns = len({panel.partition("/")[2] for panel in panels})
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes_of = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, panel in zip(axes_of, panels, strict=False):
        sizes = sorted(int(k.rpartition("/")[2]) for k in means if k.rpartition("/")[0] == panel)
        for name, (label, colour, dash) in DRAWN.items():
            values = [means[f"{panel}/{size}"][name] for size in sizes]
            axes.plot(sizes, values, f"o{dash}", color=colour, label=label)
        axes.axhline(0, color="#57606a", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_title(panel.replace("/", ", "), loc="left")
        axes.set_xlabel("recorded questions")
        axes.spines[["top", "right"]].set_visible(False)
    axes_of[0].set_ylabel("mean oracle gap closed, held out")
    handles, labels = axes_of[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
