"""The ``rlbudget`` command: one dataclass a subcommand (``rlbudget.commands``), parsed by tyro."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from rlbudget.cli.cascades import TrainCascade
from rlbudget.cli.correcting import Correct
from rlbudget.cli.learning import Calibrate, Evaluate, Freeze, Train
from rlbudget.cli.loop import Feedback, Harvest, RegistryCommand, Retrain, Stream
from rlbudget.cli.recording import Import, Quickstart, Record
from rlbudget.cli.scoring import Score
from rlbudget.cli.serving import Decode, Rules
from rlbudget.cli.steering import Blend, Impact
from rlbudget.console import spell_what_streams_cannot
from rlbudget.errors import UserError, missing_package

Command = (
    Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
    | Annotated[Record, tyro.conf.subcommand("record")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Score, tyro.conf.subcommand("score")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Freeze, tyro.conf.subcommand("freeze")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
    | Annotated[Impact, tyro.conf.subcommand("impact")]
    | Annotated[Blend, tyro.conf.subcommand("blend")]
    | Annotated[TrainCascade, tyro.conf.subcommand("cascade")]
    | Annotated[Correct, tyro.conf.subcommand("correct")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Rules, tyro.conf.subcommand("rules")]
    | Annotated[Feedback, tyro.conf.subcommand("feedback")]
    | Annotated[Stream, tyro.conf.subcommand("stream")]
    | Annotated[Harvest, tyro.conf.subcommand("harvest")]
    | Annotated[Retrain, tyro.conf.subcommand("retrain")]
    | Annotated[RegistryCommand, tyro.conf.subcommand("registry")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit status 2 and one line on stderr for a user's mistake."""
    spell_what_streams_cannot()
    command = parse(arguments)
    try:
        command.execute()
    except UserError as mistake:
        fail(str(mistake))
    except ModuleNotFoundError as error:
        said = missing_package(error)
        if said is None:
            raise
        fail(str(said))
    except OSError as fault:
        where = f": {fault.filename}" if fault.filename else ""
        fail(f"{fault.strerror or fault}{where}")
    except KeyboardInterrupt:
        print("rlbudget: interrupted; what was written is kept", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> None:
    """One line on stderr, exit status 2."""
    print("rlbudget: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def parse(arguments: Sequence[str] | None = None) -> Command:
    """Parse a command line. tyro's boxed message becomes one line."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(
                Command,
                prog="rlbudget",
                description="Learn when a reasoning model may stop thinking.",
                args=arguments,
                config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        fail(_one_line(shown.getvalue()))
        raise


def _one_line(boxed: str) -> str:
    """What tyro's box says, without its frame, its help texts and its pointer to the help.

    Where stdout is no UTF-8 tyro draws the frame with spaces and dashes, the title inside it.
    """
    plain = "\u2502" not in boxed
    rows = boxed.splitlines()[2:] if plain else boxed.splitlines()
    lines = [row[2:-1].rstrip() for row in rows if row.startswith(" " if plain else "\u2502")]
    sections = re.split(r"\n?(?:\u2500|-){9,}\n?", "\n".join(lines))
    said = [
        " ".join(line.strip() for line in section.splitlines() if not line.startswith(" " * 6))
        for section in sections
        if section and not section.startswith(("Argument helptext", "For full helptext"))
    ]
    return "; ".join(said) + "; see --help"


if __name__ == "__main__":
    main()
