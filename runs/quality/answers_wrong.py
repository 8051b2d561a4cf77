r"""Answers that are not the target, though they look like it or hold it.

Each kind is given where it is sure to be wrong only: 0 is not negated, 1 not inverted, a pair of
equals not swapped, no open end made closed at infinity.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from runs.quality.answer_shapes import Shape, same_answer

Forms = dict[str, str]

_OPPOSITES = {
    "even": "odd",
    "east": "west",
    "ellipse": "circle",
    "Evelyn": "Carla",
    "Navin": "Luka",
}
_SCALARS = ("number", "fraction", "mixed", "term")


def formulas(shape: Shape, others: Sequence[str], rng: random.Random) -> Forms:
    """LaTeX that means something else, by kind of mistake."""
    forms = _digits_off(shape)
    if (other := _other(shape, others, rng)) is not None:
        forms["another question's answer"] = other
    if shape.kind in _SCALARS:
        forms |= _scalar(shape)
    for maker in _BY_KIND.get(shape.kind, ()):
        forms |= maker(shape)
    return {kind: text for kind, text in forms.items() if not same_answer(text, shape.text)}


def sayings(shape: Shape, rng: random.Random) -> Forms:
    """Words that hold the answer and say something else: bounds, negations, multiples, others.

    Of the many bounds and multiples there are, some are drawn.
    """
    held = _held(shape)
    said = list(_NEGATIONS)
    if shape.kind in (*_SCALARS, "base"):
        said += rng.sample(_BOUNDS, 12)
    if shape.kind in ("number", "fraction", "mixed") and shape.value:
        said += rng.sample(_MULTIPLES, 8) + ([] if _half_turn(shape) else ["minus X"])
        said += ["X and a half"] if shape.integer is not None else []
    if shape.kind in (*_SCALARS, "base", "word"):
        said += rng.sample(_SEVERAL, 3)
    forms = {f"words: {w}": w.replace("X", held).replace("Y", _another(shape)) for w in said}
    if shape.value:
        forms |= _other_unit(shape)
    if shape.kind == "base":
        digits, base = shape.parts
        forms |= {"other base in words": f"{digits} in base {int(base) + 1}"}
    return forms


def sentences(shape: Shape) -> Forms:
    """Plain sentences that end in another number than the target, a whole positive number."""
    n = shape.integer
    if n is None or n <= 0 or shape.unit:
        return {}
    return {
        "the sum of the target and 2": f"So the total is {n} + 2 = {n + 2}.",
        "had the target, now has another": f"She had {n} eggs and now has {n + 1} of them.",
        "one more in bold": f"There are **{n + 1}** of them.",
        "the target only in a formula": f"Since ${n} - 1 = {n - 1}$, there are ${n - 1}$ of them.",
    }


def mentions(shape: Shape, other: str) -> Forms:
    """Whole answers in which the target stands, but another answer is given."""
    held = shape.bare
    return {
        "withdrawn box": f"So \\boxed{{{held}}}. Wait, that counts one twice. \\boxed{{{other}}}",
        "in the thinking only": f"<think>\nIt is \\boxed{{{held}}}.\n</think>\nAnswer: ${other}$",
        "in the working only": f"At first sight it is ${held}$, but the answer is ${other}$.",
        "target after a final box": f"The answer is $\\boxed{{{other}}}$. (I first had ${held}$.)",
        "a later answer line": f"The answer is ${held}$? No. The answer is ${other}$.",
        "an unfinished box": f"The answer is $\\boxed{{{other}}}$. In other words \\boxed{{{held}",
        "given as not the answer": f"The answer is not ${held}$.",
    }


_NEGATIONS = ("not X", "anything but X", "definitely not X", "not equal to X", "never X")
_BOUNDS = (
    *("more than X", "less than X", "at least X", "at most X", "greater than X", "fewer than X"),
    *("no more than X", "no less than X", "not more than X", "larger than X", "smaller than X"),
    *("strictly less than X", "above X", "below X", "over X", "under X", "beyond X"),
    *("X or more", "X or less", "X and above", "X or fewer"),
    *(
        "> X",
        "< X",
        "\\ge X",
        "\\le X",
        "\\geq X",
        "\\leq X",
        "\\gt X",
        "\\neq X",
        "≥ X",
        "≤ X",
        "≠ X",
    ),
    *("x > X", "x < X", "x \\le X", "x \\ge X", "x \\ne X", "n >= X", "n <= X", "n != X"),
)
_MULTIPLES = (
    *("X thousand", "X million", "X billion", "X hundred", "X dozen", "half of X", "twice X"),
    *("double X", "a third of X", "X times 2", "X squared", "X cubed", "the negative of X"),
    *("one more than X", "one less than X", "X plus one", "3 times X", "two and X tenths"),
    *(
        "X thousandths",
        "the sum of X and 1",
        "X multiplied by 5",
        "X divided by 3",
        "10 more than X",
    ),
)
_SEVERAL = (
    *("X or Y", "Y or X", "Y and X", "either X or Y", "neither X nor Y", "X, Y", "Y, X", "X; Y"),
    *("between X and Y", "from X to Y", "both X and Y"),
)


def _other(shape: Shape, others: Sequence[str], rng: random.Random) -> str | None:
    chosen = [t for t in rng.sample(others, min(8, len(others))) if not same_answer(t, shape.text)]
    return chosen[0] if chosen else None


def _digits_off(shape: Shape) -> Forms:
    """The first and the last number of the text, one more and one less."""
    text, forms = shape.bare, Forms()
    places = list(re.finditer(r"[0-9]+", text))
    if shape.kind == "word" or not places:
        return forms
    for name, place in (("first", places[0]), ("last", places[-1])):
        for step in (1, -1):
            digits = f"{int(place[0]) + step:0{len(place[0])}d}"
            if digits.startswith("-") or (step < 0 and int(digits) == 0):
                continue
            changed = text[: place.start()] + digits + text[place.end() :]
            forms[f"{name} number {step:+d}"] = changed
    return forms


def _scalar(shape: Shape) -> Forms:
    bare, forms = shape.bare, Forms()
    if shape.value == 0:
        return {"0 for 1": "1", "0 for i": "i", "one of two": "0, 1", "interval": "(0,1)"}
    if not _half_turn(shape):
        forms["sign"] = bare[1:].strip() if bare.startswith("-") else f"-{bare}"
        forms |= {} if bare.startswith("-") else {"both signs": f"\\pm {bare}"}
    if not bare.startswith("-") and shape.value != 1:
        forms["root"] = f"\\sqrt{{{bare}}}"
    forms |= {"times i": f"{bare} i", "times pi": f"{bare} \\pi", "times x": f"{bare} x"}
    forms |= {"plus 1": f"{bare}+1", "plus x": f"{bare}+x", "over 2": f"\\frac{{{bare}}}{{2}}"}
    forms |= {"times 10^3": f"{bare} \\times 10^3", "point": f"({bare},{bare})"}
    forms |= {"open interval": f"({bare},\\infty)", "closed interval": f"[0,{bare}]"}
    forms |= {"one of two": f"{bare}, {_another(shape)}"}
    forms |= {"one of a set": f"\\{{{bare}, {_another(shape)}\\}}"}
    forms |= _of_value(shape, shape.value) if shape.value is not None else _of_term(shape)
    return forms


def _half_turn(shape: Shape) -> bool:
    """Whether the target is 180 degrees, which is also minus 180 degrees."""
    return shape.unit == "degrees" and shape.value == 180


def _of_value(shape: Shape, value: Fraction) -> Forms:
    forms, n = Forms(), shape.integer
    if abs(value) != 1:
        over, under = abs(value.denominator), abs(value.numerator)
        minus = "-" if value < 0 else ""
        forms["inverse"] = f"{minus}\\frac{{{over}}}{{{under}}}" if under > 1 else f"{minus}{over}"
        forms["square"] = f"{shape.bare}^2" if value > 0 else f"({shape.bare})^2"
    if shape.kind == "fraction":
        over, under = abs(value.numerator), value.denominator
        forms |= {"point for bar": f"{over}.{under}", "bar lost": f"{over}{under}"}
        forms |= {"numerator only": f"{over}", "denominator only": f"{under}"}
        forms |= {
            "pair for fraction": f"({over}, {under})",
            "whole added": f"2\\frac{{{over}}}{{{under}}}",
        }
    if shape.kind == "mixed":
        whole, _, rest = shape.bare.partition("\\")
        forms |= {"whole lost": f"\\{rest}", "rest lost": whole.strip()}
        forms |= {"product for mixed": f"{whole.strip()} \\cdot \\{rest}"}
    if n is not None:
        forms |= _of_integer(n)
    return forms


def _of_integer(n: int) -> Forms:
    digits, minus = str(abs(n)), "-" if n < 0 else ""
    forms = {"zero added": f"{n}0", "thousand added": f"{n + 1000}", "half added": f"{n}.5"}
    forms |= {"power of ten": f"10^{{{n}}}", "hundredth": f"{minus}0.0{digits}"}
    if n > 0:
        forms |= {"power of two": f"2^{{{n}}}", "clock": f"{n}:30"}
        forms |= {"half in a mixed number": f"{n}\\frac{{1}}{{2}}", "repeated": f"{n}{n}"}
    if n > 9:
        forms |= {"digit dropped": digits[:-1], "digits reversed": digits[::-1].lstrip("0")}
        forms |= {"digits apart": ", ".join(digits), "another base": f"{n}_{{16}}"}
        forms |= {"point moved": f"{digits[:-1]}.{digits[-1]}"}
    if n > 2:
        forms["factorial"] = f"{n}! \\cdot 1"
    if n >= 1000:
        power, tail = len(digits) - 1, digits[1:].rstrip("0")
        mantissa = digits[0] + (f".{tail}" if tail else "")
        forms |= {"point for comma": f"{n:,}".replace(",", ".", 1).replace(",", "")}
        forms |= {"comma misplaced": f"{digits[:-2]},{digits[-2:]}"}
        forms |= {"exponent +1": f"{mantissa} \\times 10^{{{power + 1}}}"}
        forms |= {"exponent -1": f"{mantissa} \\times 10^{{{power - 1}}}"}
        forms |= {"exponent lost": mantissa} if tail else {}
    return forms


def _of_term(shape: Shape) -> Forms:
    bare, forms = shape.bare, Forms()
    if "\\sqrt" in bare:
        forms |= {"root lost": re.sub(r"\\sqrt\{([0-9]+)\}", r"(\1)", bare, count=1)}
        forms |= {"cube root": bare.replace("\\sqrt", "\\sqrt[3]")}
    if "\\pi" in bare and bare != "\\pi":
        forms |= {"pi lost": bare.replace("\\pi", "").strip().replace("{}", "{1}")}
        forms |= {"pi rounded": bare.replace("\\pi", "\\cdot 3")} if "frac" not in bare else {}
    if found := re.fullmatch(r"([0-9]+)\s*\\sqrt\{([0-9]+)\}", bare):
        forms |= {"root and factor swapped": f"{found[2]}\\sqrt{{{found[1]}}}"}
        forms |= {"factor below the root": f"\\sqrt{{{int(found[1]) * int(found[2])}}}"}
        forms |= {"sum for product": f"{found[1]}+\\sqrt{{{found[2]}}}"}
    if "\\cot" in bare:
        forms |= {"another function": bare.replace("\\cot", "\\tan")}
        forms |= {"another variable": bare.replace("x", "y")}
    if found := re.fullmatch(r"([0-9]+)([a-zA-Z])(?:\^([0-9]))?", bare):
        forms |= {"another variable": bare.replace(found[2], "q"), "variable lost": found[1]}
        forms |= {"exponent +1": f"{found[1]}{found[2]}^{int(found[3] or 1) + 1}"}
    return forms


def _sum(shape: Shape) -> Forms:
    first, *middle, last = shape.parts
    sign, term = last[0], last[1:].strip()
    flipped = f"{'-' if sign == '+' else '+'} {term}"
    letters = sorted(set(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", shape.bare)))
    forms = {
        "last sign": " ".join([first, *middle, flipped]),
        "last term lost": " ".join([first, *middle]),
        "first term lost": " ".join([*middle, last]).removeprefix("+").strip(),
        "sign": f"-({shape.bare})",
        "plus 1": f"{shape.bare} + 1",
        "terms as a list": ", ".join([first, *middle, term]),
        "product for sum": f"({')('.join([first, *middle, term])})",
    }
    if letters:
        forms["another variable"] = re.sub(rf"(?<![\\a-zA-Z]){letters[0]}", "w", shape.bare)
    if found := re.search(r"\^([0-9])", shape.bare):
        forms["exponent +1"] = (
            shape.bare[: found.start(1)] + str(int(found[1]) + 1) + shape.bare[found.end(1) :]
        )
    return forms


def _tuple(shape: Shape) -> Forms:
    bare, parts = shape.bare, list(shape.parts)
    opened, closed = _brackets(shape)
    forms = {"last member lost": f"{opened}{', '.join(parts[:-1])}{closed}"}
    forms |= {"a member more": f"{opened}{', '.join([*parts, '12'])}{closed}"}
    forms |= {"first member alone": parts[0], "last member alone": parts[-1]}
    if shape.kind in ("point", "interval"):
        forms |= {"as a sum": " + ".join(f"({part})" for part in parts)} if len(parts) == 2 else {}
    if shape.kind == "point":
        if parts != parts[::-1]:
            forms["reversed"] = f"({', '.join(parts[::-1])})"
        if parts[0] != "0":
            other = parts[0][1:] if parts[0].startswith("-") else f"-{parts[0]}"
            forms["sign of the first"] = f"({', '.join([other, *parts[1:]])})"
    if shape.kind == "interval":
        forms |= _ends(shape)
    if shape.kind in ("list", "set"):
        forms |= {"as a sum": "+".join(f"({part})" for part in parts)}
        forms |= {"sign of the last": bare.replace(parts[-1], f"-({parts[-1]})")}
    return forms


def _brackets(shape: Shape) -> tuple[str, str]:
    cut = shape.bare.replace("\\left", "").replace("\\right", "").strip()
    if shape.kind == "list":
        return "", ""
    return ("\\{", "\\}") if shape.kind == "set" else (cut[0], cut[-1])


def _ends(shape: Shape) -> Forms:
    """Open ends closed and closed ones opened, except at infinity."""
    low, high = shape.parts
    opened, closed = _brackets(shape)
    other = {"(": "[", "[": "(", ")": "]", "]": ")"}
    forms = {}
    if "\\infty" not in low:
        forms["left end"] = f"{other[opened]}{low}, {high}{closed}"
    if "\\infty" not in high:
        forms["right end"] = f"{opened}{low}, {high}{other[closed]}"
    if "\\infty" in low + high:
        finite = high if "\\infty" in low else low
        forms["other side"] = (
            f"({finite}, \\infty)" if "\\infty" in low else f"(-\\infty, {finite})"
        )
    else:
        forms["ends swapped"] = f"{opened}{high}, {low}{closed}"
    return forms


def _union(shape: Shape) -> Forms:
    parts = [part.strip() for part in shape.bare.split("\\cup")]
    return {
        "an interval lost": parts[0],
        "intersection": " \\cap ".join(parts),
        "ends closed": shape.bare.replace("(0,", "[0,").replace("12)", "12]").replace("2)", "2]"),
        "minus": " \\setminus ".join(parts),
    }


def _membership(shape: Shape) -> Forms:
    interval = shape.bare.partition("\\in ")[2]
    return {
        "not in": f"x \\notin {interval}",
        "left end": f"x \\in ({interval[1:]}",
        "right end": f"x \\in {interval[:-1]})",
        "an end alone": re.findall(r"-?[0-9]+", interval)[-1],
    }


def _plus_minus(shape: Shape) -> Forms:
    plus, minus = (re.sub(r"\\pm", sign, shape.bare) for sign in "+-")
    middle = shape.bare.partition("\\pm")[0].strip()
    return {
        "plus alone": plus,
        "minus alone": minus,
        "middle alone": middle,
        "sign of the middle": f"-{shape.bare}",
        "a member more": f"{plus}, {minus}, 0",
    }


def _base(shape: Shape) -> Forms:
    digits, base = shape.parts
    return {
        "base dropped": digits,
        "base 10": f"{digits}_{{10}}",
        "base +1": f"{digits}_{int(base) + 1}",
        "value in base 10, one off": str(int(digits, int(base)) + 1),
        "digits reversed": f"{digits[::-1]}_{base}",
        "sign": f"-{digits}_{base}",
        "power for base": f"{digits}^{base}",
        "digit dropped": f"{digits[:-1]}_{base}",
    }


def _word(shape: Shape) -> Forms:
    word = shape.parts[0]
    other = chr(ord("A") + (ord(word) - ord("A") + 1) % 5) if len(word) == 1 else _OPPOSITES[word]
    forms = {"another": f"\\text{{{other}}}", "with not": f"\\text{{not {word}}}"}
    forms |= {
        "one of two": f"\\text{{{word} and {other}}}",
        "one of a list": f"\\text{{{other}, {word}}}",
    }
    forms |= {"part of a word": f"\\text{{{word}s and more}}"} if len(word) > 1 else {}
    return forms


def _matrix(shape: Shape) -> Forms:
    inner = re.sub(r"\\(?:begin|end)\{pmatrix\}", "", shape.bare)
    rows = [row.strip() for row in inner.split("\\\\")]
    forms = {"last row lost": _pmatrix(rows[:-1])}
    if rows != rows[::-1]:
        forms["rows reversed"] = _pmatrix(rows[::-1])
    forms["a row more"] = _pmatrix([*rows, rows[0]])
    forms["times -1"] = f"-{shape.bare}"
    forms["times 2"] = f"2{shape.bare}"
    if "&" not in inner:
        forms["as a sum"] = "+".join(f"({row})" for row in rows)
    return forms


def _pmatrix(rows: Sequence[str]) -> str:
    inner = " \\\\ ".join(rows)
    return f"\\begin{{pmatrix}} {inner} \\end{{pmatrix}}"


def _equation(shape: Shape) -> Forms:
    left, right = shape.parts
    forms = {"an inequality": f"{left} > {right}", "unequal": f"{left} \\ne {right}"}
    forms |= {"plus 1 on the right": f"{left} = {right} + 1"}
    if re.fullmatch("[a-z]", left):
        forms |= {"another variable": f"w = {right}", "sign of the right": f"{left} = -({right})"}
    return forms


_BY_KIND: dict[str, tuple[Callable[[Shape], Forms], ...]] = {
    "sum": (_sum,),
    "point": (_tuple,),
    "interval": (_tuple,),
    "list": (_tuple,),
    "set": (_tuple,),
    "union": (_union,),
    "membership": (_membership,),
    "plus-minus": (_plus_minus,),
    "base": (_base,),
    "word": (_word,),
    "matrix": (_matrix,),
    "equation": (_equation,),
}


def _other_unit(shape: Shape) -> Forms:
    units = {
        "degrees": "radians",
        "dollars": "cents",
        "cents": "dollars",
        "cm^2": "m^2",
        "inches^2": "feet^2",
    }
    other = units.get(shape.unit)
    return {"unit of another size": f"{shape.bare} {other}"} if other else {}


def _held(shape: Shape) -> str:
    return shape.parts[0] if shape.kind == "word" else shape.bare


def _another(shape: Shape) -> str:
    """A second answer beside the target, told from it."""
    if shape.kind == "word":
        word = shape.parts[0]
        return _OPPOSITES.get(word, "D" if word != "D" else "A")
    return str(shape.integer + 1) if shape.integer is not None else "7"
