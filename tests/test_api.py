"""The library's entry points, without a server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import turnout
from tests.fakes.base import running
from tests.fakes.llm import WORDS, openai_app
from tests.servers import WEIGHTS
from turnout.api import LocalLLMRouter, collect, load_any
from turnout.build import open_router
from turnout.errors import GuardError, NoServiceError, UsageError
from turnout.request import MAX_MESSAGES, check
from turnout.types import ChatRequest, Image, Message, Text, message

ALONE = {"discovery": {"enabled": False}}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize("query", ["", "  \n", "\t"])
async def test_a_query_without_a_word_is_refused(query: str) -> None:
    with pytest.raises(UsageError, match="the query is empty"):
        await turnout.quick_route(query, ALONE)
    async with LocalLLMRouter(None, ALONE) as router:
        with pytest.raises(UsageError, match="the query is empty"):
            await router.route(query)
        with pytest.raises(UsageError, match="the query is empty"):
            _ = [piece async for piece in router.stream(query)]


async def test_without_a_server_the_error_says_how_to_try_the_bundled_model() -> None:
    with pytest.raises(NoServiceError, match=r"`embedded\.fallback: true` uses the bundled"):
        await turnout.quick_route("hello", ALONE)


async def test_a_refused_endpoint_of_a_dict_is_named_by_its_key() -> None:
    config = ALONE | {"custom_endpoints": [{"name": "far", "endpoint": "http://8.8.8.8:1"}]}
    with pytest.raises(GuardError, match=r"^custom_endpoints\.0\.endpoint: endpoint far: 8\.8\.8\.8 is outside"):
        await turnout.quick_route("hello", config)


def test_an_image_asks_without_a_word() -> None:
    picture = Image("image/png", "aGVsbG8=")
    check(ChatRequest((message("system", "s"), Message("user", (picture,)))))
    check(ChatRequest((Message("user", (Text(" "), picture)),)))
    with pytest.raises(UsageError, match="the query is empty"):
        check(ChatRequest((message("system", "only the system speaks"), message("user", " "))))


def test_a_conversation_of_more_messages_than_anybody_has_is_refused() -> None:
    turns = (message("user", "x"),) * (MAX_MESSAGES + 1)
    check(ChatRequest(turns[1:]))
    check(ChatRequest(turns, session_id="ours"))
    with pytest.raises(UsageError, match=r"20,001 messages, the most is 20,000"):
        check(ChatRequest(turns))


async def test_an_image_alone_reaches_a_model_that_sees() -> None:
    app = openai_app(("llama3.2-vision:11b",))
    picture = Image("image/png", "aGVsbG8=")
    async with running(app) as url:
        config = ALONE | {"custom_endpoints": [{"name": "s", "endpoint": url}]}
        async with open_router(load_any(config)) as router:
            result = await collect(router.route(ChatRequest((Message("user", (picture,)),))))
    assert result.text == "".join(WORDS)
    assert "aGVsbG8=" in str(app.state.fake.seen[0]["messages"])


@pytest.mark.isolated
@pytest.mark.skipif(os.environ.get("TURNOUT_TEST_ISOLATED") != "1", reason="a server at a default port would answer")
def test_the_readmes_python_answers_after_make_demo(tmp_path: Path) -> None:
    """``make demo`` leaves the weights in the data directory, and no server."""
    (code,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)
    folder = tmp_path / "data" / "embedded"
    folder.mkdir(parents=True)
    (folder / WEIGHTS.name).symlink_to(WEIGHTS)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "def add" in done.stdout
