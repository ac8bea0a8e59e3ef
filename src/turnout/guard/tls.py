"""TLS with the site's own authority, both ways: as it is offered to clients, and as it is expected of servers."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from turnout.errors import StorageError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What the gateway's TLS is made of, in PEM; ``client_ca`` None: no certificate is asked of clients."""

    cert: Path
    key: Path
    client_ca: Path | None = None


_NAMED = "look at gateway.tls and security.ca_file: their paths are relative to the configuration file"


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """What the gateway listens with: TLS 1.2 or newer, and with ``client_ca`` only clients that it has signed.

    Raises:
        StorageError: a file cannot be used, or everybody may read the private key.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(made, files)
    if files.client_ca is not None:
        made.verify_mode = ssl.CERT_REQUIRED
        _load_authority(made, files.client_ca)
    return made


def load_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Take certificate and key from their files, also anew: connections from then on have the new ones.

    Raises:
        StorageError: as ``server_context``.
    """
    try:
        if os.name == "posix" and files.key.stat().st_mode & 0o007:
            raise StorageError(f"everybody may read the private key {files.key}", hint=f"chmod 640 {files.key}")
        # Tried elsewhere first: a certificate that is not the key's would take the good one's key away.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.cert, files.key, password=_no_password)
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except ssl.SSLError as error:
        hint = "both in PEM, the key without a passphrase, the chain in the certificate's file"
        raise StorageError(f"{files.cert} and {files.key} are no pair of certificate and key", hint=hint) from error
    except OSError as error:
        said = error.strerror or "not readable"
        raise StorageError(
            f"the certificate {files.cert} or its key {files.key} cannot be read: {said}", hint=_NAMED
        ) from error


def client_context(authority: Path) -> ssl.SSLContext:
    """What servers are dialled with: only those that this authority has signed, whatever else the system trusts.

    Raises:
        StorageError: the file cannot be used.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_authority(made, authority)
    return made


def _load_authority(context: ssl.SSLContext, authority: Path) -> None:
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise StorageError(f"{authority} holds no certificate of an authority", hint="one or more, in PEM") from error
    except OSError as error:
        raise StorageError(f"the authority {authority} cannot be read: {error.strerror}", hint=_NAMED) from error


def _no_password() -> str:
    """Asked for when the key has one: OpenSSL would ask at the terminal."""
    return ""
