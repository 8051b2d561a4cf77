"""What trainings of every kind share in TensorBoard: names, charts, settings, the folder.

A run's events lie in a folder within the run's, whose name TensorBoard shows: preset, questions,
seed. Groups are numbered in the order in which a person asks. Under Custom Scalars stand a few
charts, under HParams what a person varies, under Text the settings in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat, configure

from rlbudget.agents.validation import Score

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GAP = "1 gap closed"
"""0 is the best constant budget, 1 the oracle, which knows the answers"""
GIVES = "2 answers and tokens"
"""means over the relative prices"""
PRICES = "4 by relative price"
RESULT = "5 result"
BESIDE = "6 to compare with"
NAMES: Mapping[str, str] = {
    "oracle_gap_closed": f"{GAP}/now",
    "exact_match": f"{GIVES}/exact match",
    "tokens": f"{GIVES}/tokens a question",
    "utility": f"{GIVES}/exact match less the price of the tokens",
}
"""number of ``validation.Score`` -> its curve"""
BEST_GAP = f"{GAP}/best so far"
FRONTIER = f"{GIVES}/exact match against tokens"
FULL = {"exact_match": f"{BESIDE}/exact match of the full decode",
        "tokens": f"{BESIDE}/tokens of the full decode"}  # fmt: skip
VARIED = ("preset", "questions", "seed", "members", "total_timesteps")
"""settings that a person compares runs by; TensorBoard shows five at once"""
POLICY, RULE, INK = "#0969da", "#b3420a", "#1f2328"
Layout = Mapping[str, Mapping[str, list[Any]]]
"""category -> chart -> its kind and expressions for its curves"""


def lines(*curves: str) -> list[Any]:
    """A chart of these curves and no others. TensorBoard takes names for the beginnings of
    regular expressions; "/.*" at the end of one stays one."""  # fmt: skip
    return ["Multiline", [f"{curve}$" for curve in curves]]


WORTH = "1 Is it worth it?"
GIVES_CHARTS: Layout = {
    "2 What does it save, what does it lose?": {
        "tokens a question, beside the full decode": lines(NAMES["tokens"], FULL["tokens"]),
        "exact match, beside the full decode": lines(NAMES["exact_match"], FULL["exact_match"]),
        "exact match less the price of the tokens": lines(NAMES["utility"]),
    },
}
"""of every training: charts that are the same in two runs stand in one place"""


def run_name(run: Mapping[str, Any]) -> str:
    """Of what ``run.json`` holds."""
    return f"{run['preset']}-{run['traces']['n_train_questions']}-questions-seed-{run['seed']}"


def open_log(run_dir: Path, run: Mapping[str, Any], *, anew: bool = False) -> Logger:
    """A logger into the folder of a run's events; ``anew`` deletes those of a training that was
    interrupted and begins again."""  # fmt: skip
    folder = run_dir / run_name(run)
    if anew:
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
    return configure(str(folder), ["tensorboard"])


def writers(logger: Logger) -> list[SummaryWriter]:
    """TensorBoard's own writers of a logger."""
    formats = logger.output_formats
    return [one.writer for one in formats if isinstance(one, TensorBoardOutputFormat)]


def describe_run(
    logger: Logger, run: Mapping[str, Any], layout: Layout, metrics: tuple[str, ...]
) -> None:
    """Write charts and settings; ``metrics`` are curves whose last value HParams shows."""
    settings = {"questions": run["traces"]["n_train_questions"]}
    settings |= {k: v for k, v in run["config"].items() if v is not None}
    plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
    varied = {name: plain[name] for name in VARIED if name in plain}
    logger.record("hparams", HParam(varied, dict.fromkeys(metrics, 0.0)))
    rows = "".join(f"| {name} | {value} |\n" for name, value in plain.items())
    for writer in writers(logger):
        writer.add_custom_scalars(layout)
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")


def write_levels(logger: Logger, levels: Mapping[str, float | None], step: int) -> None:
    """What does not depend on the training, as level lines up to a step."""
    for writer in writers(logger):
        for name, value in levels.items():
            if value is not None:
                writer.add_scalar(name, value, 0)
                writer.add_scalar(name, value, step)


def frontier_figure(score: Score, title: str, full: Mapping[str, float] | None = None) -> Figure:
    """Exact match against tokens, one point a price; ``full`` are the means of full decodes."""
    figure = Figure(figsize=(7, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    tokens = [result.tokens for result in score.prices]
    axes.plot(tokens, [100 * result.exact_match for result in score.prices], "o-", color=POLICY)
    for result in score.prices:
        axes.annotate(
            f"{result.relative_price:g}", (result.tokens, 100 * result.exact_match),
            xytext=(5, -12), textcoords="offset points", fontsize=9,
        )  # fmt: skip
    if full is not None:
        axes.plot(full["tokens"], 100 * full["exact_match"], "D", color=INK)
        axes.annotate("full decode", (full["tokens"], 100 * full["exact_match"]), xytext=(0, 8),
                      textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    axes.set_xlabel("tokens a question, all counted")
    axes.set_ylabel("exact match, %")
    axes.set_title(title, loc="left")
    axes.margins(x=0.08, y=0.15)
    axes.set_xlim(left=0)
    return figure
