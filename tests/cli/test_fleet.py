"""``turnout discover`` and ``turnout models``."""

from __future__ import annotations

import json

from tests.cli.conftest import Fakes, configure, run, run_beside
from tests.servers import LlamaServer


async def test_discover_shows_each_server_with_its_state(fakes: Fakes, llama: LlamaServer) -> None:
    locked = await fakes.start(fault="key")
    configure(llama.url, await fakes.start("a", "b"), locked, "http://127.0.0.1:9")
    result = await run_beside("discover")
    assert result.exit_code == 0, result.stderr
    header, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert header == ["service", "kind", "address", "version", "state", "reason", "models", "window"]
    by_name = {line[0]: line for line in lines}
    assert by_name["fake0"][1:3] == ["llamacpp", llama.url]
    assert by_name["fake0"][4] == "online"
    assert by_name["fake0"][6:] == ["1", "2048"]
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
