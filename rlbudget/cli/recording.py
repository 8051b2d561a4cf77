"""What makes traces: record, import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Annotated

import tyro

from rlbudget.cli.arguments import (
    File,
    Flag,
    Folder,
    N,
    Name,
    OptionalN,
    OptionalName,
    OptionalNumber,
)
from rlbudget.cli.asked import served
from rlbudget.cli.findings.decodes import of_profile
from rlbudget.cli.findings.examples import FirstAnswers
from rlbudget.cli.findings.finding import report
from rlbudget.cli.findings.recordings import of_recording
from rlbudget.cli.findings.survey import survey
from rlbudget.cli.through import Prices, Through, addresses, refuse_others, shard_of
from rlbudget.console import Told, note, progress
from rlbudget.decoding.record import record
from rlbudget.decoding.record_samples import record_samples
from rlbudget.decoding.shard import sharded, shards_for
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.tasks import Columns, Task, load_task
from rlbudget.traces.interchange import import_jsonl
from rlbudget.traces.shards import shard_folder
from rlbudget.traces.trace import PROBE_TOKENS


@dataclass(frozen=True)
class Record:
    """Record full decodes of a model, with the answer a stop at each checkpoint would give."""

    model: Name
    """"embedded", "smollm2", a folder of Hugging Face weights, a hub name, or the address of an
    OpenAI-compatible server, http://HOST:PORT/v1 (several with commas between them)."""
    task: Annotated[str, tyro.conf.arg(metavar="TASK")]
    """"embedded", "smollm2", "reasoning-gym:FAMILY", a FILE of questions, or its layout and the
    file: "gsm8k:FILE", "math:FILE", "squad:FILE". A FILE is .jsonl, .csv, .tsv, .parquet, or a
    folder that `datasets` saved."""
    out: Folder
    """Folder of the traces (Parquet parts)."""
    n: OptionalN = None
    """Questions to record, one decode each; all of a FILE if left out."""
    question_column: OptionalName = None
    """Column of the question in a FILE; dots reach into objects."""
    target_column: OptionalName = None
    """Column of the right answer: text, or the letter or index (from 0) of one of the options."""
    options_column: OptionalName = None
    """Column of the answers to choose from, a list of texts; by default "options" if there, ""
    for none."""
    id_column: OptionalName = None
    """Column that names the questions; by default "id" if there."""
    scorer: OptionalName = None
    """How answers are scored: auto, exact, text, number, math, choice, regex:PATTERN or
    python:PACKAGE.FUNCTION; by default as the task says."""
    skip_bad: Flag = False
    """Leave bad rows of a FILE out and count them, instead of stopping at the first."""
    profile: OptionalName = None
    """How the model is prompted and made to answer: embedded, smollm2, think or plain."""
    stride: OptionalN = None
    """Thinking tokens between checkpoints; by default the profile's."""
    max_tokens: OptionalN = None
    """Hard cap on thinking tokens; by default the profile's."""
    temperature: OptionalNumber = None
    """Sampling temperature, 0 for greedy; by default the profile's."""
    samples: OptionalN = None
    """Draw so many samples of each question instead, to learn when to stop drawing."""
    probe_tokens: N = PROBE_TOKENS
    """Tokens of the trial answer recorded at each checkpoint, 0 for none."""
    batch_size: N = 128
    """Decodes at once; halved where the memory runs out."""
    device: OptionalName = None
    """cpu, cuda, cuda:1, mps, or auto to spread the layers over all devices; by default the first
    CUDA device, else the CPU."""
    dtype: OptionalName = None
    """float32, bfloat16 or float16; by default that of the weights."""
    store_text: Flag = False
    """Keep the text of the thinking in the traces."""
    text_signals: Flag = False
    """Record the signals of the text as well, to train for servers without log-probabilities."""
    seed: N = 0
    """Seed of the questions and of the sampling."""
    resume: Flag = False
    """Continue with the traces that are in the folder."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N", help_behavior_hint="")] = None
    """Record the I-th of N parts of the questions alone, into a folder of its own below --out; goes
    on with what is there. Put them together by `rlbudget traces merge`."""
    ray: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(metavar="[ADDRESS]", help_behavior_hint="")
    ] = None
    """Record shards on the workers of a Ray cluster, by default one that is started here; goes on
    with what is there. Needs `rlbudget[ray]`."""
    workers: N = 2
    """Workers of --ray."""
    dry_run: Flag = False
    """Record 20 questions through the server and say what all will cost."""
    input_price: OptionalNumber = None
    """Money for a million prompt tokens of the server, to say what it costs."""
    cached_price: OptionalNumber = None
    """Money for a million of those that the server had cached; by default the same."""
    output_price: OptionalNumber = None
    """Money for a million tokens that the server wrote."""
    server: tyro.conf.OmitArgPrefixes[Through] = field(default_factory=Through)

    def execute(self) -> None:
        """Run it."""
        if self.samples is not None:
            self._refuse_exits()
        urls, shard = addresses(self.model), shard_of(self.shard)
        refuse_others(self, urls, ("device", "dtype", "samples", "batch_size"))
        if not urls and self.dry_run:
            raise UserError("--dry-run is for a server: name its address as --model")
        bad, left_out = Told("bad row"), Told("question")
        task, command = self.questions(bad), self
        if self.ray is not None:
            self._over_ray(task)
            return
        if shard is not None:
            task = sharded(task, shard)
            part = shard_folder(self.out, shard)
            command = replace(self, out=part, resume=True)
            if not task.questions:
                part.mkdir(parents=True, exist_ok=True)
                note(f"no question falls into shard {shard[0]}/{shard[1]}: {part} stays empty")
                return
        command._record(task, urls, bad, left_out)

    def _record(self, task: Task, urls: Sequence[str], bad: Told, left_out: Told) -> None:
        if urls:
            self._through(urls, task, bad, left_out)
            return
        model = load_model(self.model, profile=self.profile, device=self.device, dtype=self.dtype)
        report(of_profile(model.name, model.profile.name, model.chosen_by))
        first = FirstAnswers(report)
        if self.samples is not None:
            with progress("Sampling") as advance:
                stats = record_samples(
                    model, task, self.out, samples=self.samples, max_tokens=self.max_tokens,
                    temperature=self.temperature, seed=self.seed,
                    batch_size=self.batch_size, resume=self.resume, progress=advance,
                    on_left_out=left_out, on_trace=first.take, on_halved=note,
                )  # fmt: skip
            what = "questions sampled"
        else:
            with progress("Recording") as advance:
                stats = record(
                    model, task, self.out, stride=self.stride, max_tokens=self.max_tokens,
                    temperature=self.temperature, probe_tokens=self.probe_tokens, seed=self.seed,
                    batch_size=self.batch_size, store_text=self.store_text,
                    text_signals=self.text_signals, resume=self.resume,
                    progress=advance, on_left_out=left_out, on_trace=first.take,
                    on_halved=note,
                )  # fmt: skip
            what = "traces recorded"
        first.flush()
        note(f"{stats.n} {what} to {self.out}{bad}{left_out}")
        report(of_recording(survey(self.out), stats))

    def _over_ray(self, task: Task) -> None:
        """Have the shards recorded by the same command elsewhere."""
        if self.shard is not None or self.dry_run or self.ray is None or len(self.ray) > 1:
            raise UserError("--ray takes one address or none, and no --shard and no --dry-run")
        if self.workers < 1:
            raise UserError("--workers is 0: it must be at least 1")
        over = import_module("rlbudget.cli.over_ray")  # needs ray
        n = shards_for(task, self.out, self.workers)
        command = replace(self, ray=None, out=self.out.resolve())
        with progress("Recording shards") as advance:
            wrong = over.record_over_ray(
                command,
                n,
                address=next(iter(self.ray), None),
                workers=self.workers,
                on_done=advance,
            )
        for place, problem in wrong:
            note(f"shard {place}/{n}: {problem}")
        if wrong:
            raise UserError(f"{len(wrong)} of {n} shards are not whole: run this command again")
        note(f"{n} shards in {self.out}; put them together: rlbudget traces merge {self.out} --out"
             " FOLDER")  # fmt: skip

    def _refuse_exits(self) -> None:
        """Samples have no exits: what speaks of theirs is refused, not ignored."""
        given = {
            "--store-text": self.store_text,
            "--stride": self.stride is not None,
            "--probe-tokens": self.probe_tokens != PROBE_TOKENS,
        }
        for name, is_given in given.items():
            if is_given:
                raise UserError(f"{name} is not for --samples: a sample is its answer alone")

    def _through(self, urls: Sequence[str], task: Task, bad: Told, left_out: Told) -> None:
        """Record through servers."""
        through = served()
        through.record_through(
            through.served_of(urls, self.server, self.profile), task, self.out, dry=self.dry_run,
            prices=Prices(self.input_price, self.cached_price, self.output_price),
            bad=bad, left_out=left_out, stride=self.stride, max_tokens=self.max_tokens,
            temperature=self.temperature, probe_tokens=self.probe_tokens, seed=self.seed,
            store_text=self.store_text, text_signals=self.text_signals, resume=self.resume,
        )  # fmt: skip

    def questions(self, on_bad: Callable[[str], None]) -> Task:
        """The task to record; rows left out are told to ``on_bad``."""
        return load_task(
            self.task,
            n=self.n,
            seed=self.seed,
            columns=Columns(
                self.question_column, self.target_column, self.options_column, self.id_column
            ),
            scorer=self.scorer,
            skip_bad=self.skip_bad,
            on_bad=on_bad,
        )


@dataclass(frozen=True)
class Import:
    """Import traces of any model from the JSONL interchange."""

    file: tyro.conf.Positional[File]
    """The JSONL file, one trace a line."""
    out: Folder
    """Folder of the traces (Parquet parts)."""
    skip_bad: Flag = False
    """Leave bad lines out and count them, instead of stopping at the first."""
    scorer: OptionalName = None
    """What scores answers without "exact_match": auto, exact, text, number, math, choice,
    regex:PATTERN or python:PACKAGE.FUNCTION; by default the line's meta.scorer, or that of its
    task."""

    def execute(self) -> None:
        """Run it."""
        with progress("Importing") as advance:
            stats = import_jsonl(
                self.file,
                self.out,
                skip_bad=self.skip_bad,
                scorer=self.scorer,
                progress=advance,
            )
        bad = Told("bad line")
        for problem in stats.problems:
            bad(problem)
        bad.n = stats.bad
        note(f"{stats.n} traces imported to {self.out}{bad}")
        report(of_recording(survey(self.out)))
