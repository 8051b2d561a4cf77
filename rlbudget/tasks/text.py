"""Answers as text, compared after a normalisation that keeps every mark with a meaning.

The normalisation of SQuAD (Rajpurkar et al., 2016) deletes all punctuation, so that ``1/2`` is
``12`` and ``C++`` is ``C#``. Here case, articles, spacing, quotation marks, emphasis and sentence
punctuation are removed; mathematical signs and marks inside numbers and names are kept.
"""

from __future__ import annotations

import re
import unicodedata

from rlbudget.tasks.remembered import remembered

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"), "-")
_APOSTROPHES = dict.fromkeys(map(ord, "`\u2018\u2019\u02bc\u2032"), "'")
_QUOTES = dict.fromkeys(map(ord, "\u201c\u201d\u201e\u00ab\u00bb\u2033"), '"')
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\ufeff\u2060\u00ad"), None)
_SPELLED = str.maketrans(_DASHES | _APOSTROPHES | _QUOTES | _INVISIBLE)
_EMPHASIS = re.compile(r"(\*\*)(?=\S)([^*]+?)(?<=\S)\1|(?<![*\w])\*(?=\S)([^*\s][^*]*?)\*(?![*\w])")
_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|emph)\s*\{([^{}]*)\}")
_QUOTE = re.compile(r"(?<![0-9])['\"]|['\"](?=s\b)")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b(?=\s+\w{2})")
_SENTENCE = re.compile(
    r"(?<![0-9])[,;:](?![0-9])|[,;:](?=\s|$)|[?\u00a1\u00bf\u3002\u3001\uff0c]|\u2026|!(?=\s|$)"
)
_LIST_OF_NUMBERS = re.compile(r"(?<=[0-9]),\s+(?=[0-9])")
_INITIALS = re.compile(r"(?<![a-z0-9])([a-z])\.\s*(?=[a-z](?:\.|(?![a-z0-9])))")
_STOP = re.compile(r"\.(?=\W|$)(?!\.?[0-9])")
_BRACKETS = re.compile(r"[()\[\]{}]")
_LOOSE = re.compile(r"\s*([<>=+*/^]|!=)\s*|(?<=[0-9])\s+-\s+(?=[0-9])|\s+(?=%)")
_BULLET = re.compile(r"^\s*[-*\u2022]\s+")
_RAISED = re.compile("[\u00b2\u00b3\u00b9\u2070-\u207f]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")


@remembered(4096)
def normalise_text(text: str, *, articles: bool = True) -> str:
    """Casefolded NFKC without meaningless marks; ``articles=False`` removes articles as well.

    Full stops of abbreviations are removed (``U.S.A.`` is ``USA``), brackets become spaces, all
    dashes are one character.
    """
    if "\\" in text:
        text = _COMMAND.sub(r"\1", text).replace("\\%", "%")
        if "\\" in text:
            text = text.replace("$", " ")
    if text.count("$") == 2 and text.strip()[:1] == "$" == text.strip()[-1:]:
        text = text.strip()[1:-1]
    # NFKC would turn a superscript into a plain digit.
    marked = _VULGAR.sub(lambda m: " " + m[0], _RAISED.sub(lambda m: "^" + m[0], text))
    folded = unicodedata.normalize("NFKC", marked.translate(_SPELLED)).translate(_SPELLED)
    folded = _EMPHASIS.sub(lambda m: m[2] or m[3], folded.replace("\u2044", "/").casefold())
    if not articles:
        folded = _ARTICLES.sub(" ", folded)
    folded = _BULLET.sub("", _LIST_OF_NUMBERS.sub(",", _QUOTE.sub("", folded)))
    folded = _STOP.sub("", _INITIALS.sub(r"\1", _SENTENCE.sub(" ", folded)))
    folded = _LOOSE.sub(lambda m: m[1] or m[0].strip(), _BRACKETS.sub(" ", folded))
    return " ".join(folded.split())


_ASIDE = 400
"""characters of an answer that the normalisation may remove"""


def same_text(answer: str, target: str) -> bool:
    """Whether two texts are equal once normalised; a target of which nothing would be left (``A``,
    ``()``) is normalised less."""  # fmt: skip
    if len(answer) > 4 * len(target) + _ASIDE:
        return False
    for articles in (False, True):
        if wanted := normalise_text(target, articles=articles):
            return normalise_text(answer, articles=articles) == wanted
    return " ".join(answer.casefold().split()) == " ".join(target.casefold().split())
