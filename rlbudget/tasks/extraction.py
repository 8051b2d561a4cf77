"""Answer extraction: where the answer is in what a model wrote.

The text after the last end of thinking is searched in this order:

1. the last balanced ``\\boxed{}`` (an unterminated one is ignored; boxes joined by only a comma or
   a conjunction are one answer);
2. the last ``#### N``;
3. what follows the last "answer is" or "answer:", up to the end of its sentence;
4. the last expression of the last line that has one, or the last line itself, by kind.

Every step takes time linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import numpy as np

from rlbudget.tasks.expressions import is_solid, read
from rlbudget.tasks.forms import Number
from rlbudget.tasks.notation import tidy
from rlbudget.tasks.prose import clean, last_expression

Kind = Literal["mathematics", "text", "choice"]
"""What is asked for: an expression, words, or one of several options."""

_ENDS = (
    "</think>", "</thinking>", "</thought>", "</thoughts>", "</reasoning>", "</seed:think>",
    "[/THINK]", "<|end_of_thought|>", "<|/think|>", "\u25c1/think\u25b7",
    "<|channel|>final<|message|>", "<channel|>",
)  # fmt: skip
_STARTS = ("<think>", "<thinking>", "<thought>", "<reasoning>", "<seed:think>", "[THINK]",
           "<|begin_of_thought|>", "\u25c1think\u25b7")  # fmt: skip
_CONTROL = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|</s>|<eos>|<end_of_turn>", re.IGNORECASE
)
_LONGEST_ANSWER = 4000
"""characters of an extracted answer; scorers that compare the whole text have no limit"""


def after_thinking(text: str) -> str:
    """The text after the last end of thinking; "" where thinking was begun and not ended."""
    if "<" not in text and "[" not in text and "\u25c1" not in text:
        return text
    ends = [(text.rfind(tag), len(tag)) for tag in _ENDS]
    place, size = max(ends)
    rest = text[place + size :] if place >= 0 else text
    begun = min((at for tag in _STARTS if (at := rest.find(tag)) >= 0), default=-1)
    return rest if begun < 0 else rest[:begun]


def answer_in(text: str, kind: Kind = "mathematics") -> str:
    """The answer in ``text`` as it is written there, "" where there is none."""
    rest = after_thinking(text)
    rest = (_CONTROL.sub(" ", rest) if "<" in rest else rest).strip()
    if not rest:
        return ""
    boxed = _boxed(rest)
    if boxed is None and (tagged := _tagged(rest)) is not None:
        return answer_in(tagged, kind) or tagged
    if boxed is not None:
        return boxed if kind != "mathematics" else _without_words(boxed)
    for found in (_marked(rest), _said(rest, kind)):
        if found is not None:
            return found
    return _at_the_end(rest, kind)


def _without_words(boxed: str) -> str:
    """``\\text{The answer is } 18`` becomes 18; words without a number stay."""
    if is_solid(boxed) or not any(map(str.isdigit, boxed)):
        return boxed
    flat = tidy(boxed)
    return _said(flat, "mathematics") or last_expression(flat) or boxed


# 1. Boxes

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SURROGATES = re.compile("[\ud800-\udfff]+")
_MOST_BOXES = 2000
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([0-9a-zA-Z+-][^\s${}\\]{0,40})")
_JOINT = re.compile(
    r"[\s$]*(?:\\[)\]])?[\s$]*(?:,|;|\band\b|\bor\b|,\s*and\b|,\s*or\b|\\text\{\s*(?:and|or)\s*\}"
    r"|\\quad|\\qquad|\\,)+[\s$]*(?:\\[(\[])?[\s$a-zA-Z_0-9]{0,8}=?\s*[\s$]*",
)


def _boxed(text: str) -> str | None:
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    # Escaped braces and LaTeX line breaks do not count as braces.
    plain = text.replace("\\\\", "  ").replace("\\{", "  ").replace("\\}", "  ")
    plain = _SURROGATES.sub(lambda m: " " * len(m[0]), plain)
    characters = np.frombuffer(plain.encode("utf-32-le"), dtype=np.uint32)
    depth = np.cumsum(
        (characters == ord("{")).astype(np.int32) - (characters == ord("}")).astype(np.int32)
    )
    lowest = np.minimum.accumulate(depth[::-1])[::-1]
    boxes: list[tuple[int, int, int]] = []  # where it begins, where its content does, and ends
    for start, inside in _opened(text):
        level = int(depth[inside - 1])
        if lowest[inside - 1] >= level:
            continue  # never closed
        end = inside + int(np.argmax(depth[inside:] < level))
        if not text[inside:end].strip():
            continue
        boxes.insert(0, (start, inside, end))
        if len(boxes) > 1 and not _JOINT.fullmatch(text, end + 1, boxes[1][0]):
            boxes.pop(0)
            break
        if len(boxes) > 20:
            break
    if boxes:
        contents = [text[inside:end].strip()[:_LONGEST_ANSWER] for _, inside, end in boxes]
        one = all(read(content) == read(contents[-1]) for content in contents)
        return contents[-1] if one else ", ".join(contents)
    bare = list(_BARE_BOX.finditer(text, max(0, len(text) - _LONGEST_ANSWER)))
    return bare[-1][1] if bare else None


def _opened(text: str) -> Iterator[tuple[int, int]]:
    """Where boxes begin and where their contents do, the last first."""
    name = "\\boxed" if "\\boxed" in text else "\\fbox"
    end = len(text)
    for _ in range(_MOST_BOXES):
        end = text.rfind(name, 0, end)
        if end < 0:
            return
        if match := _BOX.match(text, end):
            yield match.span()


_TAGGED = re.compile(
    r"<(answer|final_answer|solution|result|ans)>\s*(.{1,2000}?)\s*</\1>"
    r"|\[(ANSWER|answer)\]\s*(.{1,2000}?)\s*\[/\3\]|\\answer\{([^{}]{1,500})\}",
    re.DOTALL,
)


def _tagged(text: str) -> str | None:
    """The content of the last tag named for an answer."""
    matches = list(_TAGGED.finditer(text, max(0, len(text) - _LONGEST_ANSWER)))
    if not matches:
        return None
    _, inner, _, bracketed, command = matches[-1].groups()
    return inner or bracketed or command


# 2. The mark of GSM8K

_MARK = re.compile(r"####[ \t]*([^\n#]+)")


def _marked(text: str) -> str | None:
    """``#### N``: a number, or the last line; other headings begin so, too."""
    if "####" not in text:
        return None
    marks = list(_MARK.finditer(text, max(0, text.rfind("####") - _LONGEST_ANSWER)))
    if not marks or len(marks[-1][1]) > _LONGEST_ANSWER:
        return None
    found = marks[-1]
    content = clean(found[1])
    if not content or content.lower().endswith(_NOUNS):
        return None
    if isinstance(read(content), Number):
        return content
    heading = any(noun in content.lower() for noun in _NOUNS) or text[found.end() :].strip()
    return None if heading else content


# 3. "The answer is"

_NOUNS = ("answer", "\u7b54\u6848", "\u7b54\u3048", "antwort", "r\u00e9ponse", "respuesta",
          "risposta", "resposta", "\u043e\u0442\u0432\u0435\u0442")  # fmt: skip
_OPTIONS = ("option", "choice")
_SAYS = re.compile(
    r"s?\b[*_`'\")\]]*(?:\s+(?:to|for|of)\s[^.:\n]{1,80}?)?"
    r"(?:\s*(?:is|are|=|:|would be|will be|should be|must be|comes out (?:as|to)|equals"
    r"|ist|est|es|\u00e8|\u00e9)(?![a-z])[*_`]*\s*(?:therefore|thus|then|hence|simply|just)?"
    r"\s*[:=]?\s*|\s*(?:\u662f|\u4e3a|\u70ba|\u306f|\uff1a|\u2014)\s*|(?<=al answer)[*_`\s]*\n\s*)"
    r"|\s*[\u662f\u4e3a\u70ba\u306f\uff1a:]+\s*",
    re.IGNORECASE,
)
"""What may stand between the noun and the answer."""
_MOST_PLACES = 12
_EMPTY = re.compile(
    r"(?:correct|right|wrong|incorrect|as follows|below|above|clear|unique|given|found|shown"
    r"|obvious|needed|the same|not|in the|within|inside|enclosed|placed|therefore)\b[^0-9\\$]*$",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r"(?:\n(?=[a-z_]+:)|(?<![ .][A-Z])(?<!Dr)(?<!Mr)(?<!Mrs)(?<!St)(?<!Jr)"
    r"[.!?\u3002](?=\s+[A-Z\"'(*\u4e00-\u9fff]|\s*$)|\n\s*\n|\n(?=[A-Z*#-]))"
)


def _said(text: str, kind: Kind) -> str | None:
    """What follows the last clause that names the answer."""
    for start in _last_places(text, kind):
        rest = text[start : start + _LONGEST_ANSWER]
        content = _CORRECTED.split(_clause(rest))[-1]
        if _WITHDRAWN.search(rest, min(len(rest), len(content))):
            return None
        if not content or _EMPTY.match(content):
            continue
        if kind != "mathematics":
            return _REASONS.sub("", content)
        if (found := _expression_of_clause(content)) is not None:
            return found
    return None


_CORRECTED = re.compile(
    r"(?:,|\.|\?)\s*(?:no,? wait|wait|no|sorry|or rather)\s*[,:]?\s+", re.IGNORECASE
)
_WITHDRAWN = re.compile(
    r"\b(?:wait|(?:this|that) is (?:wrong|incorrect|not right)|that's wrong|let me re|mistake"
    r"|on second thought|so it should be|correction:)",
    re.IGNORECASE,
)
"""What withdraws an answer that was given; the end of the text then counts."""
_REASONS = re.compile(r",?\s+(?:because|since|as it|which|so that)\b.*", re.DOTALL)


def _last_places(text: str, kind: Kind) -> Iterator[int]:
    """Where the contents of the last clauses begin, the last first."""
    lower = text.lower()
    if len(lower) != len(text):
        # a letter whose small form is two
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    nouns = _NOUNS + _OPTIONS if kind == "choice" else _NOUNS
    end = len(text)
    for _ in range(_MOST_PLACES):
        found = max((lower.rfind(noun, 0, end), len(noun)) for noun in nouns)
        if found[0] < 0:
            return
        if said := _SAYS.match(text, sum(found)):
            yield said.end()
        end = found[0]


def _clause(rest: str) -> str:
    """To the end of the sentence; a display or a line of its own after a colon belongs to it."""
    rest = rest.lstrip(" \t*_`:\n\r") if rest.lstrip(" \t*_`:")[:1] == "\n" else rest
    rest = rest.strip()
    for left, right in ((r"\[", r"\]"), ("$$", "$$"), (r"\(", r"\)")):
        if rest.startswith(left):
            end = rest.find(right, len(left))
            if end > 0 and not _CONTINUES.match(rest, end + len(right)):
                return rest[len(left) : end].strip()
    if rest.startswith("**") and (end := rest.find("**", 2)) > 0 and not rest[2:end].endswith(":"):
        inner = rest[2:end].strip()
        if inner and not _CONTINUES.match(rest, end + 2):
            return inner
    begun = rest.find(r"\begin{")
    cut = _SENTENCE_END.search(rest)
    while cut and begun >= 0 and begun < cut.start() < rest.find(r"\end{", begun):
        cut = _SENTENCE_END.search(rest, cut.end())
    content = clean(rest[: cut.start()] if cut else rest)
    if content.count("}") > content.count("{"):
        content = content[: content.index("}")]  # {"answer": 18}
    return content.strip("\"'") if content[:1] in ('"', "'") else content


_CONTINUES = re.compile(r"\s*(?:,\s|and\b|or\b|[-+*/^=<>]|[a-z%])")


_PROSE_AFTER = re.compile(
    r"(?:,|;|\s+-|\s+\()?\s+(?:rather than|instead of|not|unlike|out of|left of|from|because|since"
    r"|as|so|which|where|when|for|after|if|given|due|in total|in all|altogether|that|this|but"
    r"|i\.e\.|namely|using|by)\b|,\s+(?!and\b|or\b)[a-z]{2,}"
)


def _expression_of_clause(clause: str) -> str | None:
    """The expression that a clause gives: all of it, its beginning, or its last one."""
    if whole := _solid_part(clause):
        return whole
    cut = _PROSE_AFTER.search(clause)
    begin = clause[: cut.start()].strip() if cut and cut.start() else clause
    if is_solid(begin):
        return begin
    found = last_expression(begin)
    if found is None:
        found = last_expression(clause)
    return found or begin or None


def _solid_part(text: str) -> str | None:
    """All of a text, or what stands before a remark in brackets, if it is an expression."""
    remark = _REMARK.fullmatch(text)
    if remark and is_solid(remark[1]) and (
        isinstance(read(remark[1]), Number) or not is_solid(text)
    ):  # fmt: skip
        return remark[1]
    return text if is_solid(text) else None


_REMARK = re.compile(
    r"(.+?)\s+\((?!(?:in )?base)(?:[^()]*[a-zA-Z]{2}[^()]*|[^()a-zA-Z]*)\)", re.DOTALL
)
"""An expression and a remark in brackets."""


# 4. The end

_LINES = 50


def _at_the_end(text: str, kind: Kind) -> str:
    lines = [line for line in text[-20 * _LONGEST_ANSWER :].split("\n") if line.strip()]
    if not lines:
        return ""
    last = clean(lines[-1][-_LONGEST_ANSWER:])
    if kind != "mathematics":
        return last
    if lines[-1].strip()[0] == "|" and lines[-1].count("|") > 2:
        return last_expression(lines[-1][-_LONGEST_ANSWER:]) or ""
    if len(text) <= _LONGEST_ANSWER:
        items = [clean(_BULLET.sub("", line)) for line in lines]
        if 1 < len(items) <= 12 and all(map(_is_item, items)):
            return ", ".join(items)
        factorial = text.endswith("!") and " " not in text
        if whole := _solid_part(text if factorial else clean(text)):
            return whole
    joined = _join_displays(lines)
    for line in joined[: -_LINES - 1 : -1]:
        found = last_expression(line[-_LONGEST_ANSWER:])
        if found is not None:
            return found
    return last


def _is_item(line: str) -> bool:
    """Whether a line is an expression by itself; of equations only ``x = 2``."""
    return is_solid(line) and ("=" not in line or re.match(r"[a-z]\s*=[^=]*$", line) is not None)


_BULLET = re.compile(r"^\s*(?:[-*\u2022]\s+|[0-9]+[.)]\s+)")


def _join_displays(lines: list[str]) -> list[str]:
    """A display over several lines is one."""
    out: list[str] = []
    opened = ""
    for line in lines:
        if opened:
            out[-1] += " " + line
            if opened in line:
                opened = ""
            continue
        out.append(line)
        for left, right in ((r"\[", r"\]"), ("$$", "$$")):
            if line.count(left) > line.count(right) or (left == right and line.count(left) % 2):
                opened = right
    return out
