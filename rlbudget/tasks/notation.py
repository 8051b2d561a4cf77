"""Mathematical notation: different spellings of an expression become one.

``tidy`` maps characters and LaTeX commands of one meaning to one spelling, so that later steps see
one minus, one fraction, one degree. ``compact`` also removes meaningless spaces: equal compact
texts are equal expressions.
"""

from __future__ import annotations

import re
import unicodedata

from rlbudget.tasks.remembered import remembered

_VULGAR = {c: unicodedata.normalize("NFKC", c).replace("\u2044", "/") for c in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGARS = re.compile(rf"(?<=[0-9])\s?[{''.join(_VULGAR)}]|[{''.join(_VULGAR)}]")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9.]+|[a-zA-Z]))")
_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-",
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/",
        "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ",
        "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "∅": r"\emptyset ", "⟨": r"\langle ",
        "⟩": r"\rangle ", "’": "'", "‘": "'", "“": '"', "”": '"',
        "→": " = ", "⇒": " = ", "➜": " = ", "⟹": " = ", "∴": " ",
        "∛": r"\sqrt[3]",
        "¢": " cents ", "‰": " permille ", "∨": " or ", "∧": " and ",
        "\u200b": "", "\u200c": "", "\u200d": "", "\ufeff": "", "\u2060": "", "\u00ad": "",
    }
)  # fmt: skip


_DECORATION = re.compile(
    "[\u2022\u2023\u25a0-\u25ff\u2600-\u27bf\u2b00-\u2bff\u220e\ufe0f\U0001f000-\U0001faff]"
)
"""Bullets, ticks and pictures."""


def plain_characters(text: str) -> str:
    """One minus, ASCII digits and symbols spelled as LaTeX; only invisible characters and
    decorations are removed.

    ``½`` is ``1/2``, ``x²`` is ``x^{2}``, ``√2`` is ``\\sqrt{2}``.
    """
    if text.isascii():
        return text
    text = _SUPERSCRIPTS.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPT) + "}", text)
    text = _SUBSCRIPTS.sub(lambda m: "_{" + m[0].translate(_SUBSCRIPT) + "}", text)
    text = _VULGARS.sub(_spelled_fraction, text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3]}}}", text)
    plain = unicodedata.normalize("NFKC", text.translate(_SYMBOLS))
    return plain if plain.isascii() else _DECORATION.sub(" ", plain)


def _spelled_fraction(match: re.Match[str]) -> str:
    spelled = _VULGAR[match[0][-1]]
    after_digit = match.start() > 0 and match.string[match.start() - 1].isdigit()
    return f" {spelled}" if after_digit else spelled


_GONE = re.compile(
    r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|Biggl?|Biggr|displaystyle|textstyle|limits"
    r"|nolimits|blacksquare|square|qed|checkmark|therefore|because|hfill|noindent|middle)(?![a-zA-Z])"
)
_SPACES = re.compile(
    r"(?<!\\)\\(?:[,;:> ]|(?:quad|qquad|space|(?:hspace\*?|phantom)\{[^{}]*\})(?![a-zA-Z]))|~|\s"
)
_STYLED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|normal|up)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathbb|mathcal"
    r"|boldsymbol|bm|operatorname\*?|emph|underline|color\{[a-z]+\}|textcolor\{[a-z]+\}|boxed|fbox"
    r"|ensuremath|bold|vec|hat|overrightarrow|underbrace)\s*\{([^{}]*)\}"
)
_COMMANDS = {
    name: spelled
    for spelled, names in {
        r"\frac": "dfrac tfrac cfrac",
        r"\le ": "leq leqslant",
        r"\ge ": "geq geqslant",
        r"\ne ": "neq",
        r"\approx ": "approx simeq doteq cong",
        "=": "Rightarrow implies rightarrow longrightarrow Longrightarrow",
        " or ": "lor vee",
        " and ": "land wedge",
        r"\cup ": "cup bigcup",
        r"\emptyset ": "varnothing",
        "...": "cdots ldots dots",
        "d": "differentialD",
        "<": "lt", ">": "gt", "(": "lparen langle", ")": "rparen rangle",
        "[": "lbrack", "]": "rbrack", r"\{": "lbrace", r"\}": "rbrace",
    }.items()
    for name in names.split()
}  # fmt: skip
_COMMAND = re.compile(rf"\\({'|'.join(_COMMANDS)})(?![a-zA-Z])")
_SAME = (
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"^\s*(?:=>|-+>)"), "="),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])"), " degrees "),
    (re.compile(r"\+/-|(?<![a-z])plus or minus(?![a-z])"), r"\\pm "),
    (re.compile(r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1 \2"),
    (re.compile(r"\\binom\s*([0-9])\s*([0-9])"), r"\\binom{\1}{\2}"),
    (re.compile(r"\{\s*([0-9a-z]+)\s*\\choose\s*([0-9a-z]+)\s*\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])"), r"\\cup "),
    (re.compile(r"\+\s*\\infty"), r"\\infty"),
    (re.compile(r"\\([%$&#])"), r"\1"),
    (re.compile(r"(?<![\\a-zA-Z])(?:[Ii]nfinity|inf|oo)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"\b(?:negative|minus)\s+\\infty"), r"-\\infty"),
    (re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"\*\*([^*]+)\*\*"), r" \1 "),
    (re.compile(r"(?<=[0-9a-zA-Z)}])\*\*(?=\s*[-({0-9a-z])"), "^"),
    (re.compile(r"\\mathrm\{d\}"), "d"),
)
_SHORT_FRACTION = re.compile(
    r"\\frac\s*(?:\{(?P<a>[^{}]*)\}|(?P<b>[0-9a-zA-Z]|\\[a-zA-Z]+))"
    r"\s*(?:\{(?P<c>[^{}]*)\}|(?P<d>[0-9a-zA-Z]|\\[a-zA-Z]+))"
)
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\[[0-9a-z]+\])?\s*([0-9a-zA-Z])")
THIN = re.compile(r"(?<=[0-9])\s*(?:\{,\}\s*|,\s*\\!\s*|\\,|\\!|\u2009)(?=[0-9]{3})|\\!")
"""What sets thousands apart, and negative spaces."""


@remembered(4096)
def tidy(expression: str) -> str:
    """An expression in one spelling, single spaces, none at its ends.

    Text commands (``\\text{cm}``) become their plain text, ``\\dfrac`` is ``\\frac``, ``\\left``
    and ``\\right`` and thin spaces go, thousands that are set apart by them are joined, degrees are
    the word. Linear in the length.
    """
    text = THIN.sub("", plain_characters(expression))
    if not text.isdigit():
        if "\\begin" in text:
            text = _environments(text)
        text = _GONE.sub("", text)
        text = _COMMAND.sub(lambda m: _COMMANDS[m[1]], text)
        for pattern, spelled in _SAME:
            text = pattern.sub(spelled, text)
        for _ in range(4):
            text, changed = _STYLED.subn(r" \1 ", text)
            if not changed:
                break
        text = _SHORT_FRACTION.sub(_full_fraction, text)
        text = _SHORT_ROOT.sub(lambda m: rf"\sqrt{m[1] or ''}{{{m[2]}}}", text)
    return " ".join(_SPACES.sub(" ", text).split())


_ALIGNED = re.compile(
    r"\\begin\s*\{(?P<name>(?:aligned|align|equation|gather|gathered|split|multline|eqnarray)\*?)\}"
    r"(?P<body>.*?)\\end\s*\{(?P=name)\}",
    re.DOTALL,
)
_ARRAY = re.compile(
    r"(?:\\left|\\[bB]igl?)?\s*[\[(]\s*\\begin\s*\{(?P<name>array|matrix|smallmatrix)\}"
    r"(?:\{[^{}]*\})?(?P<body>.*?)\\end\s*\{(?P=name)\}\s*(?:\\right|\\[bB]igr?)?\s*[\])]",
    re.DOTALL,
)


def _environments(text: str) -> str:
    """Aligned equations are one line, a bracketed array is a matrix."""
    text = _ARRAY.sub(lambda m: rf"\begin{{pmatrix}}{m['body']}\end{{pmatrix}}", text)
    return _ALIGNED.sub(lambda m: _one_line(m["body"]), text)


def _one_line(rows: str) -> str:
    out = ""
    for row in re.split(r"\\\\(?:\[[^\]]*\])?", rows):
        bare = row.replace("&", " ").strip()
        out += bare if not out or bare.startswith("=") or not bare else f", {bare}"
    return out


def _full_fraction(match: re.Match[str]) -> str:
    above = match["a"] if match["a"] is not None else match["b"]
    below = match["c"] if match["c"] is not None else match["d"]
    return rf"\frac{{{above.strip()}}}{{{below.strip()}}}"


_LOOSE = re.compile(
    "(?<![a-zA-Z0-9]) | (?![a-zA-Z0-9])|(?<=[0-9]) (?=[a-zA-Z])|(?<=[a-zA-Z]) (?=[0-9])"
)
_SINGLE = re.compile(r"([\^_])\{([0-9a-zA-Z])\}(?![0-9a-zA-Z])")
_TIMES = re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z]) ?")


def compact(tidied: str) -> str:
    """A tidy expression without the spaces and braces that mean nothing."""
    return _SINGLE.sub(r"\1\2", _LOOSE.sub("", _TIMES.sub("*", tidied)))
