"""What kinds of answers there are, and when two of them are the same.

Numbers, digits of another base, lists and sets, tuples and intervals, unions, assignments,
relations, matrices, words, and what is left: expressions, which are kept as compact text. The
texts of two expressions that differ go to ``equal``, a computer algebra system, say.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

from rlbudget.tasks.units import ANGLE, PER_CENT
from rlbudget.tasks.values import value_key


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value, with the size and kind of its unit where it has a known one."""

    value: Fraction
    unit: tuple[Fraction, str] | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day; without a.m. or p.m. it may be either."""

    minutes: int
    exact: bool


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
    Number
    | Clock
    | Based
    | Several
    | Ordered
    | Union
    | Assigned
    | Relation
    | Matrix
    | Words
    | Expression
)
Equal = Callable[[str, str], bool]
"""Whether two compact expressions (or equations) are equal."""

INFINITY = Expression(r"\infty")
MINUS_INFINITY = Expression(r"-\infty")


def same_form(given: Form, wanted: Form, equal: Equal) -> bool:
    """Whether an answer is the target; expressions whose text differs are put to ``equal``."""
    if given == wanted:
        return True
    if isinstance(given, Several) and not isinstance(wanted, Several):
        return _same_as_one(given, wanted, equal)
    if isinstance(given, Assigned) or isinstance(wanted, Assigned):
        return _same_assigned(given, wanted, equal)
    if isinstance(given, Number) and isinstance(wanted, Number):
        return _same_number(given, wanted)
    if isinstance(given, Clock) and isinstance(wanted, Clock):
        exact = given.exact and wanted.exact
        return (given.minutes - wanted.minutes) % (1440 if exact else 720) == 0
    if isinstance(given, Several) and isinstance(wanted, Several):
        return _same_members(given.members, wanted.members, equal)
    if isinstance(given, Union) and isinstance(wanted, Union):
        return _same_members(given.members, wanted.members, equal)
    if isinstance(given, Ordered | Matrix) and isinstance(wanted, Ordered | Matrix | Several):
        return _same_arrangement(given, wanted, equal)
    if isinstance(given, Relation) and isinstance(wanted, Relation):
        return _same_relation(given, wanted, equal)
    if isinstance(given, Relation) and given.sign == "=" and not isinstance(wanted, Relation):
        if isinstance(given.right, Number):
            return same_form(given.right, wanted, equal)  # m + n = 18
        return all(same_form(side, wanted, equal) for side in (given.left, given.right))
    return _equal_texts(given, wanted, equal)


def _same_as_one(given: Several, wanted: Form, equal: Equal) -> bool:
    """``3/4, or 0.75`` for 3/4; ``x = 1, y = 2`` for (1, 2)."""
    if isinstance(wanted, Ordered):
        named = _values_by_name(given)
        return named is not None and _pairwise(named, wanted.members, equal)
    last = given.members[-1:]
    if last and isinstance(last[0], Assigned) and all(
        isinstance(member, Relation) for member in given.members[:-1]
    ):  # fmt: skip
        return same_form(last[0], wanted, equal)  # 2x = 36, x = 18
    return bool(last) and all(same_form(member, wanted, equal) for member in given.members)


def _values_by_name(form: Several) -> list[Form] | None:
    """The values of assignments to different names, in the order of the names."""
    named = {m.name: m.value for m in form.members if isinstance(m, Assigned)}
    if len(named) < len(form.members):
        return None
    return [named[name] for name in sorted(named, key=lambda name: name.lstrip("\\"))]


def _same_arrangement(
    given: Ordered | Matrix, wanted: Ordered | Matrix | Several, equal: Equal
) -> bool:
    """Tuples, intervals, matrices and vectors; a vector may be written as a tuple."""
    if isinstance(wanted, Several):
        named = _values_by_name(wanted)
        return (
            named is not None
            and isinstance(given, Ordered)
            and _pairwise(given.members, named, equal)
        )
    if isinstance(given, Ordered) and isinstance(wanted, Ordered):
        same = (given.left, given.right) == (wanted.left, wanted.right)
        return same and _pairwise(given.members, wanted.members, equal)
    if isinstance(given, Matrix) and isinstance(wanted, Matrix):
        same = [*map(len, given.rows)] == [*map(len, wanted.rows)]
        return same and _pairwise([*chain(*given.rows)], [*chain(*wanted.rows)], equal)
    mine, yours = _vector(given), _vector(wanted)
    return mine is not None and yours is not None and _pairwise(mine, yours, equal)


def _vector(form: Ordered | Matrix) -> tuple[Form, ...] | None:
    if isinstance(form, Ordered):
        return form.members
    one_line = len(form.rows) == 1 or all(len(row) == 1 for row in form.rows)
    return tuple(chain(*form.rows)) if one_line else None


def key_of(form: Form) -> Hashable:
    """What forms share that are the same: units and the order of lists left out, formulas by their
    values where those are quick to find (``tasks.values``)."""  # fmt: skip
    match form:
        case Number(value):
            return value
        case Clock(minutes):
            return "clock", minutes % 720
        case Assigned(_, value):
            return key_of(value)
        case Several(members) | Union(members):
            return type(form).__name__, tuple(sorted(map(repr, map(key_of, members))))
        case Ordered(left, members, right):
            return left, tuple(map(key_of, members)), right
        case Matrix(rows):
            return tuple(tuple(map(key_of, row)) for row in rows)
        case Expression(text):
            found = value_key(text)
            return form if found is None else found
    return form


_SEVERAL_DIGITS = 6
"""significant digits from which on a decimal may be the rounded target"""


def _same_number(given: Number, wanted: Number) -> bool:
    """Of one value, a unit left out or not; or rounded from the target to many digits."""
    mine, yours = given.unit, wanted.unit
    if mine is not None and yours is not None:
        return mine[1] == yours[1] and _close(given.value * mine[0], wanted.value * yours[0])
    if mine == PER_CENT:
        whole = abs(given.value) >= 1 and given.value == wanted.value
        return whole or given.value / 100 == wanted.value
    if yours == PER_CENT:
        return given.value in (wanted.value, wanted.value / 100)
    if mine is not None and mine[1] == "money":
        return wanted.value in (given.value, given.value * mine[0])
    return _close(given.value, wanted.value)


def _close(given: Fraction, wanted: Fraction) -> bool:
    if given == wanted:
        return True
    if _decimal(wanted) is not None or (text := _decimal(given)) is None:
        return False
    digits = text.lstrip("-0.").replace(".", "")
    places = len(text.partition(".")[2])
    return len(digits) >= _SEVERAL_DIGITS and abs(given - wanted) <= Fraction(1, 2 * 10**places)


def _decimal(value: Fraction) -> str | None:
    """A value as a finite decimal, None where it has none of at most 40 places."""
    places = next((n for n in range(41) if 10**n % value.denominator == 0), None)
    if places is None:
        return None
    scaled = abs(value.numerator) * 10**places // value.denominator
    text = str(scaled).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{text[:-places]}.{text[-places:]}" if places else text)


def _same_assigned(given: Form, wanted: Form, equal: Equal) -> bool:
    if isinstance(given, Assigned) and isinstance(wanted, Assigned):
        if given.name == wanted.name or _one_role(given.name, wanted.name):
            return same_form(given.value, wanted.value, equal)
        return _equal_texts(given, wanted, equal)
    named, bare = (given, wanted) if isinstance(given, Assigned) else (wanted, given)
    assert isinstance(named, Assigned)
    if isinstance(bare, Relation):
        return bare.sign == "=" and _equal_texts(given, wanted, equal)
    if isinstance(given, Assigned):
        return same_form(given.value, wanted, equal)
    return same_form(given, named.value, equal)


def _one_role(one: str, other: str) -> bool:
    """Names of the same thing: ``y`` and ``f(x)``, or two in words."""
    if "[mod" in one + other:
        return False
    functions = [len(name) > 1 and name.endswith(")") for name in (one, other)]
    if any(functions):
        return all(functions) or "y" in (one, other)
    return min(len(one), len(other)) > 1


def _equal_texts(one: Form, other: Form, equal: Equal) -> bool:
    texts = _text_of(one, other), _text_of(other, one)
    return texts[0] is not None and texts[1] is not None and equal(texts[0], texts[1])


def _same_relation(one: Relation, other: Relation, equal: Equal) -> bool:
    if one.sign != other.sign:
        return False
    if same_form(one.left, other.left, equal) and same_form(one.right, other.right, equal):
        return True
    if one.sign not in ("=", r"\ne"):
        return False
    if same_form(one.left, other.right, equal) and same_form(one.right, other.left, equal):
        return True
    return _equal_texts(one, other, equal)


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


def _text_of(form: Form, beside: Form) -> str | None:
    """A form as an expression or equation for a computer algebra system, if it is one."""
    match form:
        case Number(value, unit):
            text = _decimal(value)
            if text is None:
                sign = "-" if value < 0 else ""
                text = rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
            if unit == ANGLE and isinstance(beside, Expression) and r"\pi" in beside.text:
                return rf"\frac{{{text}\pi}}{{180}}"
            return text
        case Expression(text):
            return text
        case Assigned(name, value):
            inner = _text_of(value, beside)
            return None if inner is None else f"{name}={inner}"
        case Relation("=" | r"\ne", left, right):
            sides = _text_of(left, beside), _text_of(right, beside)
            return None if None in sides else f"{sides[0]}={sides[1]}"
    return None
