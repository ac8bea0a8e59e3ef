"""``turnout models export`` and ``import``: a model in one signed file, to be carried to where nothing is fetched."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnout.cli.output import cell, json_option, loaded_config, note, print_json, progress_bar, waiting
from turnout.errors import ArchiveError, ModelBlockedError, NoServiceError, StorageError, TurnoutError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout.backends.shelf import Arrangement, Shelf
    from turnout.config import LoadedConfig
    from turnout.fleet.catalog import EndpointStatus
    from turnout.fleet.placing import Placed
    from turnout.guard.audit import AuditLog
    from turnout.guard.identity import Files
    from turnout.guard.model_archive import Archive, Source
    from turnout.guard.model_manifest import Manifest
    from turnout.guard.signing import PublicKey
    from turnout.types import Endpoint, Json, Model

SHOWN = 16
EXPORTED, IMPORTED = "security:model_export", "security:model_import"


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="The folder that it goes to, or the file, whose name ends like .tar.",
)
@click.option(
    "--path",
    "paths",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A file or folder of it, where no server knows the model. Repeatable: all of them are the model.",
)
@click.option("--licence", default="", metavar="TEXT", help="What to say of its licence in the list.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
@click.pass_obj
def export(
    config_file: str | None,
    model: str,
    out: Path | None,
    paths: tuple[Path, ...],
    licence: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL, or MODEL@SERVICE, to one signed file that `turnout models import` puts in place elsewhere.

    Its files are found where `turnout models lock` finds them, on this machine. With --path, MODEL is only the name
    that it gets. A model that is not the one in the lock file is not exported.
    """
    from turnout.config import signing_dir
    from turnout.fleet.packing import archive_path, pack, sources_at
    from turnout.guard.model_manifest import Manifest, require_name
    from turnout.guard.signing import Signer

    loaded, made = loaded_config(config_file), datetime.now(UTC).isoformat(timespec="seconds")
    recorded = ""
    if paths:
        manifest = Manifest(made=made, model=require_name(model), licence=licence)
        with _readable():
            sources = sources_at(paths)
    else:
        manifest, sources, recorded = _found(loaded, model, made, licence)
    path = archive_path(out, manifest.model)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is there, and is no file", hint="-o names another")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", hint="--force replaces it, -o names another file")
    signer = Signer(signing_dir())
    with _logged(loaded, EXPORTED, f"{manifest.model} to {path}") as log, progress_bar() as told:

        def agreed(manifest: Manifest) -> None:
            _require_recorded(manifest, recorded)
            log(f"{manifest.model}: weights {manifest.weights} to {path}")

        exported = pack(path, manifest, sources, signer, told, agreed)
    _print_exported(path, exported, signer.public, signer.public_file, sources, as_json=as_json)


def _found(loaded: LoadedConfig, asked: str, made: str, licence: str) -> tuple[Manifest, tuple[Source, ...], str]:
    """A served model, its files, and the digest of its weights in the lock file, or ""."""
    from turnout.build import models_lock_path
    from turnout.config import signing_dir
    from turnout.fleet.catalog import address_of
    from turnout.fleet.packing import sources_of
    from turnout.guard.model_manifest import Manifest, proper_name
    from turnout.guard.modelslock import read_lock, records_of
    from turnout.guard.signing import Signer

    with waiting("looking for servers"):
        status, model, files = asyncio.run(_look(loaded, asked))
    with _readable():
        sources = sources_of(files)
    address = address_of(status.endpoint.url)
    manifest = Manifest(
        made=made,
        model=proper_name(model.id),
        kind=status.endpoint.kind,
        origin=f"{status.endpoint.name} {address}",
        digest=model.digest.removeprefix("sha256:"),
        parameters=model.parameters,
        quantization=model.quantization,
        licence=licence,
    )
    lock = read_lock(models_lock_path(loaded), Signer(signing_dir()).public)
    records = records_of(lock, model.id, address) if lock is not None else []
    return manifest, sources, next((record.weights for record in records if record.weights), "")


async def _look(loaded: LoadedConfig, asked: str) -> tuple[EndpointStatus, Model, Files]:
    """The model that is meant and its files on this machine.

    Raises:
        NoServiceError: no server answers.
        UsageError: none has it, several have it, or its files cannot be found.
    """
    from turnout.build import identity_rules, open_router
    from turnout.cli.models_lock import verifying
    from turnout.fleet.identity import files_of
    from turnout.fleet.locking import served

    async with open_router(verifying(loaded, on=False), whole=True) as router:
        catalog = router.catalog
    if not catalog.serving:
        hint = "start the server that has the model, or name its files: --path FILE"
        raise NoServiceError("no local LLM service available", hint=hint, probed=catalog.probed)
    meant = [(s, m) for s, m in served(catalog) if asked in (m.id, f"{m.id}@{s.endpoint.name}")]
    if not meant:
        raise UsageError(f"no server has {asked!r}", hint="`turnout models` lists them; --path FILE names files")
    folders = identity_rules(loaded).folders
    found = [(s, m, files) for s, m in meant if (files := files_of(s.endpoint, m, folders)) is not None]
    if not found:
        where = ", ".join(status.endpoint.name for status, _ in meant)
        hint = "run this where they are, name them: --path FILE, or list their folder in security.model_paths"
        raise UsageError(f"the files of {asked} at {where} are not found on this machine", hint=hint)
    if len({files.paths for _, _, files in found}) > 1:
        names = ", ".join(f"{m.id}@{s.endpoint.name}" for s, m, _ in found)
        raise UsageError(f"several servers have {asked!r}, from different files", hint=f"name one: {names}")
    return found[0]


def _require_recorded(manifest: Manifest, recorded: str) -> None:
    """Raises ModelBlockedError: its files are others than were recorded."""
    if recorded and recorded != manifest.weights:
        said = f"{manifest.model} is not the model that was recorded: its weights are {manifest.weights[:SHOWN]}…"
        hint = f"recorded was {recorded[:SHOWN]}…; `turnout models lock --replace` records what is there now"
        raise ModelBlockedError(said, hint=hint)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or "a file"
        missing = isinstance(error, FileNotFoundError)
        hint = "look at the path, and whether its disk is mounted" if missing else "make it readable"
        raise StorageError(f"{place} cannot be read: {error.strerror or error}", hint=hint) from error


@contextmanager
def _logged(loaded: LoadedConfig, event: str, attempt: str) -> Iterator[Callable[[str], None]]:
    """What writes to the audit log that it is done; what was refused or failed is written when it is."""
    from turnout.build import open_audit_log

    audit = open_audit_log(loaded)
    try:
        yield lambda what: _note(audit, event, what)
    except UsageError:
        raise
    except (TurnoutError, KeyboardInterrupt) as error:
        _note(audit, event, attempt, error.message if isinstance(error, TurnoutError) else "interrupted")
        raise
    finally:
        if audit is not None:
            audit.close()


def _note(audit: AuditLog | None, event: str, what: str, error: str = "") -> None:
    if audit is not None:
        audit.event(event, service=what, error=error)


def _print_exported(
    path: Path, made: Manifest, key: PublicKey, key_file: Path, sources: Sequence[Source], *, as_json: bool
) -> None:
    first = sources[0].path
    beside = [p for p in sorted(first.parent.glob("*mmproj*.gguf")) if all(s.path != p for s in sources)]
    if beside and made.of("weights") and first.suffix == ".gguf":
        note(f"{beside[0]} lies beside it and is no part of it: to take it along, name both with --path")
    if as_json:
        print_json({"file": str(path), "bytes": path.stat().st_size, **_fields(made), "fingerprint": key.fingerprint})
        return
    size = _size(path.stat().st_size)
    click.echo(cell(f"{path}: {_count(len(made.files))}, {size}, weights {made.weights[:SHOWN]}…"))
    click.echo(cell(f"signed with the key {key.fingerprint}: take {key_file} along by another way"))


def _fields(made: Manifest) -> dict[str, Json]:
    files: list[Json] = [{"name": p.name, "size": p.size, "sha256": p.sha256, "role": p.role} for p in made.files]
    return {
        "model": made.model,
        "kind": made.kind or None,
        "weights": made.weights,
        "licence": made.licence or None,
        "files": files,
    }


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10_000_000 else f"{size:,} bytes"


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    metavar="KIND|DIR",
    help="The kind of server that is to have it, or a folder: ./DIR where it is not there yet.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where that server keeps its models instead."
)
@click.option("--name", help="Its name there; by default the one that it had.")
@click.option("--key", type=click.Path(path_type=Path), help="The public key that must have signed it: signing.pub.")
@click.option("--yes", is_flag=True, help="Do not ask whether the key that came with it may be believed.")
@click.option("--force", is_flag=True, help="Replace another model that is there.")
@json_option
@click.pass_obj
def import_(
    config_file: str | None,
    file: Path,
    to: str,
    folder: Path | None,
    name: str | None,
    key: Path | None,
    yes: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Put the model in FILE where a local server reads it, when every byte of it is as it was signed.

    KIND is the name of a service in the configuration, such as ollama, lmstudio, jan, localai, gpt4all or llamacpp.
    Without --key this installation's own key is tried, then the one in FILE, which proves only that FILE is whole.
    Exits with 1, having put nothing anywhere, when FILE was changed or is signed by another key.
    """
    from turnout.fleet.placing import place
    from turnout.guard.model_archive import Archive
    from turnout.guard.model_manifest import require_name

    loaded = loaded_config(config_file)
    kind, shelf = _shelf(to)
    with _logged(loaded, IMPORTED, f"{file} to {to}") as log:
        with _readable():
            archive = Archive(file)
        try:
            public, whose = _trusted(archive, key, yes=yes)
            manifest = archive.manifest
            arrangement = shelf.arrange(manifest, require_name(name) if name else manifest.model)
            shelf.check(manifest, archive.read)
            where = _folder(shelf, kind, to, folder)
            endpoint = _running(loaded, kind, shelf, arrangement.model, force=force) if arrangement.adopted else None
            with progress_bar() as told:
                said = (
                    f"{arrangement.model}: weights {manifest.weights} from {file} to {where}, key {public.fingerprint}"
                )
                placed = place(archive, arrangement, where, told, lambda: log(said), force=force)
                if placed.already:
                    log(f"{said}; it was there")
        finally:
            archive.close()
        if endpoint is not None:
            try:
                with waiting(f"{shelf.title} makes a model of it"):
                    asyncio.run(_adopt(loaded, endpoint, shelf, manifest, arrangement.model))
            except BaseException:
                for path in placed.new:
                    path.unlink(missing_ok=True)
                raise
    _print_imported(loaded, manifest, arrangement, placed, where, (public, whose), as_json=as_json)


def _shelf(to: str) -> tuple[str, Shelf]:
    """The kind, "" for a folder.

    Raises:
        UsageError: it is neither, or nothing can be imported there.
    """
    from turnout.backends import BY_KIND
    from turnout.backends.shelf import Shelf

    backend = BY_KIND.get(to)
    kinds = ", ".join(sorted(kind for kind, each in BY_KIND.items() if each.shelf is not None))
    if backend is not None:
        if backend.shelf is None:
            raise UsageError(f"nothing can be put where {backend.title} has its models", hint=f"--to DIR, or {kinds}")
        return to, backend.shelf
    if not Path(to).is_dir() and Path(to).name == to:
        raise UsageError(f"{to!r} is neither a kind of server nor a folder", hint=f"--to ./{to} for one, or {kinds}")
    return "", Shelf("what reads it")


def _folder(shelf: Shelf, kind: str, to: str, given: Path | None) -> Path:
    """Where the files go. Raises UsageError: nobody has said it."""
    if not kind:
        if given is not None:
            raise UsageError("--folder belongs to a kind of server", hint=f"--to {given}")
        return Path(to).absolute()
    if given is not None:
        return given.absolute()
    usual = shelf.folders(os.environ)
    if not usual:
        raise UsageError(f"{shelf.title} reads what it is started with", hint="say where to put it: --folder DIR")
    if len(usual) > 1:
        hint = "--folder " + ", or --folder ".join(str(folder) for folder in usual)
        raise UsageError(f"{shelf.title} keeps models in several places here", hint=hint)
    if not usual[0].exists() and not usual[0].parent.exists():
        hint = "start it once as the user whose it is, or say where to put it: --folder DIR"
        raise UsageError(f"{shelf.title} keeps its models in {usual[0]}, which is not there", hint=hint)
    return usual[0]


def _trusted(archive: Archive, given: Path | None, *, yes: bool) -> tuple[PublicKey, str]:
    """The key whose signature the archive has, and whose that is.

    Raises:
        ArchiveError: it was changed, or another has signed it.
        UsageError: nobody said whether the key that came with it is to be believed.
    """
    from turnout.config import signing_dir
    from turnout.guard.signing import PUBLIC, read_public

    if given is not None:
        public = read_public(given)
        archive.check_signature(public)
        return public, "given with --key"
    carried = archive.key()
    archive.check_signature(carried)
    own = signing_dir() / PUBLIC
    if own.exists() and read_public(own).pem == carried.pem:
        return carried, "this installation's"
    note(f"It is signed with the key {carried.fingerprint}, which came with it: that proves only that it is whole.")
    if not yes:
        if not sys.stdin.isatty():
            hint = "--key FILE is the key that must have signed it; --yes believes this one"
            raise UsageError(f"nobody said that the key {carried.fingerprint} is to be believed", hint=hint)
        click.confirm("Is that the fingerprint that the exporter has told you?", abort=True, err=True)
    return carried, "which came with it"


def _running(loaded: LoadedConfig, kind: str, shelf: Shelf, name: str, *, force: bool) -> Endpoint:
    """The server of this kind on this machine.

    Raises:
        UsageError: none runs, or several do.
        ArchiveError: it has another model of this name, or the same.
    """
    from turnout.cli.fleet import look
    from turnout.fleet.identity import is_here
    from turnout.types import Health

    with waiting("looking for servers"):
        catalog = asyncio.run(look(loaded))
    online = [status for status in catalog.endpoints if status.health is Health.ONLINE]
    found = [status for status in online if status.endpoint.kind == kind and is_here(status.endpoint)]
    if len(found) != 1:
        what = "no" if not found else "more than one"
        hint = f"start {shelf.title}" if not found else "configure one alone"
        said = f"{what} {shelf.title} runs here, which has to make a model of these files itself"
        raise UsageError(said, hint=f"{hint}, or import to a folder: --to DIR")
    has = {*(model.id for model in found[0].models), *(model for model, _ in found[0].excluded)}
    if shelf.listed_as(name) in has and not force:
        said = f"{found[0].endpoint.name} has a model {shelf.listed_as(name)} already"
        raise ArchiveError(said, hint="--force replaces it, --name gives this one another name")
    return found[0].endpoint


async def _adopt(loaded: LoadedConfig, endpoint: Endpoint, shelf: Shelf, manifest: Manifest, name: str) -> None:
    from turnout.build import open_router

    async with open_router(loaded) as router:
        await shelf.adopt(router.client, endpoint, manifest, name)


def _print_imported(
    loaded: LoadedConfig,
    manifest: Manifest,
    arrangement: Arrangement,
    placed: Placed,
    where: Path,
    trusted: tuple[PublicKey, str],
    *,
    as_json: bool,
) -> None:
    from turnout.build import models_lock_path

    public, whose = trusted
    locked = models_lock_path(loaded).exists()
    then = arrangement.then + ("; then `turnout models lock` records it, or it stays unverified" if locked else "")
    if as_json:
        fields = _fields(manifest) | {"model": arrangement.model, "folder": str(where), "already": placed.already}
        fields["places"] = [str(path) for path in placed.paths]
        fields["left_out"] = [*placed.left_out]
        print_json(fields | {"fingerprint": public.fingerprint, "key": whose, "next": then})
        return
    name = arrangement.model
    click.echo(cell(f"{name}: signed with the key {public.fingerprint} ({whose}), every file is as it was"))
    if placed.left_out:
        note(f"Left out, since it has no use for them: {', '.join(placed.left_out)}")
    place = placed.paths[0] if len(placed.paths) == 1 else where / arrangement.folder
    click.echo(cell(f"{place}: {'was there already' if placed.already else _count(len(placed.paths))}"))
    click.echo(cell(f"next: {then}"))
