"""What each rule does, in one sentence of plain words: the catalogue that people read."""

from __future__ import annotations

from collections.abc import Mapping

ABOUT: Mapping[str, str] = {
    "full": "Never stops: the model thinks to its natural end.",
    "fixed": "Stops every question after the same number of thinking tokens.",
    "random": "Stops by a coin toss at every checkpoint: what a policy has to beat at the least.",
    "p_end": "Stops once the model itself came close to ending its thinking.",
    "certain": "Stops once the model has been sure of its next words for a while.",
    "entropy": "Stops once the model's doubt about its next words has been low for long.",
    "thinkbrake": "Stops at the end of a sentence where ending was about as likely as going on.",
    "deepconf": "Stops once the confidence of the latest tokens leaves the usual range.",
    "verbatim": "Stops once many of the latest tokens repeat, one by one, what was written.",
    "confidence": "Stops once the model is confident in a trial answer, asked at every checkpoint.",
    "deer": "Stops once the model is confident in a trial answer, asked at turns of thought"
    ' ("wait") only.',
    "streak": "Stops once so many trial answers in a row are the same.",
    "convergence": "Stops once two trial answers in a row are the same.",
    "dynasor": "Stops once the last trial answers agree and none of them doubts itself.",
    "eat": "Stops once the model's doubt about how an answer would begin no longer changes.",
    "halt": "Stops once the model strongly prefers one of the answer options.",
    "loop": "Stops once the model repeats what it has written before.",
    "claims": "Stops once the last answers that the thinking itself names are the same.",
    "conclusions": 'Stops once the thinking has used so many concluding words, such as "so".',
    "hedges": 'Stops once the thinking has used so many words of doubt, such as "wait".',
    "repeats": "Stops once much of the latest thinking was written before.",
    "fixed-n": "Draws the same number of samples for every question.",
    "ac-beta": "Stops sampling once the leading answer is surely ahead of the second"
    " (Adaptive-Consistency).",
    "ac-dirichlet": "Stops sampling once the leading answer is surely ahead of the next four"
    " (Adaptive-Consistency).",
    "esc": "Stops sampling once a whole window of samples gives the same answer.",
    "logistic": "Stops once a logistic regression on the signals and the trial answer finds the"
    " answer likely to be right.",
    "zelt": "Stops once a logistic regression finds a trial answer likely to be right, at a"
    " threshold that bounds the harm on training questions.",
}
"""rule -> what it does"""
