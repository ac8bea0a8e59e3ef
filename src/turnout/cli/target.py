"""Where an agent is to go: the gateway's address and key, and the window of the model it is to use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from turnout.cli.recipes import KEY_VARIABLE, NO_KEY
from turnout.errors import EndpointDownError, KeyRefusedError, NonsenseError, NoServiceError, PhaseTimeoutError

if TYPE_CHECKING:
    from turnout.config import GatewayConfig, LoadedConfig
    from turnout.types import Json

_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Offer:
    """The models that can be asked for with their windows (0: not known), who said so, and whose window is a guess."""

    windows: Mapping[str, int]
    source: str
    guessed: frozenset[str] = frozenset()


def address_of(gateway: GatewayConfig) -> str:
    """Where this machine reaches the gateway of the configuration; without a path."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(gateway.host, gateway.host)  # noqa: S104 (nothing is bound)
    scheme = "https" if gateway.tls.cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{gateway.port}"


def key_given() -> str:
    """The key from the environment, else the word for none."""
    return os.environ.get(KEY_VARIABLE) or NO_KEY


async def ask_gateway(loaded: LoadedConfig, url: str, key: str, model: str) -> Offer:
    """What a running gateway offers: what it lists, and ``model`` when it goes by a name that is not listed, such as
    ``ID@SERVICE``.

    Raises:
        NoServiceError: no gateway answers there.
        KeyRefusedError: it wants a key, or another one.
        GuardError: the address is not on the allow-list.
    """
    from turnout.build import open_client_for

    start = "start it with `turnout serve`, or give its address with --url"
    headers = {"Authorization": f"Bearer {key}"}
    async with open_client_for(loaded) as client:
        try:
            reply = await client.get_json(f"{url}/v1/models", headers=headers, timeout=_SECONDS)
            rows = _rows(reply.json()) if reply.status == 200 else {}
            if rows and model not in rows:
                place = f"{url}/v1/models/{quote(model, safe='', errors='replace')}"
                one = await client.get_json(place, headers=headers, timeout=_SECONDS)
                rows |= {model: one.json()} if one.status == 200 else {}
        except (EndpointDownError, PhaseTimeoutError, NonsenseError) as error:
            raise NoServiceError(f"no gateway answers at {url}: {error.message}", hint=start) from error
    if "x-turnout-request-id" not in {name.lower() for name in reply.headers}:
        raise NoServiceError(f"what answers at {url} is not Turnout", hint=start)
    if reply.status in (401, 403):
        hint = f"set {KEY_VARIABLE} to a key; `turnout key add NAME` makes one"
        wanted = "a key" if key == NO_KEY else "another key"
        raise KeyRefusedError(f"the gateway at {url} wants {wanted}", hint=hint)
    guessed = frozenset(name for name, row in rows.items() if _field(row, "window_source") == "guessed")
    return Offer({name: _window(row) for name, row in rows.items()}, f"the gateway at {url}", guessed)


def _rows(listing: Json) -> dict[str, Json]:
    rows = _field(listing, "data")
    ids = ((_field(row, "id"), row) for row in (rows if isinstance(rows, list) else ()))
    return {name: row for name, row in ids if isinstance(name, str)}


def _field(row: Json, name: str) -> Json:
    return row.get(name) if isinstance(row, dict) else None


def _window(row: Json) -> int:
    window = _field(row, "context_window")
    return window if isinstance(window, int) else 0


async def look_around(loaded: LoadedConfig, model: str) -> Offer:
    """As ``ask_gateway``, of a gateway that does not run yet: the servers are asked as it would ask them."""
    from turnout.build import open_router
    from turnout.gateway.listing import aliases, find, listed
    from turnout.types import Principal

    async with open_router(loaded, whole=True) as router:
        if not router.catalog.serving:
            return Offer({}, "")
        names = await listed(router, Principal())
        one = await find(router, Principal(), model)
    found = (*names, *aliases(names), *((one,) if one is not None else ()))
    widest = {one.name: one.widest for one in found if one.widest is not None}
    guessed = frozenset(name for name, candidate in widest.items() if candidate.window_source == "guessed")
    return Offer({name: candidate.window for name, candidate in widest.items()}, "`turnout models`", guessed)
