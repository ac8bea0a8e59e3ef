"""The site's own list of servers: signed if it wants to be, verified, and compared with what is really there.

Where scanning is forbidden and nothing announces itself, this is how a site says what there is (facts/services.md,
section 16). The file is YAML or JSON; its signature, over the file's bytes, stands beside it as ``FILE.sig``: the 64
bytes of Ed25519, or their base64.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import yaml

from turnout.config import Section
from turnout.config_load import read_bounded
from turnout.errors import ConfigError
from turnout.fleet.catalog import EndpointStatus
from turnout.hidden import hide
from turnout.types import Endpoint, Health, Limits

DRIFT = "inventory: "  # how each word about a difference begins
_BAD_SIGNATURE = "sign the file as it is, with the site's key, or take discovery.inventory_key away"


class ListedModel(Section, frozen=True, kw_only=True):
    """A model that a server should have. ``digest``: as the server reports it, or None when that is not pinned."""

    id: str
    digest: str | None = None


class ListedServer(Section, frozen=True, kw_only=True):
    """A server that should be there.

    Attributes:
        kind: what it should be, or None.
        models: what it should serve, and nothing else; empty when that is not pinned.
    """

    name: str
    endpoint: str
    kind: str | None = None
    priority: int = 1
    key: str | None = None
    models: tuple[ListedModel, ...] = ()


class Inventory(Section, frozen=True, kw_only=True):
    """The file."""

    version: int = 1
    servers: tuple[ListedServer, ...] = ()


def read_inventory(path: Path, key_file: Path | None, env: Mapping[str, str]) -> Inventory:
    """Read and check the file; with a key, only when its signature is good.

    Args:
        path: the inventory.
        key_file: the site's Ed25519 public key (PEM), or None: then no signature is asked for.
        env: where ``${NAME}`` of a server's key is looked up.

    Raises:
        ConfigError: it cannot be read, its signature is missing or wrong, or it is not an inventory.
    """
    data = read_bounded(path)
    if key_file is not None:
        _verify(path, data, key_file)
    try:
        found = msgspec.convert(_Loader(data).get_single_data(), Inventory)
    # What PyYAML raises for numbers and dates out of their range is no YAMLError.
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError, ValueError, LookupError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"it is no inventory: {said}", file=str(path), hint="see docs/fleet.md") from error
    names = [server.name for server in found.servers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        # What a server should have is found by its name.
        raise ConfigError(f"two servers are called {twice!r}", file=str(path), hint="give each a name of its own")
    return _with_keys(found, env, path)


class _Loader(yaml.SafeLoader):
    """YAML without aliases: with them a few lines say more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*) are not read, write out what they stand for")
        return super().compose_node(parent, index)


def _with_keys(inventory: Inventory, env: Mapping[str, str], path: Path) -> Inventory:
    """``${NAME}`` of a key taken from the environment: the file itself need hold no secret."""
    servers = []
    for number, server in enumerate(inventory.servers):
        if server.key and server.key.startswith("${") and server.key.endswith("}"):
            name = server.key[2:-1]
            if name not in env:
                raise ConfigError(f"{name} is not set", file=str(path), key=f"servers.{number}.key")
            server = msgspec.structs.replace(server, key=env[name])  # noqa: PLW2901
        hide(server.key or "")
        servers.append(server)
    return msgspec.structs.replace(inventory, servers=tuple(servers))


def _verify(path: Path, data: bytes, key_file: Path) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(read_bounded(key_file))
    except (ValueError, TypeError) as error:
        raise ConfigError("it is no public key", file=str(key_file), hint="an Ed25519 key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("it is no Ed25519 key", file=str(key_file), hint="an Ed25519 key in PEM")
    try:
        signature = read_bounded(path.with_name(path.name + ".sig"))
    except ConfigError as error:
        raise ConfigError(f"its signature: {error.message}", file=str(path), hint=_BAD_SIGNATURE) from error
    if len(signature) != 64:
        try:
            signature = base64.b64decode(signature, validate=False)
        except binascii.Error:
            signature = b""
    try:
        key.verify(signature, data)
    except InvalidSignature as error:
        raise ConfigError("its signature is not the site's", file=str(path), hint=_BAD_SIGNATURE) from error


def endpoints_of(inventory: Inventory) -> tuple[Endpoint, ...]:
    """The servers as configured endpoints; what they are is found out, never believed."""
    return tuple(
        Endpoint(
            name=server.name,
            kind="",
            url=server.endpoint.rstrip("/"),
            priority=server.priority,
            limits=Limits(),
            key=server.key or "",
            configured=True,
        )
        for server in inventory.servers
    )


def compared(statuses: Sequence[EndpointStatus], inventory: Inventory) -> tuple[EndpointStatus, ...]:
    """What is there beside what should be: drift in the notes, and what contradicts the list left out.

    A server of another kind is not used at all; a model with another digest, or one that the list does not name where
    it names models, is left out. Pure.
    """
    listed = {server.name: server for server in inventory.servers}
    return tuple(
        _compared(status, listed[status.endpoint.name]) if status.endpoint.name in listed else status
        for status in statuses
    )


def drift_of(statuses: Sequence[EndpointStatus]) -> frozenset[tuple[str, str]]:
    """Every difference, as ``(endpoint's name, what)``."""
    return frozenset((s.endpoint.name, note) for s in statuses for note in s.notes if note.startswith(DRIFT))


def _compared(status: EndpointStatus, server: ListedServer) -> EndpointStatus:
    if status.health not in (Health.ONLINE, Health.DEGRADED):
        return replace(status, notes=(*status.notes, f"{DRIFT}it is {status.health}"))
    if server.kind and server.kind != status.endpoint.kind:
        drift = f"{DRIFT}it is {status.endpoint.kind or 'unknown'}, the list says {server.kind}"
        return replace(status, notes=(*status.notes, drift), unused=drift)
    if not server.models:
        return status
    wanted = {model.id: model for model in server.models}
    excluded = []
    for model in status.models:
        pinned = wanted.get(model.id)
        if pinned is None:
            excluded.append((model.id, f"{DRIFT}the list does not name it"))
        elif pinned.digest and pinned.digest.removeprefix("sha256:") != model.digest.removeprefix("sha256:"):
            excluded.append((model.id, f"{DRIFT}its digest is {model.digest or 'not told'}, not {pinned.digest}"))
    there = {model.id for model in status.models}
    missing = [f"{DRIFT}it has no {name}" for name in wanted if name not in there]
    left_out = {name for name, _ in excluded}
    return replace(
        status,
        models=tuple(model for model in status.models if model.id not in left_out),
        excluded=(*status.excluded, *excluded),
        notes=(*status.notes, *missing, *(f"{reason} ({name})" for name, reason in excluded)),
    )
