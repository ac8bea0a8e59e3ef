"""What is in a bundle, as CycloneDX 1.6 has it: packages and weights with version, SHA-256 and licence."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from turnout.bundle.wheels import Wheel
from turnout.embedded import GGUF_NAME, GGUF_SHA256, PACKAGE, VERSION
from turnout.errors import BundleError
from turnout.types import Json

_SPACE = uuid.UUID("0d7fa3c6-2a0b-5b0e-9b6e-3f0a6a3d4f11")  # drawn once; serial numbers are names in it


def sbom(wheels: Sequence[Wheel], serena: Sequence[Wheel], model: Path | None) -> bytes:
    """The document. Its serial number follows from the components, its time is SOURCE_DATE_EPOCH or absent.

    Raises:
        BundleError: SOURCE_DATE_EPOCH is no number of seconds.
    """
    components = [_package(wheel, "wheels") for wheel in wheels if wheel.name != "turnout"]
    components += [_package(wheel, "serena") for wheel in serena]
    if model is not None:
        components.append(_weights())
    (own,) = (_package(wheel, "wheels", "application") for wheel in wheels if wheel.name == "turnout")
    names = [str(each["bom-ref"]) for each in components]
    body: dict[str, Json] = {
        "metadata": {**_time(), "component": own},
        "components": [*components],
        "dependencies": [{"ref": own["bom-ref"], "dependsOn": [*names]}],
    }
    serial = uuid.uuid5(_SPACE, json.dumps(body, sort_keys=True))
    head: dict[str, Json] = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}"}
    return (json.dumps({**head, "version": 1, **body}, indent=2) + "\n").encode()


def _time() -> dict[str, Json]:
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not given:
        return {}
    try:
        if not (given.isascii() and given.isdigit()):
            raise ValueError
        return {"timestamp": f"{datetime.fromtimestamp(int(given), UTC):%Y-%m-%dT%H:%M:%SZ}"}
    except (ValueError, OverflowError, OSError) as error:
        raise BundleError(
            f"SOURCE_DATE_EPOCH is no number of seconds: {given!r}", hint="set another, or none"
        ) from error


def _package(wheel: Wheel, folder: str, kind: str = "library") -> dict[str, Json]:
    purl = f"pkg:pypi/{wheel.name}@{wheel.version}"
    licences: list[Json] = [{"license": {"name": name}} for name in wheel.licences]
    if wheel.expression:
        licences = [{"expression": wheel.expression}]
    return {
        "type": kind,
        "bom-ref": f"{folder}/{wheel.name}",
        "name": wheel.name,
        "version": wheel.version,
        "hashes": [{"alg": "SHA-256", "content": wheel.digest}],
        **({"licenses": licences} if licences else {}),
        "purl": purl,
        "properties": [{"name": "turnout:file", "value": f"{folder}/{wheel.path.name}"}],
    }


def _weights() -> dict[str, Json]:
    """The demonstration model; its licence is that of its model card (facts/backends.md)."""
    return {
        "type": "machine-learning-model",
        "bom-ref": "models/smollm2",
        "name": GGUF_NAME.removesuffix(".gguf"),
        "version": VERSION,
        "hashes": [{"alg": "SHA-256", "content": GGUF_SHA256}],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "purl": f"pkg:pypi/{PACKAGE}@{VERSION}",
        "properties": [{"name": "turnout:file", "value": f"models/{GGUF_NAME}"}],
    }
