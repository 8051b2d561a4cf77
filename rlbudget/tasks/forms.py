"""What kinds of answers there are, and when two of them are the same.

Numbers, digits of another base, lists and sets, tuples and intervals, unions, assignments,
relations, matrices, words, and what is left: expressions, which are kept as compact text. The
texts of two expressions that differ go to ``equal``, a computer algebra system, say.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value, with the size and kind of its unit where it has a known one."""

    value: Fraction
    unit: tuple[Fraction, str] | None = None


@dataclass(frozen=True, slots=True)
class Based:
    """Digits of a base other than ten: they are equal only in the same base."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Several:
    """A list or a set: the order of the members means nothing."""

    members: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tuple, a point or an interval: order and brackets mean something."""

    left: str
    members: tuple[Form, ...]
    right: str


@dataclass(frozen=True, slots=True)
class Union:
    """A union of sets or intervals."""

    members: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Assigned:
    """``x = 5``: equal to 5, and to ``x = 5``."""

    name: str
    value: Form


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or inequality; ``<`` and ``<=`` only, ``>`` has changed sides."""

    sign: str
    left: Form
    right: Form


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of members."""

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True, slots=True)
class Words:
    """Plain words, folded."""

    text: str


@dataclass(frozen=True, slots=True)
class Expression:
    """Any other expression, compact."""

    text: str


Form = (
    Number | Based | Several | Ordered | Union | Assigned | Relation | Matrix | Words | Expression
)
Equal = Callable[[str, str], bool]
"""Whether two compact expressions (or equations) are equal."""

INFINITY = Expression(r"\infty")
MINUS_INFINITY = Expression(r"-\infty")


def same_form(one: Form, other: Form, equal: Equal) -> bool:
    """Whether two forms are the same answer; expressions whose text differs are given to
    ``equal``."""  # fmt: skip
    if one == other:
        return True
    if isinstance(one, Assigned) or isinstance(other, Assigned):
        return _same_assigned(one, other, equal)
    if isinstance(one, Number) and isinstance(other, Number):
        return _same_number(one, other)
    if isinstance(one, Several | Union) and type(one) is type(other):
        return _same_members(one.members, other.members, equal)
    if isinstance(one, Ordered) and isinstance(other, Ordered):
        return (one.left, one.right) == (other.left, other.right) and _pairwise(
            one.members, other.members, equal
        )
    if isinstance(one, Matrix) and isinstance(other, Matrix):
        return len(one.rows) == len(other.rows) and all(
            _pairwise(mine, yours, equal) for mine, yours in zip(one.rows, other.rows, strict=True)
        )
    if isinstance(one, Relation) and isinstance(other, Relation):
        return _same_relation(one, other, equal)
    texts = _text_of(one), _text_of(other)
    if None in texts:
        return False
    return equal(texts[0] or "", texts[1] or "")


def key_of(form: Form) -> Hashable:
    """What forms share that are plainly the same: units and the order of lists left out."""
    match form:
        case Number(value):
            return value
        case Assigned(_, value):
            return key_of(value)
        case Several(members) | Union(members):
            return type(form).__name__, tuple(sorted(map(repr, map(key_of, members))))
        case Ordered(left, members, right):
            return left, tuple(map(key_of, members)), right
        case Matrix(rows):
            return tuple(tuple(map(key_of, row)) for row in rows)
    return form


def _same_number(one: Number, other: Number) -> bool:
    if one.unit is None or other.unit is None:
        units = {one.unit, other.unit}
        if (Fraction(1), "per cent") in units:
            small, large = sorted((abs(one.value), abs(other.value)))
            if small * 100 == large and one.value * other.value >= 0:
                return True
        return one.value == other.value
    return one.unit[1] == other.unit[1] and (one.value * one.unit[0] == other.value * other.unit[0])


def _same_assigned(one: Form, other: Form, equal: Equal) -> bool:
    if isinstance(one, Assigned) and isinstance(other, Assigned):
        if one.name == other.name or min(len(one.name), len(other.name)) > 1:
            return same_form(one.value, other.value, equal)
        return _equations(one, other, equal)
    named, bare = (one, other) if isinstance(one, Assigned) else (other, one)
    assert isinstance(named, Assigned)
    if isinstance(bare, Relation):
        return bare.sign == "=" and _equations(one, other, equal)
    return same_form(named.value, bare, equal)


def _equations(one: Form, other: Form, equal: Equal) -> bool:
    texts = _text_of(one), _text_of(other)
    return texts[0] is not None and texts[1] is not None and equal(texts[0], texts[1])


def _same_relation(one: Relation, other: Relation, equal: Equal) -> bool:
    if one.sign != other.sign:
        return False
    if same_form(one.left, other.left, equal) and same_form(one.right, other.right, equal):
        return True
    return one.sign == "=" and _equations(one, other, equal)


def _pairwise(one: Sequence[Form], other: Sequence[Form], equal: Equal) -> bool:
    return len(one) == len(other) and all(
        same_form(mine, yours, equal) for mine, yours in zip(one, other, strict=True)
    )


def _same_members(one: Sequence[Form], other: Sequence[Form], equal: Equal) -> bool:
    """Whether the members can be paired off, in any order."""
    if len(one) != len(other):
        return False
    left = list(other)
    rest = []
    for member in one:
        if member in left:
            left.remove(member)
        else:
            rest.append(member)
    for member in rest:
        found = next((yours for yours in left if same_form(member, yours, equal)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _text_of(form: Form) -> str | None:
    """A form as an expression or equation for a computer algebra system, if it is one."""
    match form:
        case Number(value):
            if value.denominator == 1:
                return str(value.numerator)
            sign = "-" if value < 0 else ""
            return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
        case Expression(text):
            return text
        case Assigned(name, value):
            inner = _text_of(value)
            return None if inner is None else f"{name}={inner}"
        case Relation("=", left, right):
            sides = _text_of(left), _text_of(right)
            return None if None in sides else f"{sides[0]}={sides[1]}"
    return None
