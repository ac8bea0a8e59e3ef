"""TLS with the site's own authority: before clients, asked of clients, and expected of servers."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.certificates import Authority
from tests.cli.conftest import run
from tests.fakes.llm import openai_app
from tests.gateway.test_auth import QUESTION, make
from tests.gateway.test_live import SERVE, Process
from turnout.api import load_any
from turnout.build import open_router
from turnout.errors import StorageError, TurnoutError
from turnout.gateway.app import create_app, running
from turnout.gateway.transport import Limits
from turnout.guard import handshake
from turnout.guard.tls import TlsFiles, client_context, server_context
from turnout.routing.advice import what_to_check


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TURNOUT_CONFIG", raising=False)
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def site(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@asynccontextmanager
async def upstream(app: ASGIApp, cert: Path, key: Path) -> AsyncIterator[str]:
    """A server of models with TLS."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="error", ssl_certfile=cert, ssl_keyfile=key)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"https://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def gateway(tls: ssl.SSLContext) -> AsyncIterator[str]:
    async with open_router(load_any({"discovery": {"enabled": False}})) as router:
        async with running(create_app(router), tls=tls) as (_, url):
            yield url


def trusting(authority: Path, *client: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(authority))
    if client:
        made.load_cert_chain(*client)
    return made


async def test_the_gateway_speaks_tls_alone(site: Authority, tmp_path: Path) -> None:
    token = make("ci")
    other = Authority(tmp_path / "other", "other")
    async with gateway(server_context(TlsFiles(*site.certify("gate")))) as url, aiohttp.ClientSession() as session:
        assert url.startswith("https://")
        headers = {"x-api-key": token}
        async with session.get(f"{url}/v1/models", headers=headers, ssl=trusting(site.file)) as reply:
            assert reply.status == 200
        async with session.get(f"{url}/v1/models", ssl=trusting(site.file)) as reply:
            assert reply.status == 401, "TLS is beside the key, not in its place"
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{url}/healthz", ssl=trusting(other.file))
        with pytest.raises(aiohttp.ClientError):
            await session.get(url.replace("https", "http") + "/healthz")


async def test_what_is_older_than_tls_1_2_is_not_spoken(site: Authority) -> None:
    served = server_context(TlsFiles(*site.certify("gate")))
    async with gateway(served) as url, aiohttp.ClientSession() as session:
        old = trusting(site.file)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await session.get(f"{url}/healthz", ssl=old)


async def test_a_client_needs_a_certificate_of_the_authority_that_is_named_and_a_key(
    site: Authority, tmp_path: Path
) -> None:
    token = make("ci")
    other = Authority(tmp_path / "other", "other")
    tls = server_context(TlsFiles(*site.certify("gate"), client_ca=site.file))
    async with gateway(tls) as url, aiohttp.ClientSession() as session:

        async def status(context: ssl.SSLContext, **headers: str) -> int:
            async with session.get(f"{url}/v1/models", headers=headers, ssl=context) as reply:
                return reply.status

        mine = trusting(site.file, *site.certify("client"))
        assert await status(mine, Authorization=f"Bearer {token}") == 200
        assert await status(mine) == 401
        refused = (
            trusting(site.file),
            trusting(site.file, *other.certify("foreign")),
            trusting(site.file, *site.certify("late", days=-1)),
        )
        for context in refused:
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await status(context, Authorization=f"Bearer {token}")


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that says yes."""
    await PlainTextResponse("")(scope, receive, send)


async def asked(url: str, tls: ssl.SSLContext) -> int:
    async with aiohttp.ClientSession() as session, session.post(url, ssl=tls) as reply:
        return reply.status


@asynccontextmanager
async def silent(port: int, count: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Clients that connect and say nothing."""
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.close()


async def test_who_says_nothing_keeps_nobody_else_away(site: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "MAX_WAITING", 3)
    async with AsyncExitStack() as stack:
        tls = server_context(TlsFiles(*site.certify("gate")))
        async with running(bare, tls=tls) as (_, url):
            waiting = await stack.enter_async_context(silent(int(url.rpartition(":")[2]), 9))
            assert [await reader.read(1) for reader in waiting[:6]] == [b""] * 6, "the oldest are sent away"
            assert await asked(url, trusting(site.file)) == 200
            assert not waiting[8].at_eof()
        assert await waiting[8].read(1) == b"", "and the end does not wait for the others"


async def test_a_handshake_has_its_time(site: Authority) -> None:
    tls = server_context(TlsFiles(*site.certify("gate")))
    async with running(bare, tls=tls, limits=Limits(head_seconds=0.2)) as (_, url):
        async with silent(int(url.rpartition(":")[2]), 1) as (waiting,):
            assert await waiting.read(1) == b""
        assert await asked(url, trusting(site.file)) == 200


async def test_who_has_no_certificate_is_told_of(site: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "elsewhere", "foreign").certify("client")
    seen: list[tuple[str, str]] = []
    tls = server_context(TlsFiles(*site.certify("gate"), client_ca=site.file))
    async with running(bare, tls=tls, refused=lambda *told: seen.append(told)) as (_, url):
        for client in ((), foreign):
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await asked(url, trusting(site.file, *client))
        assert await asked(url, trusting(site.file, *site.certify("client"))) == 200
    assert [address for address, _ in seen] == ["127.0.0.1"] * 2
    assert seen[0][1] == "peer did not return a certificate"
    assert seen[1][1].startswith("certificate verify failed: ")


async def test_a_server_is_trusted_by_the_sites_authority_and_by_no_other(site: Authority, tmp_path: Path) -> None:
    app = openai_app(("a-7b",))
    other = Authority(tmp_path / "other", "other")
    answers: dict[str, bool] = {}
    pairs = {
        "site": site.certify("server"),
        "other": other.certify("foreign"),
        "expired": site.certify("late", days=-1),
        "another's": site.certify("elsewhere", address="127.0.0.9"),
    }
    for name, pair in pairs.items():
        async with upstream(app, *pair) as address:
            # Nobody listens at ::1: what is wrong is told of the address that answers.
            url = address.replace("127.0.0.1", "localhost") if name == "other" else address
            config = {
                "custom_endpoints": [{"name": "one", "endpoint": url}],
                "discovery": {"enabled": False},
                "security": {"ca_file": str(site.file)},
            }
            async with open_router(load_any(config)) as router:
                answers[name] = bool(router.catalog.serving)
                if not answers[name]:
                    assert "secure connection" in router.catalog.endpoints[0].reason
                    assert "security.ca_file" in what_to_check(router.catalog, load_any(config).config)
            async with open_router(load_any({**config, "security": {}})) as router:
                assert not router.catalog.serving, "the system does not know this authority"
    assert answers == {"site": True, "other": False, "expired": False, "another's": False}


BROKEN: list[tuple[str, Callable[[Path, Path], object], str]] = [
    ("no certificate", lambda cert, _: cert.write_text("x"), "are no pair of certificate and key"),
    ("another's key", lambda cert, key: key.write_bytes(key.with_name("other.key").read_bytes()), "are no pair"),
    ("no file", lambda cert, _: cert.unlink(), "cannot be read"),
    ("no key", lambda _, key: key.unlink(), "cannot be read"),
    ("open to all", lambda _, key: key.chmod(0o644), "everybody may read the private key"),
]


@pytest.mark.parametrize(("breaks", "says"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_files_that_cannot_be_used_are_refused_in_a_sentence(
    breaks: Callable[[Path, Path], object], says: str, site: Authority
) -> None:
    site.certify("other")
    cert, key = site.certify("gate")
    breaks(cert, key)
    with pytest.raises(StorageError, match=says):
        server_context(TlsFiles(cert, key))
    Path("turnout.yaml").write_text(json.dumps({"gateway": {"tls": {"cert": str(cert), "key": str(key)}}}), "utf-8")
    for command in (("config", "check"), ("serve", "--port", "0")):
        result = run(*command)
        assert (result.exit_code, says in result.stderr) == (1, True), result.stderr


def test_a_key_with_a_passphrase_is_refused_and_never_asked_for(site: Authority) -> None:
    from cryptography.hazmat.primitives import serialization as form

    cert, key = site.certify("gate")
    loaded = form.load_pem_private_key(key.read_bytes(), None)
    shut = form.BestAvailableEncryption(b"secret")
    key.write_bytes(loaded.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, shut))
    with pytest.raises(StorageError, match="are no pair"):
        server_context(TlsFiles(cert, key))


@pytest.mark.parametrize("content", ["", "no certificate"])
def test_an_authority_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with pytest.raises(StorageError, match="cannot be read"):
        client_context(file)
    file.write_text(content)
    with pytest.raises(TurnoutError, match="holds no certificate"):
        client_context(file)


@pytest.mark.parametrize(
    ("tls", "says"),
    [
        ({"cert": "a"}, "gateway.tls.cert: there is no key"),
        ({"key": "a"}, "gateway.tls.key: there is no cert"),
        ({"client_ca": "a"}, "gateway.tls.client_ca: there is no cert"),
        ({"certificate": "a"}, "unknown key 'certificate'"),
    ],
)
def test_half_of_it_is_refused(tls: dict[str, str], says: str) -> None:
    Path("turnout.yaml").write_text(json.dumps({"gateway": {"tls": tls}}), "utf-8")
    result = run("config", "check")
    assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


async def test_a_renewed_certificate_is_taken_on_sighup_and_a_broken_one_is_not(site: Authority) -> None:
    """The whole process: what it serves, under which certificate, before and after."""
    cert, _ = site.certify("gate")
    tls = {"cert": "tls/gate.pem", "key": "tls/gate.key"}
    Path("turnout.yaml").write_text(json.dumps({"discovery": {"enabled": False}, "gateway": {"tls": tls}}), "utf-8")
    child = await asyncio.create_subprocess_exec(*SERVE, stderr=asyncio.subprocess.PIPE)
    process = Process(child)
    try:
        url = re.findall(r"https://\S+", await process.says("listens"))[0]
        port = int(url.rpartition(":")[2])

        async def serial() -> str:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(site.file))
            shown = writer.get_extra_info("peercert")["serialNumber"]
            writer.close()
            return str(shown)

        first = await serial()
        site.certify("gate")
        child.send_signal(signal.SIGHUP)
        await process.says("anew")
        second = await serial()
        assert second != first
        cert.write_text("x")
        child.send_signal(signal.SIGHUP)
        assert "are no pair" in await process.says("Error")
        assert await serial() == second
        cert.write_bytes(site.certify("other")[0].read_bytes())  # renewed half way: the key is still to come
        child.send_signal(signal.SIGHUP)
        assert "are no pair" in await process.says("Error")
        assert await serial() == second
        async with aiohttp.ClientSession() as session:
            body = {"model": "auto", "messages": QUESTION}
            async with session.post(f"{url}/v1/chat/completions", json=body, ssl=trusting(site.file)) as reply:
                assert reply.status == 503
    finally:
        child.terminate()
        await child.wait()
