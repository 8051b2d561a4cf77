"""The OpenAPI description says what the gateway takes and serves."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from gateways import StopsAt, gateway_of

from rlbudget.errors import UserError
from rlbudget.serve.app import make_app
from rlbudget.serve.openapi import description
from rlbudget.serve.wishes import BUDGETS, wishes_of


def test_every_address_that_is_described_is_served() -> None:
    app = make_app(gateway_of(StopsAt(8)), [])

    async def ask() -> dict[tuple[str, str], int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return {
                (path, method): (await client.request(method, path, content=b"{}")).status_code
                for path, methods in description()["paths"].items()
                for method in methods
            }

    found = asyncio.run(ask())
    assert len(found) > 4
    assert {one: status for one, status in found.items() if status in (404, 405)} == {}


def test_the_fields_that_are_described_are_those_that_are_read() -> None:
    with pytest.raises(UserError, match="there are: ") as refused:
        wishes_of({"rlbudget": {"?": 1}}, {}, gateway_of(StopsAt(8)).settings)
    read = str(refused.value).rpartition("there are: ")[2].split(", ")
    found = description()
    assert {*found["components"]["schemas"]["Wishes"]["properties"]} == {*read}
    for path in ("/v1/chat/completions", "/v1/completions"):
        asked = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert {*BUDGETS} < {*asked["schema"]["properties"]}


def test_every_reference_in_the_description_leads_somewhere() -> None:
    found = description()
    places = [found]
    while places:
        place = places.pop()
        if isinstance(place, dict):
            if (reference := place.get("$ref")) is not None:
                assert reference.rpartition("/")[2] in found["components"]["schemas"]
            places += place.values()
        elif isinstance(place, list):
            places += place
