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
    """The models that can be asked for with their windows (0: not known), and who said so."""

    windows: Mapping[str, int]
    source: str


def address_of(gateway: GatewayConfig) -> str:
    """Where this machine reaches the gateway of the configuration; without a path."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(gateway.host, gateway.host)  # noqa: S104 (nothing is bound)
    return f"http://{f'[{host}]' if ':' in host else host}:{gateway.port}"


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
            windows = _windows(reply.json()) if reply.status == 200 else {}
            if windows and model not in windows:
                place = f"{url}/v1/models/{quote(model, safe='', errors='replace')}"
                one = await client.get_json(place, headers=headers, timeout=_SECONDS)
                windows |= {model: _window(one.json())} if one.status == 200 else {}
        except (EndpointDownError, PhaseTimeoutError, NonsenseError) as error:
            raise NoServiceError(f"no gateway answers at {url}: {error.message}", hint=start) from error
    if "x-turnout-request-id" not in {name.lower() for name in reply.headers}:
        raise NoServiceError(f"what answers at {url} is not Turnout", hint=start)
    if reply.status in (401, 403):
        hint = f"set {KEY_VARIABLE} to a key; `turnout key add NAME` makes one"
        wanted = "a key" if key == NO_KEY else "another key"
        raise KeyRefusedError(f"the gateway at {url} wants {wanted}", hint=hint)
    return Offer(windows, f"the gateway at {url}")


def _windows(listing: Json) -> dict[str, int]:
    rows = listing.get("data") if isinstance(listing, dict) else None
    found: dict[str, int] = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("id"), str):
            found[str(row["id"])] = _window(row)
    return found


def _window(row: Json) -> int:
    window = row.get("context_window") if isinstance(row, dict) else None
    return window if isinstance(window, int) else 0


async def look_around(loaded: LoadedConfig) -> Offer:
    """What the servers offer, as `turnout models` sees them: for a gateway that does not run yet."""
    from turnout.cli.fleet import look
    from turnout.types import VIRTUAL_MODELS

    catalog = await look(loaded)
    windows = {model.id: model.window for status in catalog.serving for model in status.models}
    if not windows:
        return Offer({}, "")
    return Offer(windows | dict.fromkeys(VIRTUAL_MODELS, max(windows.values())), "`turnout models`")
