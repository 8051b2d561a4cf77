"""Repair: an answer without the wrapping that makes an exact match fail. It costs no token."""

from __future__ import annotations

import re


def repaired(answer: str) -> str:
    """``$12.0$`` -> ``12``.

    Takes away LaTeX boxes and dollar signs, "the answer is", "x =", a final full stop, thousands
    separators and empty decimals. Leaves what is none of these as it is.
    """
    text = answer.strip()
    boxed = re.search(r"\\boxed\{([^{}]*)\}", text)
    if boxed:
        text = boxed.group(1)
    text = text.strip("$ \n\t")
    text = re.sub(r"(?i)^(?:so,? )?(?:the )?(?:final )?answer(?: is|:)\s*", "", text)
    text = re.sub(r"^[A-Za-z]\s*=\s*", "", text)
    text = text.rstrip(".").strip()
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)
