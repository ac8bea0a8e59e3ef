"""``turnout discover``, ``models`` and ``top``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Fakes, configure, run, run_beside
from tests.fakes import FAKES
from tests.fakes.base import Fake, FakeModel, running
from tests.servers import LlamaServer
from turnout.backends import BY_KIND

LOOKS = (("discover",), ("models",), ("explain", "hello"), ("ask", "hello"))


async def test_discover_shows_each_server_with_its_state(fakes: Fakes, llama: LlamaServer) -> None:
    locked = await fakes.start(fault="key")
    configure(llama.url, await fakes.start("a", "b"), locked, "http://127.0.0.1:9")
    result = await run_beside("discover")
    assert result.exit_code == 0, result.stderr
    header, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    columns = ["service", "kind", "address", "version", "state", "reason", "models", "loaded", "window", "busy"]
    assert header == columns
    by_name = {line[0]: line for line in lines}
    assert by_name["fake0"][1:3] == ["llamacpp", llama.url]
    assert by_name["fake0"][4] == "online"
    assert by_name["fake0"][6:] == ["1", "1", "2048", "0 of 1"]
    assert (by_name["fake1"][1], by_name["fake1"][6]) == ("openai", "2")
    assert by_name["fake2"][4] == "needs_key"
    assert by_name["fake3"][4:6] == ["offline", "nothing answers at 127.0.0.1:9: connection refused"]


async def test_discover_as_json(fakes: Fakes) -> None:
    url = await fakes.start("a", window=4096)
    configure(url)
    (service,) = json.loads((await run_beside("discover", "--json")).stdout)["services"]
    assert (service["name"], service["url"], service["state"]) == ("fake0", url, "online")
    assert (service["models"][0]["id"], service["models"][0]["window"]) == ("a", 4096)


def test_nothing_found_is_exit_3_with_the_list_all_the_same() -> None:
    configure("http://127.0.0.1:9")
    result = run("discover")
    assert result.exit_code == 3
    assert "http://127.0.0.1:9" in result.stdout
    assert "Hint: see that a server runs at http://127.0.0.1:9, or correct custom_endpoints.0.endpoint" in result.stderr
    empty = run("models", "--json")
    assert empty.exit_code == 3
    assert json.loads(empty.stdout)["models"] == []
    assert "probed" not in result.stderr, "the table has told it"


def test_what_was_probed_is_told_alike_whatever_was_asked() -> None:
    configure("http://127.0.0.1:9")
    told = [json.loads(run(*ask, "--json", stdin=b"").stdout)["error"]["probed"] for ask in LOOKS]
    found = "offline: nothing answers at 127.0.0.1:9: connection refused"
    assert told == [[{"where": "fake0 http://127.0.0.1:9", "found": found}]] * len(LOOKS)
    assert f"probed fake0 http://127.0.0.1:9: {found}" in run("models").stderr


async def test_the_key_that_is_missing_is_named(fakes: Fakes) -> None:
    url = await fakes.start(fault="key")
    configure("http://127.0.0.1:9", url)
    for command in ("discover", "models"):
        result = await run_beside(command)
        assert result.exit_code == 3
        assert f"set custom_endpoints.1.key: {url} refuses without the right one" in result.stderr
    assert f"set custom_endpoints.1.key: {url}" in (await run_beside("doctor")).stdout


def test_without_any_server_configured_the_hint_is_to_start_one() -> None:
    configure()
    result = run("models")
    assert result.exit_code == 3
    assert "Hint: start a server such as llama-server or Ollama, or `turnout config init`" in result.stderr


async def test_models_shows_what_each_server_offers(llama: LlamaServer, fakes: Fakes) -> None:
    configure(llama.url, await fakes.start("Qwen/Qwen2.5-Coder-32B-Instruct-GGUF"))
    result = await run_beside("models")
    assert result.exit_code == 0, result.stderr
    header, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert header[:4] == ["id", "canonical", "service", "window"]
    real, known = lines
    assert (real[0], real[2], real[3]) == ("smol", "fake0", "2048 (known)")
    assert real[4] == "yes"
    assert real[6] == "135M"
    assert known[0] == "Qwen/Qwen2.5-Coder-32B-Instruct-GGUF"
    assert known[1].startswith("qwen2.5-coder-32b")
    as_json = json.loads((await run_beside("models", "--json")).stdout)["models"]
    assert [m["id"] for m in as_json] == [real[0], known[0]]
    assert as_json[1]["scores"]["coding"] > as_json[0]["scores"]["coding"]


async def test_long_names_are_not_shortened_in_a_pipe(fakes: Fakes) -> None:
    name = "m" * 400
    configure(await fakes.start(name))
    assert name in (await run_beside("models")).stdout


async def test_discover_explains_one_address(llama: LlamaServer) -> None:
    address = llama.url.removeprefix("http://")
    told = await run_beside("discover", "--explain", address)
    assert told.exit_code == 0, told.stderr
    assert "GET /v1/models\t200" in told.stdout
    assert "which decides" in told.stdout
    assert told.stdout.splitlines()[-1] == "verdict: llamacpp, online: answers"
    data = json.loads((await run_beside("discover", "--explain", address, "--json")).stdout)
    assert data["verdict"]["kind"] == "llamacpp"
    assert next(rule["kind"] for rule in data["rules"] if rule["evidence"]) == "llamacpp"
    nothing = await run_beside("discover", "--explain", "127.0.0.1:9")
    assert "verdict: no known server, offline" in nothing.stdout


def test_a_scan_needs_networks_that_may_be_scanned() -> None:
    configure()
    result = run("discover", "--scan")
    assert result.exit_code == 2
    assert "discovery.scan_cidrs" in result.stderr


@pytest.mark.parametrize(
    ("config", "env", "why"),
    [
        ({"loopback_only": True}, "0", "discovery.loopback_only"),
        ({}, "1", "TURNOUT_LOOPBACK_ONLY"),
    ],
)
async def test_a_scan_that_is_not_made_says_why(
    llama: LlamaServer, monkeypatch: pytest.MonkeyPatch, config: dict[str, object], env: str, why: str
) -> None:
    monkeypatch.setenv("TURNOUT_LOOPBACK_ONLY", env)
    configure(llama.url, discovery={"enabled": False, "scan_cidrs": ["127.0.0.1/32"], **config})
    said = (await run_beside("discover", "--scan")).stderr.splitlines()
    assert [line for line in said if "scan" in line] == [f"nothing is scanned: {why} keeps discovery on this machine"]


async def test_a_front_end_that_is_only_found_comes_with_what_to_configure(
    llama: LlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, openwebui = Fake(key="secret"), FAKES["openwebui"]
    async with running(openwebui.app(fake), server_header=openwebui.SERVER_HEADER) as url:
        monkeypatch.setattr(BY_KIND["openwebui"], "default_urls", (url,))
        given: dict[str, object] = {"discovery": {"enabled": True}}
        hint = f"to use {url}, name it in services.openwebui.endpoint"
        for key, more in (("", ", and give its key in services.openwebui.key"), ("secret", ": its key alone does not")):
            configure(llama.url, services={"openwebui": {"key": key}} if key else {}, **given)
            assert f"openwebui: {hint}{more}" in (await run_beside("discover")).stderr
            told = (await run_beside("discover", "--explain", url.removeprefix("http://"))).stdout
            assert "not used: Open WebUI leads to other servers: used when it is configured" in told
            assert f"hint: {hint}{more}" in told
        configure(llama.url, services={"openwebui": {"key": "secret", "endpoint": url}}, **given)
        used = await run_beside("discover")
        assert "to use" not in used.stderr
        assert "qwen2.5-coder-7b-instruct\t" in (await run_beside("models")).stdout


async def test_a_model_is_warmed_unloaded_and_pinned(tmp_path: Path) -> None:
    fake = Fake(models=[FakeModel("qwen2.5-coder:7b", resident=False), FakeModel("llama3.1:8b", resident=False)])
    ollama = FAKES["ollama"]
    async with running(ollama.app(fake), server_header=ollama.SERVER_HEADER) as url:
        configure(custom_endpoints=[{"name": "box", "endpoint": url, "api_style": "native"}])
        warm = await run_beside("models", "warm", "qwen2.5-coder:7b")
        assert warm.exit_code == 0, warm.stderr
        assert warm.stdout.startswith("qwen2.5-coder:7b @ box is loaded (")
        assert fake.models[0].resident
        unloaded = json.loads((await run_beside("models", "unload", "qwen2.5-coder:7b@box", "--json")).stdout)
        assert unloaded == {"model": "qwen2.5-coder:7b", "service": "box", "loaded": False}
        assert not fake.models[0].resident
        pinned = await run_beside("models", "pin", "llama3.1:8b")
        assert pinned.stdout == "llama3.1:8b @ box is loaded and pinned\n"
        rows = [line.split("\t") for line in (await run_beside("models")).stdout.splitlines()]
        assert [row[4] for row in rows if row[0] == "llama3.1:8b"] == ["yes (pinned)"]
        why = await run_beside("explain", "Write a function", "--json")
        reasons = [row["reason"] for row in json.loads(why.stdout)["candidates"] if row["model"] == "qwen2.5-coder:7b"]
        assert reasons == ["loading it may push out llama3.1:8b, which is pinned"]
        exact = await run_beside("explain", "hi", "--model", "qwen2.5-coder:7b", "--json")
        assert json.loads(exact.stdout)["candidates"][0]["decision"] == "chosen", (
            "what is asked for is the user's choice"
        )
        unknown = await run_beside("models", "warm", "nobody-has-this")
        assert (unknown.exit_code, "llama3.1:8b@box" in unknown.stderr) == (1, True)
    released = run("models", "unpin", "llama3.1:8b")
    assert released.stdout == "llama3.1:8b @ box is no longer pinned\n"
    assert run("models", "unpin", "llama3.1:8b").exit_code == 1


async def test_a_server_without_the_means_says_so(fakes: Fakes) -> None:
    configure(await fakes.start("a"))
    result = await run_beside("models", "warm", "a")
    assert result.exit_code == 1
    assert "has no means to load a model on request" in result.stderr


@pytest.mark.parametrize(("memory", "there"), [("8", False), ("40", True)])
def test_what_fits_into_memory(memory: str, there: bool) -> None:
    configure()
    data = json.loads(run("models", "fit", "--memory", memory, "--window", "8192", "--json").stdout)
    names = {row["model"] for row in data["models"]}
    assert ("qwen2.5-coder-32b" in names) is there
    assert all(row["fits"] and row["needs"] <= float(memory) * 1e9 for row in data["models"])
    scores = [row["scores"]["coding"] for row in data["models"]]
    assert scores == sorted(scores, reverse=True)
    assert run("models", "fit", "--service", "box").exit_code == 2


async def test_top_in_a_pipe_shows_what_there_is_now(llama: LlamaServer) -> None:
    configure(llama.url)
    header, row = [line.split("\t") for line in (await run_beside("top")).stdout.splitlines()]
    assert header == ["service", "state", "since", "loaded", "busy", "waiting", "tokens/s", "reason"]
    assert (row[0], row[1], row[3]) == ("fake0", "online", "smol")
    (service,) = json.loads((await run_beside("top", "--json")).stdout)["services"]
    assert service["loaded"] == ["smol"]


async def test_top_shows_how_fast_a_server_is() -> None:
    kobold = FAKES["koboldcpp"]
    async with running(kobold.app(Fake(speed=31.4)), server_header=kobold.SERVER_HEADER) as url:
        configure(custom_endpoints=[{"name": "box", "endpoint": url, "api_style": "native"}])
        header, row = [line.split("\t") for line in (await run_beside("top")).stdout.splitlines()]
        (service,) = json.loads((await run_beside("top", "--json")).stdout)["services"]
    assert row[header.index("tokens/s")] == "31"
    assert service["tokens_per_second"] == 31.4
