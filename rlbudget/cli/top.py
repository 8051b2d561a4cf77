"""The help of the whole command: plain text that fits 80 columns."""

from __future__ import annotations

from difflib import get_close_matches

from rlbudget.cli.catalogue import ENTRIES, GROUPS, Entry

_HEAD = """usage: rlbudget COMMAND [OPTIONS]

Learn when a reasoning model may stop thinking."""

_FOOT = """FOLDER and FILE are paths, N is a whole number, X a number, SHARE one from 0 to
1. Lengths, strides and budgets are in tokens. PRICE is a token price: the exact
match that a token costs (2e-4: a right answer is worth 5,000 tokens).

  rlbudget COMMAND --help  the options of a command, with their units
  rlbudget --version       the version"""


def top_help(under: str = "") -> str:
    """Every subcommand in its group, or those whose name begins with the word ``under``."""
    parts = [_HEAD]
    for title, group in GROUPS:
        shown = [_lines(entry) for entry in group if entry.name.startswith(under)]
        if shown:
            parts.append("\n".join([f"{title}:", *shown]))
    return "\n\n".join([*parts, _FOOT])


def _lines(entry: Entry) -> str:
    return f"  {entry.name:<18} {entry.line}\n      rlbudget {entry.example}"


def unknown(typed: str) -> str:
    """What to say of a command that is none, with the nearest one where there is one near."""
    near = get_close_matches(typed, [*ENTRIES, *groups()], n=1)
    meant = f"did you mean {near[0]}?" if near else "see rlbudget --help"
    return f"no command {typed!r}; {meant}"


def groups() -> dict[str, list[str]]:
    """The first word of the commands of two words -> the second words."""
    found: dict[str, list[str]] = {}
    for name in ENTRIES:
        first, _, second = name.partition(" ")
        if second:
            found.setdefault(first, []).append(second)
    return found
