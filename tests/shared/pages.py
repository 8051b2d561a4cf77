"""README and the pages of docs/: their blocks of code, and how they are run."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlbudget.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = {file.name: file for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def page(name: str) -> str:
    """The text of a page, ``README.md`` or one of docs/."""
    return PAGES[name].read_text(encoding="utf-8")


def blocks(language: str, text: str) -> list[str]:
    """The blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Every command of the bash blocks in words: lines joined, comments gone, && parted."""
    found: list[list[str]] = []
    for block in blocks("bash", text):
        plain = re.sub(r"(^|\s)#.*$", "", block.replace("\\\n", " "), flags=re.MULTILINE)
        words = shlex.shlex(plain, posix=True, punctuation_chars="&\n")
        words.whitespace, words.whitespace_split, words.commenters = " \t", True, ""
        found.append([])
        for word in words:
            if set(word) <= {"&", "\n"}:
                found.append([])
            else:
                found[-1].append(word)
    return [command for command in found if command]


def script_of(module: str) -> Path:
    """The file of a script that is started by ``python -m``."""
    return ROOT / f"{module.replace('.', '/')}.py"


def run_command(words: list[str], folder: Path, changes: Mapping[str, str]) -> str:
    """Run an ``rlbudget`` command in a folder, some of its words changed; what it prints."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as said:
        main([changes.get(word, word) for word in words[1:]])
    return said.getvalue()


def run_block(code: str, folder: Path, known: dict[str, Any] | None = None) -> tuple[str, Any]:
    """Run a block of Python in a folder; what it prints, and the names that it leaves."""
    names: dict[str, Any] = {"__name__": "__main__"} if known is None else known
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, "example", "exec"), names)
    return said.getvalue(), names
