"""What the files of policies say: the keys, and the kinds of their values.

A new key of ``config.json`` is a new field here. ``Trained``, ``Recorded`` and ``Certificate`` may
say more than is named: where a policy came from is for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from rlbudget.policy.network import CONFIG
from rlbudget.policy.observation import OBSERVATION_VERSION
from rlbudget.policy.outcomes import OPERATING_POINTS
from rlbudget.policy.parsing import check_values, conform

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Effort = Literal["max", "high", "medium", "low", "minimal"]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Recorded(msgspec.Struct, frozen=True):
    """How traces were made."""

    stride: Annotated[int, msgspec.Meta(ge=1)] | None = None
    probe_tokens: Count | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: NotNegative | None = None
    model: str | None = None
    profile: str | None = None
    scorer: str | None = None


class Traces(msgspec.Struct, frozen=True):
    """The traces that something was fitted to."""

    digest: str | None = None
    split_seed: Count | None = None
    recorded: Recorded | None = None
    n_train_questions: Count | None = None
    n_train_traces: Count | None = None
    mean_full_tokens: NotNegative | None = None


class AtPrice(msgspec.Struct, frozen=True):
    """What a policy gave on validation questions at a price; None where there was no gap."""

    relative_price: float | None = None
    token_price: float | None = None
    exact_match: float | None = None
    tokens: float | None = None
    utility: float | None = None
    oracle_gap_closed: float | None = None


class Validated(msgspec.Struct, frozen=True):
    """What chose the weights."""

    prices: Sequence[AtPrice] | None = None
    mean_oracle_gap_closed: float | None = None


class FullDecodes(msgspec.Struct, frozen=True):
    """Means of the full decodes of some questions."""

    exact_match: Share
    tokens: NotNegative


class Estimated(msgspec.Struct, frozen=True):
    """What a policy's own training questions say it is worth."""

    questions: Count
    full: FullDecodes
    swept: Annotated[
        Sequence[tuple[Positive, float, float]],
        msgspec.Meta(min_length=OPERATING_POINTS, max_length=OPERATING_POINTS),
    ]
    """token price, exact match lost, savings at each operating price"""


class Operating(msgspec.Struct, frozen=True):
    """Where a constraint was met."""

    token_price: Positive


class RecordedPair(msgspec.Struct, frozen=True):
    """How the traces of the two models of a cascade were made."""

    small: Recorded | None = None
    large: Recorded | None = None


class Trained(msgspec.Struct, frozen=True):
    """What a policy or a cascade came from."""

    traces: Traces | None = None
    config: dict[str, Any] | None = None
    validation: Validated | None = None
    operating: Operating | None = None
    out_of_fold: Estimated | None = None
    recorded: RecordedPair | None = None


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an effort means."""

    max_em_loss: Share
    token_price: NotNegative
    em_loss: float
    savings: float
    questions: Count
    certified: bool


class Certified(msgspec.Struct, frozen=True):
    """A bound on lost answers, and the price that keeps it."""

    max_em_loss: Share
    token_price: Positive


class Certificate(msgspec.Struct, frozen=True):
    """What ``rlbudget calibrate`` found."""

    mode: Literal["loss", "harm"]
    max_em_loss: Share
    confidence: Share
    token_price: Positive
    questions: Count
    savings: float | None = None
    certified: Sequence[Certified] | None = None


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part of a config on the network and its inputs."""

    observation_version: Count
    features: Annotated[Sequence[str], msgspec.Meta(min_length=1)]
    clip: Positive
    activation: Literal["tanh"]
    layers: Annotated[Sequence[Count], msgspec.Meta(min_length=2)]
    price_range: tuple[Positive, Positive]
    threshold: Share
    trained: Trained


class PolicyConfig(Network, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``config.json`` of a policy folder."""

    format: str
    version: int
    preset: Literal["free", "probe", "turns"]
    calibration: Certificate | None
    operating_points: dict[Effort, Point] | None = None
    seen: str | None = None
    stops_from: Positive | None = None
    digests: dict[str, Digest]


class CascadeConfig(Network, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a cascade's file says."""

    format: str
    version: int
    ratio: Annotated[float, msgspec.Meta(gt=0, le=1)]


def check_config(config: Mapping[str, Any]) -> None:
    """Every key of ``config.json`` is known and of its kind; ``ValueError`` in one line if not."""
    check_values(config, CONFIG)
    made = config.get("observation_version")
    if type(made) is int and made != OBSERVATION_VERSION:
        raise ValueError(
            f"trained on observations of version {made}, but this rlbudget makes"
            f" version {OBSERVATION_VERSION}; train again or use the rlbudget that froze it"
        )
    conform(config, PolicyConfig, CONFIG)
