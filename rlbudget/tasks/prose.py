"""The last expression of a line of prose."""

from __future__ import annotations

import re

from rlbudget.tasks.expressions import is_solid
from rlbudget.tasks.notation import plain_characters
from rlbudget.tasks.spoken import digits_for_words

_HEADING = re.compile(r"^#+\s+")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


def clean(text: str) -> str:
    """Without emphasis around it and marks at its end."""
    text = _BOLD.sub(r"\1", text.strip())
    for _ in range(4):
        before = text
        text = _HEADING.sub("", text.strip(" \t\n*_`")).strip()
        if text.endswith((".", ",", ";", ":", "!")) and not text.endswith("..."):
            text = text[:-1]
        if text == before:
            break
    return text


_DELIMITED = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,1000}?)\\\)"
    r"|\$(?=\S)([^$\n]{1,1000}?)(?<=\S)\$(?![0-9])|\$ ([^$\n]{1,1000}?) \$(?![0-9])",
    re.DOTALL,
)
_TOKEN = re.compile(r"\x00[0-9]+\x00[^\s]*|\S+")
_NUMERIC = re.compile(
    r"[-+\u00b1~\u2248]?[($\u20ac\u00a3\u00a5\[{|]*[-+]?(?:\.?[0-9]|\x00|\\[a-zA-Z({\[])"
    r"|[a-zA-Z][\^_(][^\s]*[0-9a-z)}]"
)
_OPERATOR = re.compile(r"(?:[-+*/=<>^\u00d7\u00f7\u2264\u2265\u2248]|<=|>=|\\[a-zA-Z]+|x(?=\s))+$")
_JOINS = ("and", "or", "&")
_BOUND_BEFORE = re.compile(
    r"(?:\b(?:any|every)\s?[a-z]* (?:but|except)|\btimes|\bas (?:many|much) as"
    r"|\b(?:negative|opposite|reciprocal|inverse|square|cube|sum|difference|product|quotient"
    r"|multiple|factor|factorial|log|logarithm) of"
    r"|\bnot|n't|\bcannot(?: be)?|\bcould be|\bmay be|\bmight be|\bperhaps|\btwice|\bdouble"
    r"|\btriple|\bhalf(?: of)?|\broot of|[0-9][a-z ]{0,24}\b(?:of|from|in|per|at|by)|\bout of"
    r"|\b(?:one|two|three|four|five|third|quarter|fifth|tenth)s?\s+(?:in|of)"
    r"|\bmore than|\bless than|\bfewer than|\bgreater than|\blarger than|\bsmaller than"
    r"|\bbigger than|\bhigher than|\blower than|\bat least|\bat most|\bover|\bunder|\babove"
    r"|\bbelow|\bup to|\bnearly|\balmost|\bexceeds?|\bbeyond|\bbetween|\bno longer|\bnever"
    r"|\bwithout|\bother than|\bbesides|\bexcept|\brather than|\binstead of)"
    r"(?:\s+(?:the|a|an|be|is|equal to|exactly|about|selling))*\s*$",
    re.IGNORECASE,
)
_BOUND_AFTER = re.compile(
    r"\s*(?:or\s+(?:more|less|fewer|greater|above|below|over|higher|lower|so)\b"
    r"|and\s+(?:up|above|below|a\s+(?:half|quarter|third))\b"
    r"|(?:multiplied|divided|minus|plus|choose|mod|to the power|times)\b"
    r"|(?:tenth|hundredth|thousandth|millionth|billionth)s?\b"
    r"|(?:squared|cubed|factorial|doubled|tripled|halved|lakh|crore)\b"
    r"|(?:more|less|fewer|greater|times)\s+than\b|percent\s+(?:of|more|less)\b"
    r"|(?:is|are|was)\s+(?:not|wrong|incorrect|n't))",
    re.IGNORECASE,
)
_SCALE_AFTER = re.compile(
    r"\s+((?:hundreds?|thousands?|millions?|billions?|trillions?|dozens?)\b(?:\s+and\s+a\s+half)?"
    r"|and\s+a\s+half\b)",
    re.IGNORECASE,
)


_FOREIGN = re.compile("([\u0590-\u08ff\u0900-\u0d7f\u3001-\u30ff\u3400-\u9fff\uac00-\ud7af]+)")
"""Scripts whose words stand against numbers without a space."""
_INFINITE = re.compile(r"\binfinity\b", re.IGNORECASE)
_MARKS = re.compile(r"\$?\\(?:blacksquare|square|qed|checkmark|therefore)(?![a-zA-Z])\$?")


def last_expression(line: str) -> str | None:
    """The last expression of a line of prose, with what its words make of it.

    One in bold goes before others. Expressions joined by "and", "or" or a comma are one list. One
    that is bounded or denied ("more than 9", "not 42") is taken only where there is no other, and
    with those words, so that it equals no number.
    """
    spans: list[str] = []

    def hide(match: re.Match[str]) -> str:
        inner = next(group for group in match.groups() if group is not None)
        if len(inner.strip()) == 1 and inner.strip().isalpha():
            return f" {inner.strip()} "  # the name of a variable is no answer
        spans.append(inner)
        return f" \x00{len(spans) - 1}\x00"

    hidden = _DELIMITED.sub(hide, _prepared(line))
    hidden = _without_remark(hidden)
    for match in reversed(list(_IN_BOLD.finditer(hidden))):
        inner = clean(_shown(match[1], spans))
        numbered = not hidden[: match.start()].strip() and _NUMBERED.fullmatch(match[1])
        if is_solid(inner) and not numbered:
            return _with_bounds(hidden[: match.start()], inner, hidden[match.end() :])
    hidden = hidden.replace("**", " ")
    groups = _groups(hidden)
    told: list[str] = []
    for start, end in reversed(groups):
        found = clean(_shown(hidden[start:end], spans)).lstrip("=").strip()
        before = hidden[max(0, start - 30) : start]
        worked = any(_WORKED.search(hidden[a:b]) for a, b in groups if b < start)
        worded = _with_bounds(hidden[:start], found, hidden[end:])
        aside = (
            _NAMED_THING.search(before)
            or (worked and _PREPOSITION.search(before))
            or (not told and len(groups) > 1 and _UNEQUAL.search(found))
        )
        if worded == found and not aside:
            return found
        told.append(worded)
    return told[0] if told else None


_WORKED = re.compile(r"[0-9].*[-+*/\u00d7x].*=")
"""Arithmetic that was worked out."""
_PREPOSITION = re.compile(
    r"\b(?:for|in|of|from|at|by|per|to|with|on|and|than|before|after|during)(?: the)?\s*$"
)
_IN_BOLD = re.compile(r"\*\*([^*\n]{1,400}?)\*\*")
_NUMBERED = re.compile(r"\s*[0-9]{1,2}[.):]?\s*")
_UNEQUAL = re.compile(r"[<>\u2264\u2265]|\\[lg]e(?![a-z])")
_NAMED_THING = re.compile(
    r"\b(?:step|example|problem|question|case|figure|equation|exercise|page|part|chapter|section|line"
    r"|theorem|lemma)\s*#?\s*$",
    re.IGNORECASE,
)
_CONTRASTED = re.compile(r"(?<=[0-9\x00}])(?:,?\s+(?:not|rather than|instead of)\b).*$", re.DOTALL)
_TRAILING_REMARK = re.compile(r"\s\([^()]*[a-zA-Z\u00d7=][^()]*\)[\s.!]*$")


def _prepared(line: str) -> str:
    """A line in plain characters, of a table the last cell, with digits if it has only words."""
    plain = plain_characters(line.replace("\x00", " "))
    if plain.count("|") > 1 and plain.strip().startswith("|"):
        plain = plain.strip(" |").rpartition("|")[2]
    plain = _FOREIGN.sub(r" \1 ", _MARKS.sub(" ", plain))
    if not any(map(str.isdigit, plain)):
        plain = digits_for_words(plain)
    return _INFINITE.sub(r"\\infty ", plain)


def _without_remark(line: str) -> str:
    """Without a remark in brackets at the end, and without what the answer is said not to be."""
    remark = _TRAILING_REMARK.search(line)
    if remark and re.search("[0-9\x00]", line[: remark.start()]):
        line = line[: remark.start()]
    return _CONTRASTED.sub("", line)


def _groups(line: str) -> list[tuple[int, int]]:
    """The runs of a line, those that are joined to a list as one, units and scales with them."""
    groups: list[tuple[int, int]] = []
    for start, end in _runs(line):
        scale = _SCALE_AFTER.match(line, end) or _UNIT_AFTER.match(line, end)
        end = scale.end() if scale else end
        if groups and _joined(line, groups[-1], start, end):
            groups[-1] = (groups[-1][0], end)
        else:
            groups.append((start, end))
    return groups


def _joined(line: str, before: tuple[int, int], start: int, end: int) -> bool:
    between = line[before[1] : start].strip().lower()
    comma = line[: before[1]].rstrip().endswith(",")
    if between not in _JOINS and (between or not comma):
        return False
    texts = line[before[0] : before[1]], line[start:end]
    named = [re.match(r"\s*[a-z]\s*=[^=]*$", text) is not None for text in texts]
    return all(named) or not any("=" in text for text in texts)


_UNIT_AFTER = re.compile(
    r"\s+(?:degrees|percent|dollars?|cents?|euros?|cm|mm|km|kg|inches|inch|feet|foot|ft|meters?"
    r"|metres?|miles?|hours?|minutes?|seconds?|days?|grams?|pounds?)(?:\^\{?[23]\}?)?\b"
)


def _with_bounds(before: str, found: str, after: str) -> str:
    negative = re.search(r"\b(?:negative|minus)\s*$", before, re.IGNORECASE)
    if negative:
        return f"-{found}"
    bound = _BOUND_BEFORE.search(before[-60:])
    if bound:
        return f"{bound[0].strip()} {found}"
    follows = _BOUND_AFTER.match(after)
    return f"{found} {follows[0].strip()}" if follows else found


def _shown(text: str, spans: list[str]) -> str:
    return re.sub(r"\x00([0-9]+)\x00", lambda m: f" {spans[int(m[1])]} ", text).strip()


def _runs(line: str) -> list[tuple[int, int]]:
    """Where expressions stand: words that are numbers, formulas, or operators between them."""
    runs: list[list[re.Match[str]]] = [[]]
    for match in _TOKEN.finditer(line):
        token = match[0]
        letter = runs[-1] and len(token.strip(".,;:)")) == 1 and token[0].isalpha() and (
            token[0].lower() != "a" and line[: match.start()].rstrip().endswith(_OPERATORS)
        )  # fmt: skip
        if not (letter or _is_numeric(token) or _OPERATOR.fullmatch(token)):
            runs.append([])
            continue
        runs[-1].append(match)
        if token.endswith((",", ";")) or (token.endswith(".") and not token.endswith("..")):
            runs.append([])
    return [
        _with_name(line, run[0].start(), run[-1].end())
        for run in runs
        if any(_is_numeric(match[0]) for match in run)
    ]


_OPERATORS = tuple("-+*/=<>^(")


def _is_numeric(token: str) -> bool:
    return bool(_NUMERIC.match(token)) and not token.endswith(("st", "nd", "rd", "th", "th,"))


_NAME_BEFORE = re.compile(r"(?:^|\s)([a-zA-Z])\s*$")


def _with_name(line: str, start: int, end: int) -> tuple[int, int]:
    """``x = 5``: the name before an equals sign belongs to the run."""
    if line[start] in "=<>":
        named = _NAME_BEFORE.search(line[:start])
        if named:
            return named.start(1), end
    return start, end
