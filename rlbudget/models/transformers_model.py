"""Any causal language model of transformers as a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)
from transformers.utils import logging as _logging

from rlbudget.errors import UserError
from rlbudget.models.attention import install
from rlbudget.models.decode_batch import DecodeBatch
from rlbudget.models.devices import DeviceMap, device_of, dtype_of, out_of_memory
from rlbudget.models.profiles import ChosenBy, Profile, default_profile, find_profile
from rlbudget.models.rereading import Rereading, read_again
from rlbudget.models.self_check import Driving, driving_of, start
from rlbudget.models.sequences import Unfinished
from rlbudget.models.smollm2 import smollm2_folder
from rlbudget.models.spelling import check_text, literal_ids
from rlbudget.models.vocabulary import Vocabulary, build_vocabulary

EMBEDDED = Path(__file__).parent / "embedded"
_EMBEDDED, _SMOLLM2 = "embedded", "smollm2"


@dataclass(frozen=True, slots=True)
class TransformersModel:
    """Weights, tokenizer and profile, ready to decode."""

    name: str
    network: Any
    tokenizer: Any
    profile: Profile
    vocabulary: Vocabulary
    chosen_by: ChosenBy = "name"
    """how the profile was chosen"""
    driving: Driving = "batch"
    """whether rows share forward passes (``batch``; ``steps``: of one new token each), or each has
    its own (``rows``): slower, for networks whose state no batch can share"""

    @torch.inference_mode()
    def begin(
        self,
        questions: Sequence[str],
        seeds: Sequence[int],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stride: int | None = None,
    ) -> DecodeBatch:
        """Read the questions and stand before their first thinking token.

        ``seeds`` (one a question, at least 0) decide every sampled token; ``temperature`` 0 is
        greedy. Settings left out are the profile's. Raises ``UserError`` for settings out of range,
        and for a question that does not fit into the model's context.
        """
        temperature = self.profile.temperature if temperature is None else temperature
        max_tokens = self.profile.max_tokens if max_tokens is None else max_tokens
        stride = self.profile.stride if stride is None else stride
        if not questions or len(seeds) != len(questions):
            raise UserError(f"{len(questions)} questions and {len(seeds)} seeds: one seed each")
        if not 0 <= temperature < float("inf"):
            raise UserError(f"temperature must be 0 or more, not {temperature}")
        if max_tokens < 1 or stride < 1:
            raise UserError(
                f"max_tokens and stride must be at least 1, not {max_tokens} and {stride}"
            )
        return DecodeBatch(
            self.read(questions, max_tokens),
            self.vocabulary,
            self.profile,
            seeds,
            temperature=temperature,
            max_tokens=max_tokens,
            stride=stride,
        )

    @torch.inference_mode()
    def join(self, batch: DecodeBatch, questions: Sequence[str], seeds: Sequence[int]) -> list[int]:
        """Read more questions and let them join a batch of ``begin``; the numbers of their rows.

        Raises ``ValueError`` where ``batch.takes_more`` is false, ``UserError`` as ``begin`` does.
        """
        rows: list[int] = batch.join(self.read(questions, batch.max_tokens), seeds).tolist()
        return rows

    def read_again(
        self,
        prompts: Sequence[Sequence[int]],
        thoughts: Sequence[Sequence[int]],
        *,
        stride: int,
        batch_size: int,
        on_halved: Callable[[str], None] | None = None,
    ) -> Iterator[Rereading]:
        """Read thoughts that were written before; see ``rlbudget.models.rereading.read_again``."""
        return read_again(
            self, prompts, thoughts, stride=stride, batch_size=batch_size, on_halved=on_halved
        )

    @torch.inference_mode()
    def read(self, questions: Sequence[str], max_tokens: int) -> Unfinished:
        """Read the questions; ``UserError`` where they, up to ``max_tokens`` of thinking and an
        answer do not fit into the model's context."""  # fmt: skip
        prompts = [self.prompt_ids(question) for question in questions]
        self._check_room(max(map(len, prompts)), max_tokens)
        return start(self.driving, self.network, prompts)

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids up to the start of the thinking.

        Raises ``UserError`` for a question that is no text (a lone surrogate), and for a token
        that the model has no embedding for.
        """
        check_text(question)
        ids = self.profile.prompt(question, self.tokenizer)
        size = embedded_tokens(self.network)
        beyond = next((token for token in ids if token >= size), None)
        if beyond is not None:
            raise UserError(
                f"the tokenizer spells {self.tokenizer.convert_ids_to_tokens(beyond)!r} of the"
                f" prompt with token {beyond}, and the model embeds {size} tokens only: its"
                " matrices were not resized to its tokenizer"
            )
        return ids

    def option_ids(self, options: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of answer options, spelled as after the cue of a trial answer.

        Raises ``UserError`` for an option that is longer than an answer may be.
        """
        lead = self.profile.answer_lead
        spelled = tuple(tuple(literal_ids(self.tokenizer, lead + option)) for option in options)
        vocabulary = self.vocabulary
        cues = len(vocabulary.exit_ids) - len(vocabulary.probe_ids)
        most = self.profile.max_answer_tokens + min(cues, 0)
        for option, ids in zip(options, spelled, strict=True):
            if not 0 < len(ids) <= most:
                raise UserError(
                    f"the option {option!r} is {len(ids)} tokens long: an answer has 1 to {most}"
                )
        return spelled

    def refusal(
        self, question: str, *, max_tokens: int | None = None, options: Sequence[str] = ()
    ) -> str | None:
        """Why a question cannot be decoded with up to ``max_tokens`` of thinking, or None.

        It is too long for the model's context, it is no token to this model, or one of its
        options is longer than an answer may be.
        """
        cap = self.profile.max_tokens if max_tokens is None else max_tokens
        try:
            prompt = self.prompt_ids(question)
            if len(prompt) <= len(self.prompt_ids("")):
                return "it is no token to this model: the tokenizer knows none of its characters"
            self._check_room(len(prompt), cap)
            self.option_ids(options)
        except UserError as error:
            return str(error)
        return None

    def room(self, prompt_tokens: int) -> int | None:
        """Tokens of thinking that fit into the model's context between a prompt and an answer, at
        most 0 where none does; None where the context has no known bound."""
        most = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        return None if most is None else int(most) - prompt_tokens - self._after

    @property
    def _after(self) -> int:
        return self.profile.max_answer_tokens + len(self.vocabulary.exit_ids)

    def _check_room(self, prompt_tokens: int, max_tokens: int) -> None:
        left = self.room(prompt_tokens)
        if left is None or max_tokens <= left:
            return
        advice = (
            f"lower max_tokens to {left} or less"
            if left > 0
            else "no max_tokens is small enough: shorten the question, or take a model with a"
            " longer context"
        )
        after = self._after
        raise UserError(
            f"{prompt_tokens} prompt tokens, {max_tokens} of thinking and {after} of answer"
            f" do not fit into the model's context of {left + prompt_tokens + after}: {advice}"
        )


def load(
    name: str,
    *,
    profile: str | None,
    device: str | None = None,
    dtype: str | None = None,
    device_map: DeviceMap | None = None,
) -> TransformersModel:
    """See ``rlbudget.models.load_model``."""
    chosen = find_profile(profile) if profile is not None else None
    if device == "auto":
        device, device_map = None, device_map or "auto"
    if device is not None and device_map is not None:
        raise UserError("device and device_map both say where the weights lie: give one of them")
    place = device_of(device) if device_map is None else None
    source = _source(name)
    tokenizer, network = _read(name, source, dtype_of(dtype), device_map)
    network.requires_grad_(False).eval()
    try:
        if place is not None:
            network.to(place)
        if name == _EMBEDDED:
            install(network)  # known to be right, and loaded often
            driving: Driving = "batch"
        else:
            driving = driving_of(network, name)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"the model {name!r} does not fit into the memory of {place or 'the devices'}: choose"
            " a dtype of two bytes (bfloat16), a smaller model, another device, or auto for all"
        ) from error
    by: ChosenBy = "name"
    if chosen is None:
        chosen, by = _default_profile(name, tokenizer)
    vocabulary = build_vocabulary(
        tokenizer, chosen, logits_size(network), eos_ids(network, tokenizer)
    )
    model = TransformersModel(
        name=name, network=network, tokenizer=tokenizer, profile=chosen, vocabulary=vocabulary,
        chosen_by=by, driving=driving,
    )  # fmt: skip
    model.prompt_ids("")  # fails here rather than at the first question
    return model


def _read(name: str, source: str, dtype: Any, device_map: DeviceMap | None) -> tuple[Any, Any]:
    """Tokenizer and network, as transformers reads them."""
    logging: Any = _logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    settings: dict[str, Any] = {"use_safetensors": True, "dtype": dtype}
    if device_map is not None:
        settings["device_map"] = device_map
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        network = class_of(config).from_pretrained(source, trust_remote_code=False, **settings)
        return tokenizer, network
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load the model {name!r}: {reason} (name a folder with a transformers model,"
            " a hub name that can be reached, 'embedded' or 'smollm2')"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def class_of(config: Any) -> Any:
    """The class of transformers that loads a causal language model of this configuration."""
    images: Any = AutoModelForImageTextToText  # a vision tower around it: only its text is used
    causal: Any = AutoModelForCausalLM
    wrapped = type(config) not in causal._model_mapping and type(config) in images._model_mapping
    return images if wrapped else causal


def _default_profile(name: str, tokenizer: Any) -> tuple[Profile, ChosenBy]:
    if name in (_EMBEDDED, _SMOLLM2):
        return find_profile(name), "model"
    return default_profile(tokenizer)


def _source(name: str) -> str:
    if name == _EMBEDDED:
        return str(EMBEDDED)
    if name == _SMOLLM2:
        return str(smollm2_folder())
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(f"the folder {name} holds no model: it has no config.json")
        return name
    if Path(name).is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no model folder {name}")
    return name


def logits_size(network: Any) -> int:
    """Numbers in a row of logits."""
    head = network.get_output_embeddings()
    if head is None:
        return int(network.config.get_text_config().vocab_size)
    size = getattr(head, "out_features", None)
    return int(head.weight.shape[0]) if size is None else int(size)


def embedded_tokens(network: Any) -> int:
    """Tokens that the network can read."""
    return int(network.get_input_embeddings().weight.shape[0])


def eos_ids(network: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a sequence, in order."""
    found: set[int] = set()
    for value in (
        getattr(network.generation_config, "eos_token_id", None),
        network.config.get_text_config().eos_token_id,
        tokenizer.eos_token_id,
    ):
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(token) for token in value)
    return sorted(found)
