"""``turnout bundle``: Turnout in one file, for machines without a package index."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnout.cli.output import PartialError, cell, json_option, note, print_json, waiting
from turnout.errors import BundleError

if TYPE_CHECKING:
    from turnout.guard.signing import PublicKey
    from turnout.types import Json


@click.group()
def bundle() -> None:
    """Carry Turnout to a machine without a package index, in one signed file.

    What is inside, how it is installed, and what it proves: docs/offline.md.
    """


@bundle.command()
@click.option("-o", "--out", metavar="FILE", type=Path, help="The file. Default: a name that says what it is for.")
@click.option("--embedded", "model", is_flag=True, help="With the demonstration model and its engine (132 MB).")
@click.option("--serena", is_flag=True, help="With Serena and ty, for code context (44 MB).")
@click.option(
    "--wheels",
    "sources",
    metavar="DIR",
    type=Path,
    multiple=True,
    help="Take the wheels from this folder and ask no index. Repeatable.",
)
@click.option(
    "--python", metavar="VERSION", default="", help="For this Python, 3.11 to 3.14. Default: the one that runs."
)
@click.option(
    "--arch", metavar="NAME", default="", help="For this processor: x86_64 or aarch64. Default: this machine's."
)
@json_option
def make(
    out: Path | None,
    model: bool,
    serena: bool,
    sources: tuple[Path, ...],
    python: str,
    arch: str,
    as_json: bool,
) -> None:
    """Gather Turnout, everything it needs and an installer in one file, and sign it.

    The packages are those of Turnout's lock, with its hashes; pip gets them from the index that it is configured for.
    For Linux. The same packages and key make the same bytes. The other machine needs Python and a shell alone.
    """
    from turnout.bundle.make import Wanted
    from turnout.bundle.make import make as make_bundle
    from turnout.bundle.target import target_of
    from turnout.config import data_dir, signing_dir
    from turnout.guard.signing import Signer

    wanted = Wanted(target_of(python, arch), sources, model, serena, data_dir())
    signer = Signer(signing_dir())
    with _progress() as progress:
        made = asyncio.run(make_bundle(wanted, out or Path(f"{wanted.name}.tar"), signer, progress))
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "sha256": made.digest,
                "key": made.key,
                "public_key": str(signer.public_file),
                "size": made.size,
                "packages": made.packages,
            }
        )
        return
    click.echo(f"made: {cell(str(made.path))}, {made.size / 1e6:.0f} MB, {made.packages} packages")
    click.echo(f"SHA-256: {made.digest}")
    click.echo(f"signed with: {made.key}, public key {cell(str(signer.public_file))}")
    note("Let both reach whoever installs it by another way than the bundle.")


@bundle.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", metavar="FILE", type=Path, help="The public key that must have signed it: signing.pub.")
@json_option
def verify(file: Path, key: Path | None, as_json: bool) -> None:
    """Check a bundle before it is unpacked: every file, the list of them, its signature.

    With --key it must be signed with that key; else with this installation's, where it has one; else with the one
    inside, which proves nothing when both came from the same hands. Exits with 1 when it is not as it was made.
    """
    from turnout.bundle.archive import check_archive

    public, whose = _key(key)
    try:
        with waiting("checking") as update:
            found = check_archive(file, public, update)
    except BundleError as error:
        if key is None and public is not None:
            error.hint += f"; it was checked with {whose}, and --key FILE is that of whoever made it"
        raise PartialError(error, {"bundle": str(file), "ok": False}) from error
    if as_json:
        fields: dict[str, Json] = {"bundle": str(file), "ok": True, "name": found.name, "key": found.key}
        print_json({**fields, "checked_with": whose, "files": found.files, "size": found.size})
        return
    click.echo(f"{cell(str(file))}: as it was made, {found.files} files")
    click.echo(f"signed with: {found.key}, {whose}")


def _key(given: Path | None) -> tuple[PublicKey | None, str]:
    from turnout.config import signing_dir
    from turnout.guard.signing import PUBLIC, read_public

    if given is not None:
        return read_public(given), "the key that was given"
    own = signing_dir() / PUBLIC
    if own.exists():
        return read_public(own), "this installation's key"
    return None, "the key inside: is it the one that you were told?"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A spinner on a terminal; elsewhere one line on stderr for each new step."""
    if sys.stderr.isatty():
        with waiting("making a bundle") as update:
            yield update
        return
    told = set[str]()

    def tell(step: str) -> None:
        if step not in told:
            told.add(step)
            note(step)

    yield tell
