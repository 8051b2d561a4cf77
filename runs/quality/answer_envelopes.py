r"""The sentences, boxes and marks that an answer comes in, each around any answer.

A ``formula`` is LaTeX without marks around it, and may stand in ``$ $`` and ``\boxed``; ``prose``
has words of its own and stands in sentences only.
"""

from __future__ import annotations

from collections.abc import Callable

Envelope = Callable[[str], str]

_WORKING = (
    "We start from what is given: there are 7 of the first kind and 12 of the second, so $7 + 12 = "
    "19$ in all. Let $y$ be what remains; then $y^2 - 19y + 84 = 0$, and (by symmetry) $y = 7$ or "
    "$y = 12$.\n\n"
)

OF_PROSE: dict[str, Envelope] = {
    "bold": lambda a: f"**{a}**",
    "The answer is a.": lambda a: f"The answer is {a}.",
    "The answer is bold a.": lambda a: f"The answer is **{a}**.",
    "Answer: a": lambda a: f"Answer: {a}",
    "bold Answer: a": lambda a: f"**Answer:** {a}",
    "Final answer: bold": lambda a: f"{_WORKING}**Final answer: {a}**",
    "So the answer is: a": lambda a: f"{_WORKING}So the answer is: {a}",
    "#### a": lambda a: f"7 + 12 = <<7+12=19>>19 of both.\n#### {a}",
    "after thinking": lambda a: f"<think>\nFirst try: 19. No.\n</think>\n\nThe answer is {a}.",
    "lines around": lambda a: f"\n{a}\n\n",
}

OF_FORMULA: dict[str, Envelope] = {
    "$ $": lambda a: f"${a}$",
    "$$ $$": lambda a: f"$${a}$$",
    "\\( \\)": lambda a: f"\\({a}\\)",
    "\\[ \\]": lambda a: f"\\[{a}\\]",
    "full stop": lambda a: f"{a}.",
    "boxed": lambda a: f"\\boxed{{{a}}}",
    "boxed in $": lambda a: f"$\\boxed{{{a}}}$.",
    "boxed in \\[ \\]": lambda a: f"\\[\n\\boxed{{{a}}}\n\\]",
    "fbox": lambda a: f"$\\fbox{{{a}}}$",
    "\\displaystyle": lambda a: f"\\displaystyle {a}",
    "boxed \\displaystyle": lambda a: f"\\boxed{{\\displaystyle {a}}}",
    "bold $": lambda a: f"**${a}$**",
    "The answer is bold $.": lambda a: f"The answer is **${a}$**.",
    "The answer is $.": lambda a: f"The answer is ${a}$.",
    "Final Answer heading": lambda a: f"**Final Answer**\n\\boxed{{{a}}}",
    "Final Answer heading, \\[ \\]": lambda a: (
        f"{_WORKING}**Final Answer**\n\n\\[\n\\boxed{{{a}}}\n\\]"
    ),
    "boxed, then a remark": lambda a: f"The answer is \\boxed{{{a}}}. I hope this helps!",
    "boxed, then a check": lambda a: (
        f"The answer is $\\boxed{{{a}}}$.\n\nCheck: $7 + 12 = 19$, as it must be."
    ),
    "Therefore, the sum is boxed": lambda a: f"Therefore, the sum is \\boxed{{{a}}}.",
    "Therefore, the product is $": lambda a: f"Therefore, the product is ${a}$.",
    "The point we want": lambda a: f"So the point we want gives $\\boxed{{{a}}}$.",
    "the limit of the integral": lambda a: (
        f"Taking the limit of the integral (see 2.) we find ${a}$."
    ),
    "minerva": lambda a: f"Final Answer: The final answer is ${a}$. I hope it is correct.",
    "Answer: $": lambda a: f"Answer: ${a}$",
    "The final answer is: $boxed": lambda a: f"{_WORKING}The final answer is: $\\boxed{{{a}}}$",
    "after thinking, boxed": lambda a: (
        f"<think>\nSo \\boxed{{19}}? No.\n</think>\n\n{_WORKING}\\boxed{{{a}}}"
    ),
    "a box withdrawn": lambda a: (
        f"So we get \\boxed{{1729}}. Wait, that counts one twice. The answer is \\boxed{{{a}}}."
    ),
    "a box that never ends": lambda a: f"The answer is $\\boxed{{{a}}}$. In other words \\boxed{{",
    "six pages of working": lambda a: f"{_WORKING * 60}Hence the answer is $\\boxed{{{a}}}$.",
    "working, then a last line": lambda a: f"{_WORKING}Therefore\n\n${a}$",
}
"""Around a formula; everything in ``OF_PROSE`` may stand around one too."""
