"""An expression is read as a form: taken apart at commas, relations, unions and brackets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from rlbudget.tasks.amounts import amount, folded, is_mathematics, leaf
from rlbudget.tasks.forms import (
    INFINITY,
    MINUS_INFINITY,
    Assigned,
    Based,
    Expression,
    Form,
    Matrix,
    Number,
    Ordered,
    Relation,
    Several,
    Union,
    Words,
)
from rlbudget.tasks.notation import compact, tidy
from rlbudget.tasks.numbers import plain_number
from rlbudget.tasks.remembered import remembered
from rlbudget.tasks.spoken import spoken_number
from rlbudget.tasks.units import unit_of_currency

LONGEST = 2000
"""characters of an expression that are read; a longer one is compared as text"""
_DEEPEST = 12


@remembered(4096)
def read(expression: str) -> Form:
    """The form of one expression. Never raises; what cannot be read is words or an expression."""
    if len(expression) > LONGEST:
        return Words(" ".join(expression.casefold().split()))
    value = plain_number(expression)
    if value is not None:
        return Number(value, unit_of_currency(expression))
    return _read(_unwrapped(tidy(expression)), 0)


def is_solid(expression: str) -> bool:
    """Whether a text is an expression through and through, without words that are no unit."""
    return len(expression) <= LONGEST and _solid(read(expression))


def _solid(form: Form) -> bool:
    match form:
        case Words():
            return False
        case Expression(text):
            return is_mathematics(text)
        case Several(members) | Union(members) | Ordered(_, members, _):
            return bool(members) and all(map(_solid, members))
        case Assigned(name, value):
            return " " not in name and _solid(value)
        case Relation(_, left, right):
            return _solid(left) and _solid(right)
        case Matrix(rows):
            return all(_solid(member) for row in rows for member in row)
    return True


_WRAPS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"),
          ("```", "```"), ("`", "`"), ('"', '"'), ("'", "'"), ("*", "*"))  # fmt: skip


_PAIRED = re.compile(r"\$(?=\S)([^$]+?)(?<=\S)\$(?![0-9])")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|\*\*|\$\$")


def _unwrapped(text: str) -> str:
    """Without delimiters around the whole, marks at its end, and lone delimiters of mathematics."""
    text = text.strip()
    for _ in range(8):
        before = text
        for left, right in _WRAPS:
            if (
                len(text) >= len(left) + len(right) + 1
                and text.startswith(left)
                and text.endswith(right)
                and left not in text[len(left) : -len(right)]
            ):
                text = text[len(left) : -len(right)].strip()
        if text.endswith((".", ",", ";", ":")) and not text.endswith("..."):
            text = text[:-1].rstrip()
        if text == before:
            break
    text = _DELIMITERS.sub(" ", _PAIRED.sub(r" \1 ", text))
    if "$" in text:
        text = re.sub(r"\$(?![0-9.])|(?<=[0-9a-zA-Z})\]])\$", " ", text)
    return " ".join(text.split())


_AND = re.compile(r"(?<![a-zA-Z\\])(?:and|or|\s&\s)(?![a-zA-Z])")
_BOUNDED = re.compile(
    r"(?P<name>[a-zA-Z]\s+)?(?:(?:is|are|must be|should be)\s+)?(?P<bound>(?:greater|more|larger"
    r"|bigger|higher|less|fewer|smaller|lower) than(?: or equal to)?|at least|at most"
    r"|no (?:less|more) than|over|under|above|below)\s+(?P<value>[-+$0-9\\].*)",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    r"\\emptyset|\\\{\s*\\\}|\{\s*\}|(?:(?:there|it|the (?:equation|system)) (?:is|are|has|have) )?"
    r"(?:no (?:real |such )?(?:solutions?|values?|numbers?)|(?:the )?empty set)(?: exists?)?",
    re.IGNORECASE,
)
NOTHING = Expression(r"\emptyset")
_FRENCH = re.compile(r"[\])\[(][^()\[\]{}]*[,;][^()\[\]{}]*[\])\[(]")
_MIXED_NUMBER = re.compile(r"(-?[0-9]+) and ([0-9]+/[0-9]+)")
_HALF = re.compile(r"([0-9]+)\s+and\s+a\s+half", re.IGNORECASE)
_OPENERS, _CLOSERS = "([{", ")]}"


def _split(text: str, pattern: re.Pattern[str]) -> list[str]:
    """At the matches outside of all brackets."""
    parts, start = [], 0
    for match in pattern.finditer(text):
        if _outside(text, match.start()):
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def _outside(text: str, place: int) -> bool:
    before = text[:place]
    return sum(map(before.count, _OPENERS)) <= sum(map(before.count, _CLOSERS))


def _inner(text: str, depth: int) -> Form:
    return _read(_unwrapped(text), depth + 1)


_COMMA = re.compile("[,;]")
_THOUSANDS = re.compile(r"(?<![0-9,.])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9]|,[0-9])")


def _read(text: str, depth: int) -> Form:
    """The form of a tidy text."""
    value = plain_number(text)
    if value is not None:
        return Number(value, unit_of_currency(text))
    if depth > _DEEPEST or not text:
        return Words(text.casefold())
    if _NOTHING.fullmatch(text):
        return NOTHING
    if bounded := _BOUNDED.fullmatch(text):
        text = f"{bounded['name'] or ''}{_sign_of(bounded['bound'])} {bounded['value']}"
    text = _MIXED_NUMBER.sub(r"\1 \2", _HALF.sub(r"\1.5", text))
    joined = _THOUSANDS.sub(
        lambda m: m[1].replace(",", "") if _outside(text, m.start()) else m[1], text
    )
    for reader in _READERS:
        found = reader(joined, depth)
        if found is not None:
            return found
    return amount(joined, lambda inner: _read(inner, depth + 1))


def _sign_of(bound: str) -> str:
    """``at least`` -> ``\\ge``."""
    words = bound.lower()
    equal = "equal" in words or words.startswith(("at ", "no "))
    up = words.startswith(("greater", "more", "larger", "bigger", "higher", "over", "above"))
    up = up or words in ("at least", "no less than")
    return (r"\ge" if equal else ">") if up else (r"\le" if equal else "<")


def _list(text: str, depth: int) -> Form | None:
    if _FRENCH.fullmatch(text) or _ANGLED.fullmatch(text) or r"\begin" in text:
        return None
    parts = [piece for part in _split(text, _COMMA) for piece in _split(part, _AND)]
    if len(parts) < 2:
        return None
    parts = [part for part in parts if part]
    if not parts or (len(parts) > 1 and all(_is_prose(part) for part in parts)):
        return Words(folded(text))
    members = tuple(_inner(part, depth) for part in parts)
    if all(map(_is_half_line, members)):
        return _half_lines(text, members)
    return members[0] if len(members) == 1 else _several(members)


def _is_half_line(form: Form) -> bool:
    return isinstance(form, Ordered) and (
        (form.members[0] == MINUS_INFINITY) != (form.members[-1] == INFINITY)
    )


def _half_lines(text: str, members: Sequence[Form]) -> Form:
    """``x < -2 or x > 2`` is a union, ``x > 0 and x \\le 1`` an interval."""
    rays = [member for member in members if isinstance(member, Ordered)]
    up = [ray for ray in rays if ray.members[-1] == INFINITY]
    down = [ray for ray in rays if ray.members[0] == MINUS_INFINITY]
    if len(up) == len(down) == 1 and re.search(r"(?<![a-z])and(?![a-z])", text):
        low, high = up[0], down[0]
        return Ordered(low.left, (low.members[0], high.members[-1]), high.right)
    return Union(tuple(members))


def _several(members: Sequence[Form]) -> Form:
    flat = [one for m in members for one in (m.members if isinstance(m, Several) else (m,))]
    return flat[0] if len(flat) == 1 else Several(tuple(flat))


_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx)(?![a-zA-Z])|[=<>]")
_NAME = re.compile(
    r"(?:\\?[a-zA-Z]+(?:_\{?[0-9a-zA-Z,]+\}?)?'?(?:\s*\([^()]*\))?|\\?angle\s*[A-Z]+|[A-Z]{2,4}"
    r"|\(\s*[a-z](?:\s*,\s*[a-z])*\s*\)|(?:[A-Za-z]+\s+){0,5}[A-Za-z]+)"
)
_TURNED = {">": "<", r"\ge": r"\le"}


def _relation(text: str, depth: int) -> Form | None:
    places = [m for m in _RELATION.finditer(text) if _outside(text, m.start())]
    if not places:
        return None
    signs = [match[0] for match in places]
    cuts = [0, *(match.end() for match in places)]
    ends = [*(match.start() for match in places), len(text)]
    sides = [text[a:b].strip() for a, b in zip(cuts, ends, strict=True)]
    if set(signs) <= {"=", r"\approx"}:
        return _equation([side for side in sides if side], signs, depth)
    if signs == [r"\in"]:
        value = _inner(sides[1], depth)
        named = re.fullmatch(r"\\?[a-z]+", sides[0])
        return value if named else Relation(r"\in", leaf(sides[0]), value)
    return _inequality(sides, signs, depth)


def _equation(sides: Sequence[str], signs: Sequence[str], depth: int) -> Form:
    """``x = 2y = 6`` is an assignment of its last side; ``x + y = 6`` an equation."""
    if not sides:
        return Words("=")
    if len(sides) == 1:
        return _read(sides[0], depth + 1)
    if r"\approx" in signs and not _NAME.fullmatch(sides[0]):
        return _inner(sides[0], depth)
    last = _inner(sides[-1], depth)
    first = sides[0]
    if len(sides) == 2 and re.fullmatch("[a-zA-Z]", sides[1]) and plain_number(first) is not None:
        return Assigned(sides[1], _read(first, depth + 1))  # 5 = x
    if _NAME.fullmatch(first) and not (isinstance(last, Words) and len(sides) > 2):
        return Assigned(compact(first), last)
    if not all(map(is_mathematics, sides[:-1])):
        return Words(folded("=".join(sides)))
    if not re.search(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", " ".join(sides)):
        return last  # 9 + 9 = 18
    return Relation("=", leaf(first), leaf(sides[-1]))


def _inequality(sides: Sequence[str], signs: Sequence[str], depth: int) -> Form:
    """One or two bounds of a name become an interval; anything else stays a relation."""
    read_sides = [_inner(side, depth) if side else INFINITY for side in sides]
    if len(signs) == 1:
        sign = _TURNED.get(signs[0], signs[0])
        left, right = (0, 1) if sign == signs[0] else (1, 0)
        if sign in ("<", r"\le"):
            close = {"<": ("(", ")"), r"\le": ("[", "]")}[sign]
            if not sides[left] or _NAME.fullmatch(sides[left]):
                return Ordered("(", (MINUS_INFINITY, read_sides[right]), close[1])
            if not sides[right] or _NAME.fullmatch(sides[right]):
                return Ordered(close[0], (read_sides[left], INFINITY), ")")
        return Relation(sign, read_sides[left], read_sides[right])
    ways = {_TURNED.get(sign, sign) != sign for sign in signs}
    plain = [_TURNED.get(sign, sign) for sign in signs]
    if len(signs) == 2 and len(ways) == 1 and set(plain) <= {"<", r"\le"}:
        if ways == {True}:
            read_sides, plain = read_sides[::-1], plain[::-1]
        if _NAME.fullmatch(sides[1]):
            return Ordered(
                "(" if plain[0] == "<" else "[",
                (read_sides[0], read_sides[2]),
                ")" if plain[1] == "<" else "]",
            )
    return Expression(compact("".join(s + g for s, g in zip(sides, [*signs, ""], strict=True))))


def _union(text: str, depth: int) -> Form | None:
    parts = _split(text, re.compile(r"\\cup(?![a-zA-Z])"))
    return Union(tuple(_inner(part, depth) for part in parts)) if len(parts) > 1 else None


def _bracketed(text: str, depth: int) -> Form | None:
    """Brackets around the whole: a set, a tuple, an interval, or nothing but brackets."""
    if built := _SET_BUILDER.fullmatch(text):
        return _inner(built["condition"], depth)
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inside = text[2:-2].strip()
        if re.search(r"\||\\mid|:", inside):
            return None
        parts = [part for part in _split(inside, _COMMA) if part]
        distinct = dict.fromkeys(_inner(part, depth) for part in parts)
        return _several(list(distinct))
    if point := _POINT.fullmatch(text):
        text = point[1]
    if _ANGLED.fullmatch(text):
        text = f"({text[1:-1]})"
    if len(text) < 2 or text[0] not in "([{]" or text[-1] not in ")]}[":
        return None
    left, right, inside = text[0], text[-1], text[1:-1].strip()
    if not _balanced(inside):
        return None
    if left == "]" or right == "[":  # ]0, 1[ of the French
        left, right = {"]": "("}.get(left, left), {"[": ")"}.get(right, right)
    parts = _split(inside, _COMMA)
    if len(parts) == 1 and (left, right) in (("(", ")"), ("[", "]"), ("{", "}")):
        return _inner(inside, depth)
    if not all(parts):
        return None
    members = tuple(_inner(part, depth) for part in parts)
    if left == "[" and all(isinstance(m, Ordered) and m.left == "[" for m in members):
        return Matrix(tuple(m.members for m in members if isinstance(m, Ordered)))
    return _several(members) if left == "{" else Ordered(left, members, right)


_ANGLED = re.compile(r"<[^<>]*,[^<>]*>")
_SET_BUILDER = re.compile(
    r"\\?\{\s*[a-z]\s*(?:\\in\s*(?:\\?[A-Z]|R))?\s*(?:\||\\mid|:)\s*(?P<condition>[^|{}]+?)\s*\\?\}"
)


def _angled(text: str, depth: int) -> Form | None:
    return _bracketed(text, depth) if _ANGLED.fullmatch(text) else None


_POINT = re.compile(r"[A-Z]\s*(\([^()]*,[^()]*\))")


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in _OPENERS) - (character in _CLOSERS)
        if depth < 0:
            return False
    return depth == 0


_MATRIX = re.compile(
    r"\\begin\s*\{(?P<kind>[pbBvV]?matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(?P<body>.*)\\end\s*\{(?P=kind)\}",
    re.DOTALL,
)


def _matrix(text: str, depth: int) -> Form | None:
    match = _MATRIX.fullmatch(text)
    if match is None or match["kind"] in ("vmatrix", "Vmatrix"):
        return None
    rows = [row.strip() for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?", match["body"])]
    cells = [row.split("&") for row in rows if row]
    return Matrix(tuple(tuple(_inner(cell, depth) for cell in row) for row in cells))


_SUBSCRIPT_BASE = re.compile(
    r"\(?([0-9][0-9A-Za-z]*|(?=[A-Fa-f0-9]*[0-9])[A-Fa-f0-9]{2,})\)?\s*_\s*\{?\s*([0-9]{1,2}|[a-z]+)\s*\}?"
)
_HEXADECIMAL = re.compile(r"0x([0-9A-Fa-f]+)")
_SPOKEN_BASE = re.compile(
    r"([0-9][0-9A-Z]*|[A-F][0-9A-F]*)\s*\(?\s*(?:in\s+)?base[\s-]*([0-9]{1,2}|[a-z]+)\s*\)?",
    re.IGNORECASE,
)


def _based(text: str, depth: int) -> Form | None:
    text = re.sub(r"\s*units?$", "", text)
    if match := _HEXADECIMAL.fullmatch(text):
        return Based(match[1].upper().lstrip("0") or "0", 16)
    match = _SUBSCRIPT_BASE.fullmatch(text) or _SPOKEN_BASE.fullmatch(text)
    if match is None:
        return None
    spelled = match[2].lower()
    base = int(spelled) if spelled.isdigit() else int(spoken_number(spelled) or 0)
    if not 2 <= base <= 36:
        return None
    if base == 10 and match[1].isdigit():
        return Number(Fraction(int(match[1])))
    return Based(match[1].upper().lstrip("0") or "0", base)


_PLUS_MINUS = re.compile(r"\\[pm][pm](?![a-zA-Z])")
_CONGRUENCE = re.compile(
    r"(?P<left>.+?)\s*(?:\\equiv|\u2261)\s*(?P<right>.+?)\s*"
    r"(?:\\pmod\s*\{?\s*(?P<one>[0-9]+)\s*\}?|\(\s*\\?b?mod\s*\{?(?P<two>[0-9]+)\}?\s*\))"
)


def _congruence(text: str, depth: int) -> Form | None:
    """``x \\equiv 3 \\pmod 8``: equal to 3, and to the same modulo 8 only."""
    match = _CONGRUENCE.fullmatch(text)
    if match is None:
        return None
    name = f"{compact(match['left'])}[mod{match['one'] or match['two']}]"
    return Assigned(name, _read(match["right"], depth + 1))


def _plus_minus(text: str, depth: int) -> Form | None:
    signs = _PLUS_MINUS.findall(text)
    if not 1 <= len(signs) <= 4:
        return None
    ways = []
    for upper, lower in (("+", "-"), ("-", "+")):
        way = re.sub(r"\\pm(?![a-zA-Z])", upper, text)
        ways.append(re.sub(r"\\mp(?![a-zA-Z])", lower, way))
    return _several([_read(way, depth + 1) for way in ways])


_RATIO = re.compile(r"[0-9.]+(?:\s*(?::|to)\s*[0-9.]+){1,4}")


def _ratio(text: str, depth: int) -> Form | None:
    """``3:2`` and ``3 to 2`` are 3/2; ``4:6:10`` is ``2:3:5``. Times of day are no ratios."""
    if not _RATIO.fullmatch(text) or re.fullmatch(r"[0-9]+:[0-5][0-9]", text):
        return None
    values = [plain_number(part.strip()) for part in re.split(":|to", text)]
    if None in values or any(value == 0 for value in values):
        return Expression(compact(text))
    known = [value for value in values if value is not None]
    if len(known) == 2:
        return Number(known[0] / known[1])
    return Ordered(":", tuple(Number(value / known[0]) for value in known), ":")


_ABSOLUTE = re.compile(r"\|([a-z])\|\s*(<|>|\\le|\\ge)\s*(.+)")


def _absolute(text: str, depth: int) -> Form | None:
    """``|x| > 2`` is ``x < -2 or x > 2``."""
    match = _ABSOLUTE.fullmatch(text)
    if match is None:
        return None
    name, sign, bound = match.groups()
    if sign in ("<", r"\le"):
        return _read(f"-{bound} {sign} {name} {sign} {bound}", depth + 1)
    low = {">": "<", r"\ge": r"\le"}[sign]
    return _read(f"{name} {low} -{bound} or {name} {sign} {bound}", depth + 1)


def _is_prose(text: str) -> bool:
    return not is_mathematics(text) and not any(map(str.isdigit, text))


_READERS = (
    _matrix, _congruence, _absolute, _angled, _list, _relation, _union, _bracketed, _based,
    _plus_minus, _ratio,
)  # fmt: skip
