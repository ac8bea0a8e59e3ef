"""The site's list: read only when it is what it should be, and compared with what is there."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from turnout.errors import ConfigError
from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.inventory import Inventory, ListedModel, ListedServer, compared, endpoints_of, read_inventory
from turnout.types import Endpoint, Health, Model

LIST = """
servers:
  - name: gpu-1
    endpoint: http://10.0.0.5:11434/
    kind: ollama
    key: ${GPU_KEY}
    models:
      - {id: "qwen2.5-coder:32b", digest: "sha256:aa"}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "inventory.yaml"
    file.write_text(LIST)
    return file


def signed(path: Path, key: Ed25519PrivateKey, *, text: bool = False) -> Path:
    signature = key.sign(path.read_bytes())
    path.with_name(path.name + ".sig").write_bytes(base64.encodebytes(signature) if text else signature)
    public = path.with_name("site.pem")
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


@pytest.mark.parametrize("text", [False, True])
def test_a_signed_list_is_read(path: Path, text: bool) -> None:
    public = signed(path, Ed25519PrivateKey.generate(), text=text)
    (endpoint,) = endpoints_of(read_inventory(path, public, {"GPU_KEY": "secret"}))
    assert (endpoint.name, endpoint.url, endpoint.key) == ("gpu-1", "http://10.0.0.5:11434", "secret")
    assert (endpoint.kind, endpoint.configured) == ("", True), "what it is is found out, not believed"


def test_a_list_signed_with_openssl_is_read(path: Path) -> None:
    folder = path.parent
    for command in (
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", "key.pem"],
        ["openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "site.pem"],
        ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", "key.pem", "-in", path.name, "-out", f"{path.name}.sig"],
    ):
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no openssl command on this machine")
    assert read_inventory(path, folder / "site.pem", {"GPU_KEY": "x"}).servers[0].name == "gpu-1"


def test_without_a_key_no_signature_is_asked_for(path: Path) -> None:
    assert read_inventory(path, None, {"GPU_KEY": "x"}).servers[0].kind == "ollama"


def test_nothing_is_read_whose_signature_is_not_good(path: Path) -> None:
    public = signed(path, Ed25519PrivateKey.generate())
    path.write_text(LIST.replace("10.0.0.5", "10.0.0.6"))
    with pytest.raises(ConfigError, match="its signature is not the site's"):
        read_inventory(path, public, {"GPU_KEY": "x"})
    signed(path, Ed25519PrivateKey.generate())
    other = path.with_name("other.pem")
    key = Ed25519PrivateKey.generate().public_key()
    other.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError, match="its signature is not the site's"):
        read_inventory(path, other, {"GPU_KEY": "x"})
    path.with_name(path.name + ".sig").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_inventory(path, public, {"GPU_KEY": "x"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("servers: [{name: a}]", "missing required field `endpoint`"),
        ("servers: [{name: a, endpoint: http://x, color: red}]", "color"),
        ("- 1", "Expected `object`"),
        ("a: [", "while parsing"),
        ("servers: [{name: a, endpoint: http://x, key: '${NOT_SET}'}]", "NOT_SET is not set"),
        ("servers: [{name: a, endpoint: http://x}, {name: a, endpoint: http://y}]", "two servers are called 'a'"),
        ("version: 2001-99-99", "month must be in"),
        (f"version: {'1' * 5000}", "no inventory"),
        (
            "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)),
            "aliases",
        ),
    ],
)
def test_a_mistake_in_it_is_said(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_inventory(path, None, {})


def status(kind: str = "ollama", health: Health = Health.ONLINE, **digests: str) -> EndpointStatus:
    models = tuple(Model(name, digest=digest) for name, digest in digests.items())
    return EndpointStatus(Endpoint("gpu-1", kind, "http://10.0.0.5:11434"), health, "answers", 0.0, models=models)


def listed(**digests: str | None) -> Inventory:
    models = tuple(ListedModel(id=name, digest=digest) for name, digest in digests.items())
    server = ListedServer(name="gpu-1", endpoint="http://10.0.0.5:11434", kind="ollama", models=models)
    return Inventory(servers=(server,))


def test_what_is_as_listed_has_no_drift() -> None:
    found = status(a="aa", b="bb")
    assert compared((found,), listed(a="sha256:aa", b=None)) == (found,)
    assert compared((found,), listed()) == (found,), "models are pinned only when the list names some"
    other = EndpointStatus(Endpoint("else", "vllm", "http://10.0.0.9:8000"), Health.ONLINE, "answers", 0.0)
    assert compared((other,), listed(a="aa")) == (other,)


def test_drift_is_said_and_what_contradicts_the_list_is_left_out() -> None:
    (found,) = compared((status(a="changed", c="cc"),), listed(a="aa", b=None))
    assert found.models == ()
    assert {name for name, _ in found.excluded} == {"a", "c"}
    assert found.notes == (
        "inventory: it has no b",
        "inventory: its digest is changed, not aa (a)",
        "inventory: the list does not name it (c)",
    )
    (wrong,) = compared((status(kind="vllm", a="aa"),), listed(a="aa"))
    assert "the list says ollama" in wrong.unused
    (gone,) = compared((status(health=Health.OFFLINE),), listed(a="aa"))
    assert gone.notes == ("inventory: it is offline",)
