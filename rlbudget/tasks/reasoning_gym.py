"""Questions and verifiers of the ``reasoning-gym`` package.

The embedded model knows the families of ``EMBEDDED_FAMILIES``, the SmolLM2 reasoner those of
``SMOLLM2_FAMILIES``. A hash of its text *reserves* one question in eight. The models are trained on
the others only, so a reserved question is unseen, whatever seed drew it.

Scoring is the package's own: right means ``score_answer(answer) >= 1.0`` (partial credit is wrong).
Verifiers that evaluate text as code are refused: nine evaluate the model's answer, three evaluate
or execute parts of the stored entry, which may come from a file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlbudget.errors import UserError, missing_extra
from rlbudget.tasks.worker import Worker

EMBEDDED_FAMILIES: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 3, "max_terms": 9, "min_digits": 1, "max_digits": 1},
    "gcd": {"min_value": 2, "max_value": 99},
    "leg_counting": {"min_animals": 2, "max_animals": 5, "min_instances": 1, "max_instances": 9},
    "simple_equations": {"min_terms": 2, "max_terms": 3, "min_value": 1, "max_value": 16,
                         "operators_weights": [0.5, 0.5, 0.0]},
}  # fmt: skip
"""The families of the embedded model, each with the configuration of its questions."""

SMOLLM2_FAMILIES: dict[str, dict[str, Any]] = {
    "aiw": {"task_type_weights": [0.5, 0.5, 0.0], "max_entities": 9},
    "calendar_arithmetic": {"tasks": ["weekday_offset"], "offset_upper_bound": 30},
    "chain_sum": {"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1},
    "leg_counting": {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 6},
    "simple_equations": {"min_terms": 2, "max_terms": 3, "min_value": 1, "max_value": 9,
                         "operators_weights": [0.5, 0.5, 0.0]},
}  # fmt: skip
"""The families of the SmolLM2 reasoner, each with the configuration of its questions."""

RESERVED_ONE_IN = 8

CHUNK = 512
"""Questions made at once; part of what a seed means."""

ALLOWED = frozenset(
    "ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf "
    "binary_alternation boxnet caesar_cipher calendar_arithmetic chain_sum circuit_logic "
    "coin_flip color_cube_rotation complex_arithmetic count_bits count_primes course_schedule "
    "cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships "
    "figlet_font fraction_simplification futoshiki game_of_life game_of_life_halting gcd "
    "graph_color group_anagrams gsm_symbolic isomorphic_strings jugs kakurasu knight_swap "
    "knights_knaves largest_island lcm leg_counting letter_counting letter_jumble "
    "list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid "
    "needle_haystack number_filtering number_format number_sequence palindrome_generation "
    "palindrome_partitioning path_star polynomial_equations pool_matrix power_function "
    "prime_factorization products propositional_logic quantum_lock ransom_note rearc "
    "rectangle_count rotate_matrix rotten_oranges rubiks_cube rush_hour self_reference "
    "sentence_reordering shortest_path simple_equations simple_geometry sokoban spell_backward "
    "string_manipulation string_splitting string_synthesis sudoku survo syllogism "
    "time_intervals tower_of_hanoi tsumego word_ladder word_sequence_reversal word_sorting "
    "zebra_puzzles".split()
)
"""Families whose verifier evaluates neither the answer nor the stored entry."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "acre": ("on", "off", "undetermined"),
    "circuit_logic": ("0", "1"),
    "course_schedule": ("True", "False"),
    "family_relationships": tuple(
        "mother father sister brother daughter son wife husband grandmother grandfather aunt uncle"
        " niece nephew mother-in-law father-in-law".split()
    ),
    "isomorphic_strings": ("True", "False"),
    "mahjong_puzzle": ("Peng", "Chi", "Pass"),
    "ransom_note": ("True", "False"),
    "syllogism": ("Yes", "No"),
}
"""All answers of the families whose every question has the same few."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a family.

    ``entry`` is what the family's verifier needs to score an answer: plain JSON, so that an
    answer can be scored again from a stored trace.
    """

    family: str
    question: str
    target: str
    entry: dict[str, Any]


def reserved(question: str) -> bool:
    """Whether a question is kept from the embedded model's training: one in eight is."""
    digest = hashlib.sha256(question.encode()).digest()
    return int.from_bytes(digest, "big") % RESERVED_ONE_IN == 0


def draw(
    families: Mapping[str, Mapping[str, Any]] = EMBEDDED_FAMILIES,
    n: int = 1,
    seed: int = 0,
    reserved: bool | None = True,
) -> list[Item]:
    """Draw ``n`` distinct questions, the families in turn; the same seed, the same questions.

    ``reserved`` chooses the side of the reservation that the questions come from, None both. A
    family that holds too few leaves its place to the others. Raises ``UserError`` for a refused
    family, ``n < 1``, or more questions than the families hold.
    """
    if n < 1:
        raise UserError(f"the number of questions must be at least 1, got {n}")
    if not families:
        raise UserError("name at least one reasoning-gym family")
    columns: dict[str, list[Item]] = {family: [] for family in families}
    growing = list(families)
    while missing := n - sum(map(len, columns.values())):
        if not growing:
            raise UserError(
                f"reasoning-gym families {', '.join(families)} gave only {n - missing} distinct"
                f" questions of {n} wanted: ask for fewer or widen their configuration"
            )
        share, rest = divmod(missing, len(growing))
        for place, family in enumerate(tuple(growing)):
            more = share + (place < rest)
            wanted = len(columns[family]) + more
            if more:
                columns[family] = _distinct(family, families[family], wanted, seed, reserved)
            if len(columns[family]) < wanted:
                growing.remove(family)
    rounds = itertools.zip_longest(*columns.values())
    return [item for row in rounds for item in row if item is not None]


def score(family: str, entry: Mapping[str, Any], *answers: str) -> int:
    """1 if the family's own verifier gives one of the answers full credit, else 0.

    Never raises on strange text: a verifier that stumbles over an answer has not accepted it, nor
    has one that is not done with all of them in some seconds. Raises ``UserError`` for a family
    whose verifier is refused.
    """
    if family not in ALLOWED:
        raise _refused(family)
    if all(_is_quick(family, answer) for answer in answers):
        return max(judge(family, entry, answer) for answer in answers)
    given = [answer for answer in answers if len(answer) <= LONGEST_ANSWER]
    _package()
    said = _WORKER.ask(family, dict(entry), given, seconds=_SECONDS, cpu_seconds=_CPU_SECONDS)
    return int(said == 1)


LONGEST_ANSWER = 1_000_000
"""characters; a longer one is wrong"""
_SECONDS = 2.5
_CPU_SECONDS = 2
_WORKER = Worker(
    "rlbudget.tasks.reasoning_gym:first_right", "gcd", {"answer": "1", "metadata": {}}, ["2"]
)
_PLAIN_FAMILIES = frozenset(("chain_sum", "calendar_arithmetic"))
_PLAIN_ANSWER = re.compile(r"[+-]?[0-9]{1,15}|[A-Za-z]{1,15}")


def first_right(family: str, entry: Mapping[str, Any], answers: list[str]) -> int:
    """What the process of the verifiers runs: whether one of the answers is right."""
    return int(any(judge(family, entry, answer) for answer in answers))


def _is_quick(family: str, answer: str) -> bool:
    """Whether a verifier surely takes no time: it compares texts, or reads one plain number."""
    if family in _PLAIN_FAMILIES:
        return _PLAIN_ANSWER.fullmatch(answer) is not None
    return len(answer) <= LONGEST_ANSWER and _compares_texts(family)


def judge(family: str, entry: Mapping[str, Any], answer: str) -> int:
    """``score`` in this process, whatever time it takes."""
    verifier = _verifier(family)
    try:
        return int(float(verifier.score_answer(answer, dict(entry))) >= 1.0)
    except Exception:
        return 0


def _distinct(
    family: str, config: Mapping[str, Any], n: int, seed: int, side: bool | None
) -> list[Item]:
    """The first ``n`` distinct questions of the stream; fewer where no new one comes any more."""
    found: dict[str, Item] = {}
    dry = 0
    for item in _stream(family, config, seed):
        dry += 1
        if item.question not in found and side in (None, reserved(item.question)):
            found[item.question] = item
            dry = 0
        if len(found) == n or dry > RESERVED_ONE_IN * (4 * len(found) + 250):
            break
    return list(found.values())


def _stream(family: str, config: Mapping[str, Any], seed: int) -> Iterator[Item]:
    """Questions without end. Datasets seed row ``i`` with ``seed + i``: chunks lie far apart."""
    for chunk in itertools.count():
        key = hashlib.sha256(f"{family}/{seed}/{chunk}".encode()).digest()
        chunk_seed = int.from_bytes(key[:6], "big")
        dataset = _dataset(family, {**config, "seed": chunk_seed, "size": CHUNK})
        for index in range(CHUNK):
            entry = dataset[index]
            question = str(entry["question"]).rstrip()
            kept = {"answer": entry["answer"], "metadata": entry["metadata"]}
            yield Item(
                family, question, str(entry["answer"]), json.loads(json.dumps(kept, default=str))
            )


@lru_cache(maxsize=64)
def _verifier(family: str) -> Any:
    return _dataset(family, {"size": 1, "seed": 0})


@lru_cache(maxsize=128)
def _compares_texts(family: str) -> bool:
    """Whether the verifier is the package's default one, which looks for the target in a text."""
    package = _package()
    default = package.dataset.ProceduralDataset.score_answer
    return bool(package.factory.DATASETS[family][0].score_answer is default)


def _refused(family: str) -> UserError:
    return UserError(
        f"reasoning-gym family {family!r} is unknown or its verifier evaluates text;"
        f" allowed: {', '.join(sorted(ALLOWED))}"
    )


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise missing_extra("models", "reasoning-gym") from None
    return reasoning_gym


def _dataset(family: str, config: Mapping[str, Any]) -> Any:
    if family not in ALLOWED:
        raise _refused(family)
    try:
        return _package().create_dataset(family, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"reasoning-gym family {family}: bad configuration: {error}") from error
