"""Every kind is known for what it is wherever it listens: never by its port, and beside all others."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

import turnout
from tests.fakes import FAKES
from tests.fakes.base import Fake, FakeModel, running
from tests.isolated import is_isolated
from turnout.backends import BACKENDS
from turnout.config import DiscoveryConfig, RouterConfig, SecurityConfig
from turnout.fleet.discovery import Target, look
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
from turnout.types import Endpoint

PORTS = sorted({int(url.rpartition(":")[2]) for backend in BACKENDS for url in backend.default_urls})


def fake_of(kind: str) -> Fake:
    return Fake(models=[FakeModel(), FakeModel("llama-3.1-8b-instruct")][: getattr(FAKES[kind], "MODELS", 1)])


async def kinds_at(port: int, places: dict[str, str]) -> dict[str, str]:
    """What each fake is taken for when all listen at ``port``, each at an address of its own."""
    async with AsyncExitStack() as stack:
        urls = {}
        for kind, host in places.items():
            app = FAKES[kind].app(fake_of(kind))
            served = running(app, port, host=host, server_header=FAKES[kind].SERVER_HEADER)
            urls[kind] = await stack.enter_async_context(served)
        client = await stack.enter_async_context(open_client(AllowList.from_config(SecurityConfig())))
        targets = {kind: Target(Endpoint("x", "", url), style="native") for kind, url in urls.items()}
        # Eighteen servers in one loop: it is identity that is shown here, not speed.
        config = RouterConfig(discovery=DiscoveryConfig(timeout=10_000))
        found = await asyncio.gather(*(look(client, target, config) for target in targets.values()))
        return dict(zip(targets, (status.endpoint.kind for status in found), strict=True))


@pytest.mark.isolated
@pytest.mark.parametrize("port", PORTS)
async def test_every_kind_is_itself_at_every_default_port(port: int) -> None:
    if not is_isolated():
        pytest.skip("NOT ISOLATED: the default ports may be in use here: run `make test`")
    places = {kind: f"127.0.1.{number}" for number, kind in enumerate(FAKES, 1)}
    assert await kinds_at(port, places) == {name: getattr(FAKES[name], "KIND", name) for name in FAKES}


async def test_a_server_whose_telling_answer_came_too_late_is_looked_at_anew() -> None:
    fake, late = fake_of("lmstudio"), [True]
    inner = FAKES["lmstudio"].app(fake)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if late[0] and scope["path"] == "/lmstudio-greeting":
            await asyncio.Event().wait()
        await inner(scope, receive, send)

    async with (
        running(app, server_header=FAKES["lmstudio"].SERVER_HEADER) as url,
        open_client(AllowList.from_config(SecurityConfig())) as client,
    ):
        target = Target(Endpoint("x", "", url), style="native")
        first = await look(client, target, RouterConfig())
        late[0] = False
        again = await look(client, target, RouterConfig(), known=first)
    assert (first.endpoint.kind, again.endpoint.kind) == ("openai", "lmstudio")


async def test_two_of_a_kind_at_different_ports_are_two() -> None:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(running(FAKES["vllm"].app(Fake()))) for _ in range(2)]
        endpoints = [{"name": f"box{n}", "endpoint": url, "api_style": "native"} for n, url in enumerate(urls)]
        config = turnout.load_config_from_dict({"custom_endpoints": endpoints, "discovery": {"enabled": False}})
        found = await turnout.discover_services(config)
    assert [(s.endpoint.kind, s.unused) for s in found] == [("vllm", ""), ("vllm", "")]


ELEVENTH = '''
"""A server that nobody had heard of."""
from turnout.backends.base import Identity, first_owner
from turnout.backends.openai_compatible import OpenAICompatible

class Eleventh(OpenAICompatible):
    kind = "eleventh"
    title = "Eleventh"
    default_urls = ("http://127.0.0.1:11011",)
    def identify(self, replies):
        return Identity("eleventh", "owned by eleventh") if first_owner(replies) == "eleventh" else None
'''
FINDS_IT = """
import asyncio, turnout
found = asyncio.run(turnout.discover_services({"services": {"eleventh": {"endpoint": "URL"}}}))
print([(s.endpoint.kind, s.health.value) for s in found if s.endpoint.configured])
"""


async def test_an_eleventh_kind_is_one_file_and_one_line(tmp_path: Path) -> None:
    package = tmp_path / "turnout"
    shutil.copytree(Path(turnout.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "backends" / "eleventh.py").write_text(ELEVENTH)
    listing = package / "backends" / "__init__.py"
    text = listing.read_text().replace("    OpenAICompatible(),\n", "    Eleventh(),\n    OpenAICompatible(),\n")
    first = "from turnout.backends.gpt4all"
    listing.write_text(text.replace(first, f"from turnout.backends.eleventh import Eleventh\n{first}"))
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from tests.fakes.base import served

    async def models(_: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": "m", "owned_by": "eleventh"}]})

    async with running(served(Fake(), [Route("/v1/models", models)])) as url:
        env = os.environ | {"PYTHONPATH": str(tmp_path), "TURNOUT_DATA_DIR": str(tmp_path / "data")}
        env["TURNOUT_LOOPBACK_ONLY"] = "1"
        command = [sys.executable, "-c", FINDS_IT.replace("URL", url)]
        done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[('eleventh', 'online')]", done.stderr
