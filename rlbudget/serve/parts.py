"""The parts around a request that a plan asks for: the queue first, then the price."""

from __future__ import annotations

from prometheus_client import Gauge

from rlbudget.errors import UserError
from rlbudget.policy.prices import nearest_price
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.price.part import PriceControl
from rlbudget.serve.queue.part import Queue


def add_parts(gateway: Gateway) -> tuple[Queue | None, PriceControl | None]:
    """Add what the first plan says in ``[queue]`` and ``[price]``, and count it in the metrics.

    Raises ``UserError`` for a price that cannot be steered.
    """
    settings = gateway.settings
    name, plan = next(iter(settings.plans.items()))
    queue = None if plan.queue is None else Queue(plan.queue)
    control = None
    said = plan.price
    if said is not None and (said.mode != "fixed" or said.latency is not None):
        spot = plan.spot()
        if spot.stops != "policy":
            raise UserError("[price] steers a price, and the plan's effort has none: name another")
        known = settings.served[name].price_range
        price = spot.token_price if settings.token_price is None else settings.token_price
        control = PriceControl(said, known, nearest_price(price, known))
    for part in (queue, control):
        if part is not None:
            gateway.steering.append(part.part())
    _count(gateway, queue, control)
    return queue, control


def _count(gateway: Gateway, queue: Queue | None, control: PriceControl | None) -> None:
    registry = gateway.metrics.registry
    if queue is not None:
        line = queue.turnstile
        waiting = Gauge("rlbudget_queue_waiting", "Requests that wait.", ["priority"],
                        registry=registry)  # fmt: skip
        served = Gauge("rlbudget_queue_running", "Requests that are served.", ["priority"],
                       registry=registry)  # fmt: skip
        refused = Gauge("rlbudget_queue_refused", "Requests that the queue refused.", ["priority"],
                        registry=registry)  # fmt: skip
        for name in queue.settings.classes:
            waiting.labels(name).set_function(lambda name=name: line.waiting[name])  # type: ignore[misc]
            served.labels(name).set_function(lambda name=name: line.running[name])  # type: ignore[misc]
            refused.labels(name).set_function(lambda name=name: queue.refused[name])  # type: ignore[misc]
    if control is not None:
        steered = control
        shown = {
            "token_price": ("Reward lost per token, as it is steered.", lambda: steered.price),
            "exact_match_estimate": ("Exact match of the last requests, estimated.",
                                     lambda: steered.exact_match),
            "price_alarms": ("Alarms of the price control.",
                             lambda: float(len(steered.state.alarms))),
            "full_decoding": ("1 while requests are decoded in full after an alarm.",
                              lambda: float(steered.state.full)),
        }  # fmt: skip
        for name, (said, read) in shown.items():
            Gauge(f"rlbudget_{name}", said, registry=registry).set_function(read)
