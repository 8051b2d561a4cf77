"""What a model, a server or a file says never reaches a terminal raw; no message shows a key."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from rich.table import Table

from rlbudget.cli.main import _Warned, main
from rlbudget.console import Told, note, plain_table, progress, show, tell, tell_json
from rlbudget.errors import one_line, visible, without_keys

EVIL = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202egnp.exe\u2066\u200e\x7f\b"


def _is_safe(shown: str) -> bool:
    return "".join(EVIL.split("31m")[0]) not in shown and not any(
        character in shown for character in "\x1b\x07\r\x9b\u202e\u2066\u200e\x7f\b"
    )


def test_every_way_to_show_a_text_escapes_what_controls_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell(EVIL)
    note(EVIL)
    Told("row")(EVIL)
    with progress(EVIL) as advance:
        advance(1, 1)
    shown = capsys.readouterr()
    assert _is_safe(shown.out)
    assert _is_safe(shown.err)
    assert r"\x1b[2J" in shown.out


def test_a_table_escapes_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    show(plain_table(["name", EVIL], [[EVIL, "1"]]), on=Console(width=200))
    styled = Table(title=EVIL)
    styled.add_column(EVIL)
    show(styled, on=Console(width=200))
    assert _is_safe(capsys.readouterr().out)


def test_json_keeps_the_true_text(capsys: pytest.CaptureFixture[str]) -> None:
    tell_json({"answer": EVIL})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"answer": EVIL}
    assert _is_safe(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("POST http://user:pw@host/v1 failed", "POST http://***@host/v1 failed"),
        ("at https://h/v1?api_key=abc&n=1", "at https://h/v1?api_key=***&n=1"),
        ("at https://h/v1?a=1&access_token=abc", "at https://h/v1?a=1&access_token=***"),
        ("Authorization: Bearer abcdefgh12", "Authorization: Bearer ***"),
        ("a bearer of news", "a bearer of news"),
        ("mail me@home", "mail me@home"),
    ],
)
def test_a_message_hides_keys(text: str, shown: str) -> None:
    assert without_keys(text) == shown
    assert one_line(text) == shown


def test_a_long_message_is_cut_and_made_safe_in_no_time() -> None:
    assert len(one_line("x" * 10**6)) < 3000
    for text in ("://" * 10**5, "?" * 10**5, "bearer " * 10**4, "a" * 10**6 + "@"):
        without_keys(text)
        visible(text)


def test_a_mistake_quotes_a_file_without_its_control_characters_and_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "q.jsonl"
    rows = ({"id": EVIL, "question": name, "target": "1"} for name in "qr")
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit) as stop:
        main(["record", "--model", "http://u:secret@127.0.0.1:9/v1?api_key=hidden",
              "--task", str(file), "--out", str(tmp_path / "t")])  # fmt: skip
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert _is_safe(shown)
    assert "secret" not in shown
    assert "hidden" not in shown
    assert len(shown.splitlines()) == 1
    with pytest.raises(SystemExit):
        main(["decode", "--no-such", "http://u:secret@h/v1"])
    assert "secret" not in capsys.readouterr().err


def test_warnings_of_the_library_are_shown_in_one_safe_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log, warned = logging.getLogger("rlbudget"), _Warned()
    log.addHandler(warned)
    log.warning("it said %s", EVIL + "http://u:secret@h\nmore")
    log.removeHandler(warned)
    shown = capsys.readouterr().err
    assert _is_safe(shown)
    assert "secret" not in shown
    assert len(shown.splitlines()) == 1
