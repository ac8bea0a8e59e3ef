"""The table of hostile addresses through the other doors, and a name that a real DNS server rebinds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guard.listener import Listener, listening, says
from tests.guard.recorder import Recorder, dns, recording
from tests.guard.test_allow import HOSTILE, SECURITY
from turnout.api import load_any
from turnout.build import refuse_outside
from turnout.errors import ConfigError, GuardError, UsageError
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
from turnout.request import check
from turnout.types import ChatRequest, Image, Message, Text

OUTSIDE = "203.0.113.5"


@pytest.fixture
def recorder(whole_world_is_here: None) -> Iterator[Recorder]:
    with recording() as made:
        yield made


@pytest.mark.parametrize("url", [url for url, _ in HOSTILE])
def test_no_configuration_names_one(url: str) -> None:
    with pytest.raises((GuardError, ConfigError)):
        refuse_outside(
            load_any(
                {
                    "custom_endpoints": [{"name": "box", "endpoint": url.replace("{p}", "8080")}],
                    "discovery": {"enabled": False},
                    "security": {"allowed_hosts": list(SECURITY.allowed_hosts)},
                }
            )
        )


@pytest.mark.parametrize("url", [url for url, _ in HOSTILE if url])
def test_no_prompt_names_one(url: str) -> None:
    asked = Message("user", (Text("What is this?"), Image(url=url.replace("{p}", "8080"))))
    with pytest.raises(UsageError, match="by its address"):
        check(ChatRequest((asked,)))


@pytest.mark.isolated
async def test_a_name_that_a_real_dns_server_rebinds(recorder: Recorder) -> None:
    """The system's own resolver asks it; the answer changes between two requests."""
    hang_up = says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", then_hang_up=True)
    with dns("10.9.0.5", OUTSIDE) as server:
        async with listening(hang_up, "0.0.0.0") as listener, open_client(AllowList.from_config(SECURITY)) as client:
            url = f"http://gpu1.lan:{listener.port}/"
            assert (await client.fetch("GET", url, timeout=8, max_bytes=100)).body == b"hello"
            with pytest.raises(GuardError, match="gpu1.lan leads to"):
                await client.fetch("GET", url, timeout=8, max_bytes=100)
            assert _dialled(listener) == ["10.9.0.5"]
    assert server.asked[0] == "gpu1.lan"
    assert OUTSIDE not in recorder.off()


def _dialled(listener: Listener) -> list[str]:
    return listener.dialled
