"""The ``rlbudget`` command: finds the subcommand, parses its arguments with tyro, runs it.

A subcommand is a dataclass with ``execute``. Its module is imported only when it is asked for, so
the help of the whole command is there at once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn, Protocol

import tyro

from rlbudget.cli.catalogue import ENTRIES, Entry, groups, top_help, unknown
from rlbudget.cli.layout import plain_help
from rlbudget.errors import UserError, missing_package, one_line

_HELP = ("-h", "--help")


class Command(Protocol):
    """The parsed arguments of a subcommand."""

    def execute(self) -> None:
        """Run it."""


class _Warned(logging.Handler):
    """Shows the warnings of the library's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line on stderr."""
        print(f"rlbudget: {one_line(record.getMessage())}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit status 2 and one line on stderr for a user's mistake."""
    _spell_what_streams_cannot()
    log = logging.getLogger("rlbudget")
    warned = _Warned()
    log.addHandler(warned)
    try:
        parse(arguments).execute()
        sys.stdout.flush()
    except UserError as mistake:
        fail(str(mistake))
    except ModuleNotFoundError as error:
        said = missing_package(error)
        if said is None:
            raise
        fail(str(said))
    except BrokenPipeError:
        _leave_the_pipe()
    except OSError as fault:
        where = f": {fault.filename}" if fault.filename else ""
        fail(f"{fault.strerror or fault}{where}")
    except KeyboardInterrupt as interrupt:
        kept = str(interrupt) or "what was written is kept"
        print(f"rlbudget: interrupted; {kept}", file=sys.stderr)
        sys.exit(130)
    finally:
        log.removeHandler(warned)


def _spell_what_streams_cannot() -> None:
    """Characters that the encoding of stdout or stderr lacks are written as escapes.

    A model's answer may hold any character, and a pipe may be in cp1252.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave_the_pipe() -> NoReturn:
    """The reader of stdout, such as ``head``, has closed it: end without a message."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def fail(message: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    print(f"rlbudget: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def parse(arguments: Sequence[str] | None = None) -> Command:
    """Parse a command line; ends the process after a help or the version.

    Raises ``UserError`` for a mistake.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        raise UserError("no command given; see rlbudget --help")
    first = words[0]
    if first in _HELP:
        _say(top_help())
    if first == "--version":
        _say(f"rlbudget {version('rlbudget')}")
    entry, rest = _find(words)
    return _parsed(entry, rest)


def _say(text: str) -> NoReturn:
    print(text, flush=True)
    sys.exit(0)


def _find(words: Sequence[str]) -> tuple[Entry, Sequence[str]]:
    """The subcommand, of one word or two, and its arguments."""
    for n in (1, 2):
        if entry := ENTRIES.get(" ".join(words[:n])):
            return entry, words[n:]
    first, second = words[0], next(iter(words[1:]), None)
    seconds = groups().get(first)
    if seconds is None:
        raise UserError(unknown(first))
    if second is None:
        raise UserError(f"{first} takes one of: {', '.join(seconds)}; see rlbudget {first} --help")
    if second in _HELP:
        _say(top_help(under=f"{first} "))
    raise UserError(unknown(f"{first} {second}"))


def _parsed(entry: Entry, arguments: Sequence[str]) -> Command:
    """The arguments of a subcommand. tyro's boxed message becomes one line."""
    kind: type[Command] = getattr(import_module(f"rlbudget.cli.{entry.module}"), entry.arguments)
    written, mistake = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(mistake):
            return tyro.cli(
                kind,
                prog=f"rlbudget {entry.name}",
                description=f"{kind.__doc__}\n\nExample: rlbudget {entry.example}",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code == 0:
            print(plain_help(written.getvalue()), end="", flush=True)
            raise
        raise UserError(
            f"{_one_line(mistake.getvalue())}; see rlbudget {entry.name} --help"
        ) from None


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
    return "; ".join(said)


if __name__ == "__main__":
    main()
