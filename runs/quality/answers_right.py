r"""Other ways in which a right answer is written: each of them is the same answer.

``formulas`` gives LaTeX that may stand in any envelope, ``sayings`` gives words around it. Which
rewriting is possible is said by rule: no separator goes into a number below 1,000, no unit onto a
negative number, no list is reversed whose order counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from runs.quality.answer_shapes import Shape, split_at, with_braces

Forms = dict[str, str]

_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION = re.compile(rf"\\frac{_GROUP}{_GROUP}")
_SIGNS = {"\\pi": "π", "\\infty": "∞", "\\le ": "≤ ", "\\cup": "∪", "\\pm": "±", "\\in ": "∈ "}
_BASES = {"5": "five", "6": "six", "8": "eight", "9": "nine"}


def formulas(shape: Shape) -> Forms:
    """LaTeX that means the same, by kind of rewriting; those equal to the target left out."""
    forms: Forms = {}
    for maker in (_spelling, _fractions, *_BY_KIND.get(shape.kind, ())):
        forms.update(maker(shape))
    if shape.value is not None:
        forms.update(_units(shape))
    return {kind: text for kind, text in forms.items() if text != shape.text}


def sayings(shape: Shape) -> Forms:
    """The answer in words, or with a unit behind it, by kind of rewriting."""
    bare, forms = shape.bare, Forms()
    if shape.kind == "number" and not shape.unit and not bare.startswith("-"):
        forms |= {"+ dollars": f"{bare} dollars", "+ cm": f"{bare} cm"}
        forms |= {"+ ways": f"{bare} ways"} if shape.integer is not None else {}
    if shape.unit == "degrees":
        forms |= {"word degrees": f"{_short(bare)} degrees", "degree sign": f"{_short(bare)}°"}
    if shape.unit == "dollars":
        forms |= {"word dollars": f"{bare} dollars", "dollar sign": f"${bare}"}
    if shape.unit == "cents":
        forms |= {"word cents": f"{bare} cents"}
    if shape.kind == "base":
        digits, base = shape.parts
        forms |= {"in base b": f"{digits} in base {base}", "(base b)": f"{digits} (base {base})"}
        forms |= {"in base word": f"{digits} in base {_BASES[base]}"} if base in _BASES else {}
    if shape.kind == "word":
        word = shape.parts[0]
        forms |= {"plain word": word, "case": word.upper(), "quoted": f'"{word}"'}
        forms |= {"option in brackets": f"({word})"} if len(word) == 1 else {}
    if shape.kind == "list":
        forms |= {"and": f"{', '.join(shape.parts[:-1])} and {shape.parts[-1]}"}
        forms |= {"or": f"{', '.join(shape.parts[:-1])} or {shape.parts[-1]}"}
    return forms


def sentences(shape: Shape) -> Forms:
    """Plain sentences that give the answer; eggs are counted in whole positive numbers only."""
    n, forms = shape.integer, Forms()
    if shape.kind not in ("equation", "membership", "word", "list", "plus-minus"):
        forms |= {"A = boxed": f"Therefore $A = \\boxed{{{shape.text}}}$."}
        forms |= {"A = formula": f"Therefore, $A = {shape.text}$."}
    if n is None or n <= 0 or shape.unit:
        return forms
    return forms | {
        "eggs left": f"So she has {n} eggs left.",
        "an exclamation": f"The answer is {n}!",
        "bold and eggs": f"So she has **{n}** eggs left.",
        "boxed with unit outside": f"So there are $\\boxed{{{n}}}$ ways in all.",
        "the sum worked out": f"So the total is {n + 2} - 2 = {n}.",
        "equals": f"Thus $7 + 12 - 19 + {n} = {n}$.",
    }


def _spelling(shape: Shape) -> Forms:
    text, forms = shape.text, Forms()
    if not re.search(r"\\(text|mbox)", text):
        forms["spaces removed"] = re.sub(r"(?<![a-zA-Z]) +| +(?![a-zA-Z])", "", text)
    if "\\left" in text:
        forms["left and right removed"] = text.replace("\\left", "").replace("\\right", "")
    elif shape.kind in ("point", "interval"):
        forms["left and right"] = f"\\left{text[:-1]}\\right{text[-1]}"
    if shape.kind in ("point", "interval", "list"):
        forms["comma and space"] = re.sub(r",\s*", ", ", text)
        forms["spaces inside"] = re.sub(r",\s*", r" ,\\, ", text)
    forms["signs"] = _with_signs(text)
    if "\\infty" in text:
        forms["+infinity"] = re.sub(r"(?<!-)\\infty", r"+\\infty", text)
    return forms


def _with_signs(text: str) -> str:
    for command, sign in _SIGNS.items():
        text = text.replace(command, sign)
    return re.sub(r"\\sqrt(?:\{([0-9]+)\}|([0-9]))", r"√\1\2", text)


def _fractions(shape: Shape) -> Forms:
    text = shape.text.replace("\\dfrac", "\\frac")
    if "\\frac" not in text:
        return {}
    braced = with_braces(text)
    return {
        "frac": text,
        "dfrac": text.replace("\\frac", "\\dfrac"),
        "tfrac": text.replace("\\frac", "\\tfrac"),
        "frac with braces": braced,
        "frac without braces": re.sub(r"\\frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2", braced),
        "a/b": _FRACTION.sub(_slash, re.sub(r"([0-9])\s*\\frac", r"\1 \\frac", braced)),
    }


def _slash(found: re.Match[str]) -> str:
    over, under = found[1], found[2]
    return "/".join(
        part if re.fullmatch(r"[0-9]+|\\?[a-z]+", part) else f"({part})" for part in (over, under)
    )


def _units(shape: Shape) -> Forms:
    bare, forms = shape.bare, Forms()
    if shape.unit == "degrees":
        forms |= {
            "degrees braced": f"{bare}^{{\\circ}}",
            "text degrees": f"{bare}\\text{{ degrees}}",
        }
    if shape.unit in ("degrees", "dollars", "cents"):
        forms |= {"unit dropped": bare}
    if shape.unit == "dollars":
        forms |= {"\\$": f"\\${bare}", "text dollars": f"{bare}\\text{{ dollars}}"}
    if shape.unit.endswith("^2"):
        length = shape.unit.removesuffix("^2")
        forms |= {"unit dropped": bare, "text unit": f"{bare} \\text{{ {length}}}^2"}
        forms |= {"mathrm unit": f"{bare}\\,\\mathrm{{{length}^2}}"}
        forms |= {"square unit": f"{bare}\\text{{ square {length}}}"}
    if shape.kind == "number" and not shape.unit and not bare.startswith("-"):
        forms |= {"+ text units": f"{bare}\\text{{ units}}", "+ text cm": f"{bare}\\text{{ cm}}"}
        forms |= {"+ mathrm cm": f"{bare}\\,\\mathrm{{cm}}", "+ cm^2": f"{bare}\\text{{ cm}}^2"}
        forms |= {"+ mbox inches": f"{bare} \\mbox{{ inches}}"}
    return forms


def _number(shape: Shape) -> Forms:
    bare = shape.bare
    forms = {"bold digits": f"\\mathbf{{{bare}}}", "text digits": f"\\text{{{bare}}}"}
    if not shape.unit:
        forms |= {"x = ": f"x = {bare}", "N=": f"N={bare}", "in braces": f"{{{bare}}}"}
    if bare.startswith("-"):
        forms |= {"unicode minus": f"−{bare[1:]}", "minus and space": f"- {bare[1:]}"}
    elif bare != "0":
        forms |= {"plus": f"+{bare}"}
    forms |= _integer(shape.integer) if shape.integer is not None else _decimal(shape)
    return forms


def _integer(n: int) -> Forms:
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in str(n))
    forms = {"x.0": f"{n}.0", "x.00": f"{n}.00", "wide digits": wide}
    forms |= {"a fraction over 1": f"\\frac{{{n}}}{{1}}"}
    if abs(n) < 1000:
        return forms
    for name, separator in (
        ("comma", ","),
        ("braced comma", "{,}"),
        ("comma and \\!", ",\\!"),
        ("\\,", "\\,"),
        ("space", " "),
        ("thin space", "\u202f"),
        ("no-break space", "\u00a0"),
        ("no separator", ""),
    ):
        forms[f"thousands: {name}"] = f"{n:,}".replace(",", separator)
    digits, power = str(abs(n)).rstrip("0"), len(str(abs(n))) - 1
    mantissa = ("-" if n < 0 else "") + digits[0] + (f".{digits[1:]}" if digits[1:] else "")
    forms |= {"scientific": f"{mantissa} \\times 10^{{{power}}}", "e": f"{mantissa}e{power}"}
    forms |= {"scientific, \\cdot": f"{mantissa}\\cdot10^{power}"} if power < 10 else {}
    return forms


def _decimal(shape: Shape) -> Forms:
    assert shape.value is not None
    over, under = shape.value.numerator, shape.value.denominator
    forms = {"as a fraction": f"\\frac{{{over}}}{{{under}}}", "as a/b": f"{over}/{under}"}
    if shape.bare.startswith("."):
        forms["leading zero"] = f"0{shape.bare}"
    elif shape.bare.startswith("0."):
        forms["no leading zero"] = shape.bare[1:]
    forms["trailing zero"] = f"{shape.bare}0"
    return forms


def _fraction(shape: Shape) -> Forms:
    assert shape.value is not None
    value, forms = shape.value, Forms()
    sign, over, under = "-" if value < 0 else "", abs(value.numerator), value.denominator
    forms["improper"] = f"{sign}\\frac{{{over}}}{{{under}}}"
    if value < 0:
        forms["minus inside"] = f"\\frac{{-{over}}}{{{under}}}"
        forms["minus below"] = f"\\frac{{{over}}}{{-{under}}}"
    if over > under > 1:
        forms["mixed"] = f"{sign}{over // under}\\frac{{{over % under}}}{{{under}}}"
        forms["mixed a b/c"] = f"{sign}{over // under} {over % under}/{under}"
    if not (10**6) % under:
        forms["decimal"] = f"{sign}{_decimals(over, under)}"
    if not shape.unit:
        forms |= {"x = ": f"x = {shape.bare}", "p=": f"p={shape.bare}"}
    return forms


def _decimals(over: int, under: int) -> str:
    """The exact decimal of a fraction whose denominator divides a million."""
    millionths = f"{over * 10**6 // under:07d}"
    return f"{millionths[:-6]}.{millionths[-6:].rstrip('0')}"


def _term(shape: Shape) -> Forms:
    bare, forms = shape.bare, Forms()
    if found := re.fullmatch(r"([0-9]+)\s*(\\sqrt\{[0-9]+\}|\\pi)", bare):
        forms |= {
            "\\cdot": f"{found[1]} \\cdot {found[2]}",
            "\\times": f"{found[1]}\\times{found[2]}",
        }
        forms |= {"star": f"{found[1]}*{found[2]}", "\\,": f"{found[1]}\\,{found[2]}"}
        forms |= {"factors swapped": f"{found[2]} \\cdot {found[1]}"}
        plain = re.sub(r"\\sqrt\{([0-9]+)\}", r"sqrt(\1)", found[2]).replace("\\", "")
        forms |= {"sqrt( )": f"{found[1]}*{plain}"}
    if found := re.fullmatch(r"(-?)\\sqrt\{([0-9]+)\}", bare):
        forms |= {
            "sqrt( )": f"{found[1]}sqrt({found[2]})",
            "root": f"{found[1]}\\sqrt[2]{{{found[2]}}}",
        }
    if found := re.fullmatch(r"\\frac\{\\sqrt\{([0-9]+)\}\}\{\1\}", bare):
        forms |= {"root below": f"\\frac{{1}}{{\\sqrt{{{found[1]}}}}}"}
    if found := re.fullmatch(r"\\frac\{([0-9]*)(\\sqrt\{[0-9]+\})\}\{([0-9]+)\}", bare):
        forms |= {"root beside": f"\\frac{{{found[1] or 1}}}{{{found[3]}}}{found[2]}"}
    if found := re.fullmatch(r"(\([^()]*\))(\([^()]*\))", bare):
        forms |= {"factors swapped": found[2] + found[1]}
    return forms


def _sum(shape: Shape) -> Forms:
    terms = [re.sub(r"^([+-])\s*", r"\1", term) for term in shape.parts]
    signed = [term if term[0] in "+-" else f"+{term}" for term in terms]
    spaced = [re.sub(r"^([+-])", r"\1 ", term) for term in signed]
    return {
        "terms reversed": "".join(signed[::-1]).removeprefix("+"),
        "terms spaced": " ".join([terms[0], *spaced[1:]]),
        "in brackets": f"({shape.bare})",
    }


def _list(shape: Shape) -> Forms:
    parts = list(shape.parts)
    forms = {"list reversed": ", ".join(parts[::-1]), "as a set": f"\\{{{', '.join(parts)}\\}}"}
    forms |= {"text and": f"{', '.join(parts[:-1])} \\text{{ and }} {parts[-1]}"}
    forms |= {"x = each": ", ".join(f"x = {part}" for part in parts)}
    forms |= {"x = each, or": " \\text{ or } ".join(f"x = {part}" for part in parts)}
    return forms


def _set(shape: Shape) -> Forms:
    forms = {"set reversed": f"\\{{{', '.join(shape.parts[::-1])}\\}}"}
    forms |= {"braces dropped": ", ".join(shape.parts)}
    spelled = [p for part in shape.parts for p in _both_signs(part)]
    forms |= {"both signs": f"\\{{{', '.join(spelled)}\\}}"}
    return forms


def _plus_minus(shape: Shape) -> Forms:
    both = _both_signs(shape.bare)
    forms = {"both signs": ", ".join(both), "both signs reversed": ", ".join(both[::-1])}
    forms |= {"both signs, and": " \\text{ and } ".join(both)}
    forms |= {"both signs, a set": f"\\{{{', '.join(both)}\\}}"}
    return forms


def _both_signs(part: str) -> list[str]:
    if "\\pm" not in part:
        return [part]
    return [re.sub(r"\s*\\pm\s*", f" {sign} ", part) for sign in "+-"]


def _base(shape: Shape) -> Forms:
    digits, base = shape.parts
    return {"base in braces": f"{digits}_{{{base}}}", "base plain": f"{digits}_{base}"}


def _word(shape: Shape) -> Forms:
    word = shape.parts[0]
    return {name: f"\\{name}{{{word}}}" for name in ("text", "mathrm", "textbf", "mathbf")}


def _interval(shape: Shape) -> Forms:
    cut = shape.bare.replace("\\left", "").replace("\\right", "")
    low, high = shape.parts
    under, over = "<" if cut[0] == "(" else "\\le", "<" if cut[-1] == ")" else "\\le"
    forms = {"x in": f"x \\in {shape.bare}"}
    if high == "\\infty":
        forms["as an inequality"] = f"x {under.replace('<', '>').replace('le', 'ge')} {low}"
    elif low == "-\\infty":
        forms["as an inequality"] = f"x {over} {high}"
    else:
        forms["as an inequality"] = f"{low} {under} x {over} {high}"
    return forms


def _union(shape: Shape) -> Forms:
    parts = [part.strip() for part in shape.bare.split("\\cup")]
    return {"union reversed": " \\cup ".join(parts[::-1]), "x in": f"x \\in {shape.bare}"}


def _membership(shape: Shape) -> Forms:
    return {"x in dropped": shape.bare.partition("\\in ")[2]}


def _matrix(shape: Shape) -> Forms:
    forms = {"bmatrix": shape.bare.replace("pmatrix", "bmatrix")}
    forms |= {"fractions": re.sub(r"([0-9]+)/([0-9]+)", r"\\frac{\1}{\2}", shape.bare)}
    forms |= {"no spaces": re.sub(r"\s+", "", shape.bare)}
    return forms


def _equation(shape: Shape) -> Forms:
    left, right = shape.parts
    forms = {"sides swapped": f"{right} = {left}", "no spaces": re.sub(r"\s", "", shape.bare)}
    if re.fullmatch(r"[a-z]", left) and len(split_at(right, "+-")) == 1 and right.isdigit():
        forms["left side dropped"] = right
    return forms


_BY_KIND: dict[str, tuple[Callable[[Shape], Forms], ...]] = {
    "number": (_number,),
    "fraction": (_fraction,),
    "mixed": (_fraction,),
    "term": (_term,),
    "sum": (_sum,),
    "list": (_list,),
    "set": (_set,),
    "plus-minus": (_plus_minus,),
    "base": (_base,),
    "word": (_word,),
    "interval": (_interval,),
    "union": (_union,),
    "membership": (_membership,),
    "matrix": (_matrix,),
    "equation": (_equation,),
}


def _short(bare: str) -> str:
    return re.sub(r"\\frac\{([0-9]+)\}\{([0-9]+)\}", r"\1/\2", bare)
