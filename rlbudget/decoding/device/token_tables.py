"""What a token does to a text, looked up instead of decoded: for decodes that stay on a device.

``Request`` decodes the last few tokens to see whether they spell the end of the thinking and
whether a character is whole. Both are questions of a small automaton over the text, and what a
token does to its state can be tabled for a whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlbudget.arrays import Bools, Ints

_BYTE_LEVEL = [*range(33, 127), *range(161, 173), *range(174, 256)]
"""The bytes that byte-level tokenizers write as the character of the same number; the others are
written as the characters from 256 on, in order."""


@dataclass(frozen=True, slots=True)
class TokenTables:
    """Automata over tokens; state 0 is where every decode begins."""

    end: Ints
    """(states, vocabulary) -> next state: how much of the end text the text ends with; the last
    state, from which nothing leads away, is all of it"""
    character: Ints
    """(9, vocabulary) -> next state: what the last character still lacks; 0 if it is whole"""
    blank: Bools
    """(vocabulary,): whether a token is white space alone"""


def token_tables(pieces: Sequence[str], end_text: str) -> TokenTables:
    """The tables of a vocabulary; ``pieces`` are its tokens as the tokenizer spells them."""
    byte_level = any(_SPACE in piece for piece in pieces)
    spelled = [_bytes(piece, byte_level) for piece in pieces]
    return TokenTables(
        end=_table(spelled, _matcher(end_text.encode())),
        character=_table(spelled, _lacking()),
        blank=np.array([not token.strip() for token in spelled], dtype=bool),
    )


def _bytes(piece: str, byte_level: bool) -> bytes:
    if byte_level and all(character in _FROM_BYTE_LEVEL for character in piece):
        return bytes(_FROM_BYTE_LEVEL[character] for character in piece)
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("\u2581", " ").encode()


def _byte_level() -> dict[str, int]:
    others = [byte for byte in range(256) if byte not in set(_BYTE_LEVEL)]
    return {chr(b): b for b in _BYTE_LEVEL} | {chr(256 + i): b for i, b in enumerate(others)}


_FROM_BYTE_LEVEL = _byte_level()
_SPACE = "\u0120"


def _matcher(text: bytes) -> Ints:
    """(len(text) + 1, 256): the longest beginning of ``text`` that what was read ends with."""
    states = np.zeros((len(text) + 1, 256), dtype=np.int64)
    back = 0
    for state, byte in enumerate(text):
        states[state] = states[back]
        states[state, byte] = state + 1
        back = states[back, byte] if state else 0
    states[len(text)] = len(text)
    return states


def _lacking() -> Ints:
    """(9, 256), UTF-8: 0 whole, 1 to 3 the bytes still to come, 4 no character can come of it,
    5 to 8 after the first bytes that narrow the second one down."""  # fmt: skip
    states = np.zeros((9, 256), dtype=np.int64)
    states[:, 0x80:] = 4
    for state in (1, 2, 3):
        states[state, 0x80:0xC0] = state - 1
    states[5, 0xA0:0xC0], states[6, 0x80:0xA0] = 1, 1
    states[7, 0x90:0xC0], states[8, 0x80:0x90] = 2, 2
    states[:, 0xC2:0xE0], states[:, 0xE0:0xF0], states[:, 0xF0:0xF5] = 1, 2, 3
    for state, byte in ((5, 0xE0), (6, 0xED), (7, 0xF0), (8, 0xF4)):
        states[:, byte] = state
    return states


def _table(spelled: Sequence[bytes], automaton: Ints) -> Ints:
    """(states, vocabulary): the automaton run over whole tokens, all of them at once."""
    lengths = np.array([len(token) for token in spelled])
    padded = np.zeros((len(spelled), lengths.max(initial=0)), dtype=np.uint8)
    for row, token in enumerate(spelled):
        padded[row, : len(token)] = list(token)
    states = np.repeat(np.arange(len(automaton))[:, None], len(spelled), axis=1)
    for place in range(padded.shape[1]):
        still = np.flatnonzero(lengths > place)
        states[:, still] = automaton[states[:, still], padded[still, place]]
    return states
