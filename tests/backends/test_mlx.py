"""MLX-LM beyond the common behaviours: a list without a body, a dead engine, and 404 for everything."""

from __future__ import annotations

import pytest

from tests.backends.behaviours import serving
from tests.fakes.base import Fake
from turnout.backends import BY_KIND
from turnout.errors import RequestRefusedError, ServerFailedError, UnknownModelError
from turnout.types import Endpoint, Health

BOX = Endpoint("box", "mlx", "http://127.0.0.1:1")


async def test_a_list_without_a_body_is_a_server_without_a_model() -> None:
    async with serving("mlx", Fake(options={"no_cache": True})) as case:
        status = await case.look()
    assert (status.endpoint.kind, status.health, status.models) == ("mlx", Health.ONLINE, ())
    assert "cache directory is missing" in status.reason


async def test_a_dead_engine_is_not_asked() -> None:
    async with serving("mlx") as case:
        model = await case.model()
        case.fake.options["dead"] = True
        status = await case.look()
        assert (status.health, status.models) == (Health.DEGRADED, ())
        assert "restarted" in status.reason
    assert model.resident is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        # Both recorded: with HF_HUB_OFFLINE=1, and without it where no hub could be reached.
        ("Cannot find an appropriate cached snapshot folder for the specified revision", UnknownModelError),
        ("An error happened while trying to locate the files on the Hub, and we cannot find", UnknownModelError),
        ("Conversation roles must alternate user/assistant/user/assistant/...", RequestRefusedError),
        ("generation thread died", ServerFailedError),
    ],
)
def test_a_404_means_many_things(text: str, kind: type[Exception]) -> None:
    error = BY_KIND["mlx"].error(BOX, 404, {}, b'{"error": "%s"}' % text.encode())
    assert type(error) is kind


async def test_an_answer_is_not_cut_at_its_own_short_limit() -> None:
    async with serving("mlx") as case:
        await case.ask()
        await case.ask(max_tokens=7)
    assert [body["max_tokens"] for body in case.fake.seen] == [4096, 7]


async def test_the_ways_out_are_noted() -> None:
    async with serving("mlx") as case:
        status = await case.look()
    assert any("HF_HUB_OFFLINE" in note for note in status.notes)
