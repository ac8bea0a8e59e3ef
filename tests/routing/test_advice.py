"""What is advised when nothing serves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from turnout.config import CustomEndpoint, RouterConfig, ServiceConfig
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.discovery import LEADS_ELSEWHERE
from turnout.routing.advice import START_ONE, how_to_use, what_to_check
from turnout.types import Endpoint, Health, Model

HERE = "http://127.0.0.1:9"
CUSTOM = (CustomEndpoint(name="first", endpoint="http://10.0.0.1"), CustomEndpoint(name="box", endpoint=HERE))
CONFIG = RouterConfig(services={"vllm": ServiceConfig(endpoint=HERE)}, custom_endpoints=CUSTOM)
BOX = Endpoint("box", "", HERE, configured=True)
VLLM = Endpoint("vllm", "", HERE, configured=True)
FOUND = Endpoint("llamacpp", "llamacpp", "http://127.0.0.1:8080")


def advised(*seen: tuple[Endpoint, Health], unused: str = "", models: tuple[Model, ...] = ()) -> str:
    statuses = tuple(EndpointStatus(e, h, "why", 0.0, models=models, unused=unused) for e, h in seen)
    return what_to_check(Catalog(statuses), CONFIG)


@pytest.mark.parametrize(
    ("endpoint", "health", "says"),
    [
        (BOX, Health.OFFLINE, f"see that a server runs at {HERE}, or correct custom_endpoints.1.endpoint"),
        (VLLM, Health.OFFLINE, f"see that a server runs at {HERE}, or correct services.vllm.endpoint"),
        (BOX, Health.NEEDS_KEY, f"set custom_endpoints.1.key: {HERE} refuses without the right one"),
        (replace(VLLM, key="k"), Health.NEEDS_KEY, f"correct services.vllm.key: {HERE} refuses without the right one"),
        (FOUND, Health.NEEDS_KEY, "set services.llamacpp.key: http://127.0.0.1:8080 refuses without the right one"),
        (BOX, Health.DEGRADED, f"look at the server at {HERE}, or correct custom_endpoints.1.endpoint"),
        (BOX, Health.ONLINE, f"load a model at {HERE}: it offers none"),
        (FOUND, Health.LOADING, "wait until http://127.0.0.1:8080 has loaded its model"),
        (replace(FOUND, name="a or b", kind=""), Health.OFFLINE, START_ONE),
        (replace(FOUND, name="a or b", kind=""), Health.DEGRADED, START_ONE),
        (FOUND, Health.OFFLINE, START_ONE),
    ],
)
def test_each_state_has_its_remedy(endpoint: Endpoint, health: Health, says: str) -> None:
    assert advised((endpoint, health)) == says


def test_only_what_is_configured_or_answers_is_named_and_at_most_three() -> None:
    assert advised((FOUND, Health.OFFLINE), (BOX, Health.ONLINE)) == f"load a model at {HERE}: it offers none"
    many = advised(*((BOX, Health.ONLINE),) * 5)
    assert many.count("load a model") == 3
    assert many.endswith("; and 2 more")


def test_a_front_end_that_was_only_found_is_used_when_it_is_named() -> None:
    shop = replace(FOUND, name="openwebui", kind="openwebui")
    unused = f"Open WebUI {LEADS_ELSEWHERE}"
    named = "to use http://127.0.0.1:8080, name it in services.openwebui.endpoint"
    assert advised((shop, Health.ONLINE), unused=unused) == named
    assert advised((shop, Health.NEEDS_KEY), unused=unused) == f"{named}, and give its key in services.openwebui.key"
    keyed = replace(shop, key="k")
    assert advised((keyed, Health.ONLINE), unused=unused) == f"{named}: its key alone does not do it"
    assert advised((keyed, Health.NEEDS_KEY), unused=unused).endswith(", and correct its key in services.openwebui.key")
    assert advised((shop, Health.ONLINE), unused="the same server as box") == START_ONE
    taken = RouterConfig(services={"openwebui": ServiceConfig(endpoint="http://10.0.0.1:3000")})
    assert how_to_use(EndpointStatus(shop, Health.ONLINE, "", 0.0, unused=unused), taken) == ""
    off = replace(FOUND, name="vllm", kind="vllm")
    assert advised((off, Health.UNKNOWN), unused="switched off in the configuration") == START_ONE
