"""What the gateway counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """The counters of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to = self.registry
        self.requests = Counter(
            "rlbudget_requests",
            "Requests by way and how they ended.",
            ["way", "ended"],
            registry=to,
        )
        self.reasons = Counter(
            "rlbudget_thinking_ended", "Steered requests by what ended the thinking.", ["reason"],
            registry=to,
        )  # fmt: skip
        self.passed = Counter(
            "rlbudget_passed_through",
            "Requests that were not steered, by why.",
            ["why"],
            registry=to,
        )
        self.tokens = Counter(
            "rlbudget_tokens", "Tokens of steered requests.", ["kind"], registry=to
        )  # fmt: skip
        self.shadow = Counter(
            "rlbudget_shadow", "Requests in shadow or audited, by what a cut does to the answer.",
            ["answer"], registry=to,
        )  # fmt: skip
        self.shadow_tokens = Counter(
            "rlbudget_shadow_tokens_saved", "Thinking tokens that cuts in shadow would have saved.",
            registry=to,
        )  # fmt: skip
        self.failures = Gauge(
            "rlbudget_policy_failures", "Requests whose policy broke down.", registry=to
        )  # fmt: skip
        self.saved = Counter(
            "rlbudget_tokens_saved_estimated", "Thinking tokens that stops saved, estimated.",
            registry=to,
        )  # fmt: skip
        self.key_refused = Counter(
            "rlbudget_key_refused", "Requests beyond a key's limits.", ["key", "limit"],
            registry=to,
        )  # fmt: skip
        self.steering = Counter(
            "rlbudget_steering_failures", "Requests that went on without a part that broke down.",
            ["part"], registry=to,
        )  # fmt: skip
        self.log_failures = Gauge(
            "rlbudget_log_failures", "Lines of the decision log that could not be written.",
            registry=to,
        )  # fmt: skip
        self.running = Gauge("rlbudget_requests_running", "Requests on their way.", registry=to)
        self.first = Histogram(
            "rlbudget_time_to_first_token_seconds", "To the first text of an answer.",
            buckets=_SECONDS, registry=to,
        )  # fmt: skip
        self.whole = Histogram(
            "rlbudget_request_seconds", "From a request to the end of its answer.",
            buckets=_SECONDS, registry=to,
        )  # fmt: skip
        self.thinking = Histogram(
            "rlbudget_thinking_tokens", "Thinking tokens of a steered request.",
            buckets=_TOKENS, registry=to,
        )  # fmt: skip
