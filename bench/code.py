"""Code context of a large workspace: time to the first context and to the next, a bundle of questions, memory.

python bench/code.py DIR        DIR holds a large Python package, such as `pip download --no-deps sympy`, unpacked

Serena and ty are those of the tests (`python -m tests.code.serena_env`). A function of a file of about 40 KB is chosen
that is used in 5 to 60 lines elsewhere; the question is at its definition. Each context is asked through the host of
the workspace, as `turnout ask` does, with the default budgets; the warm ones are all of different questions, since the
same one again is not gathered anew. A bundle is hover, definition, outline and errors, which is what is asked at a
position, at once of Serena or of ty alone, in this process; then the same with references.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.code.hosting import end_all
from tests.code.serena_env import serena_dir, why_not

from turnout.code.client import HostedCode, Hosts
from turnout.code.install import environment_dir, find_serena
from turnout.code.intelligence import Intelligence
from turnout.code.lsp import language_servers
from turnout.code.search import TextSearch, files_of
from turnout.code.serena import SerenaIntelligence
from turnout.code.settings import HostSettings
from turnout.config import CodeConfig
from turnout.types import FileContext, Position, TaskCategory

VERSION, RUNS, ROOM = "2.1.0", 15, 18_000
_DEF = re.compile(r"^def (\w{6,})\(", re.MULTILINE)


def chosen(root: Path) -> tuple[str, str, Position, int]:
    """A file, a function of it, the position of its name, and in how many lines it is used elsewhere."""
    files = [path for path in files_of(root) if path.suffix == ".py"]
    texts = {path: path.read_text("utf-8", "replace") for path in files}
    lines = Counter(
        word for text in texts.values() for line in text.split("\n") for word in set(re.findall(r"\w+", line))
    )
    print(f"{len(files):,} Python files, {sum(text.count(chr(10)) for text in texts.values()):,} lines")
    for path in sorted(files, key=lambda path: abs(len(texts[path]) - 40_000)):
        for found in _DEF.finditer(texts[path]):
            elsewhere = lines[found[1]] - len(re.findall(rf"(?m)^.*\b{found[1]}\b", texts[path]))
            if 5 <= elsewhere <= 60:
                line = texts[path].count("\n", 0, found.start())
                return path.relative_to(root).as_posix(), found[1], Position(line, 4), elsewhere
    raise SystemExit("no function that is used in 5 to 60 lines: a larger package is needed")


async def contexts(root: Path, data: Path, file: str, name: str, at: Position) -> None:
    """The first context of a host that is not running, and the ones after it."""
    config, hosts = CodeConfig(), Hosts(data, HostSettings())
    code = HostedCode(hosts, warm=config.budget_ms / 1000, cold=config.cold_budget_ms / 1000, wanted=lambda _: True)

    async def ask(query: str, here: bool) -> tuple[float, str]:
        began = time.perf_counter()
        place = FileContext(file, at) if here else None
        found = await code.gather(query, TaskCategory.CODING, place, root, ROOM)
        return time.perf_counter() - began, f"{found.provider}: {found.note}" if found else "nothing"

    for what, query, here in (
        ("at a position", "What is wrong with this function?", True),
        ("by name", f"Rename `{name}` and change every use of it", False),
    ):
        seconds, note = await ask(query, here)
        print(f"  first context {what:<14} {seconds:6.2f} s   {note[:160]}")
        if here:
            await asyncio.sleep(30)  # the servers warm up behind
            (status,) = await hosts.running()
            print(f"  memory after it: {_memory(status.pid)}")
        times = [(await ask(f"{query} ({n})", here))[0] for n in range(RUNS)]
        again = statistics.median([(await ask(query, here))[0] for _ in range(RUNS)])
        told = f"median of {RUNS}, {min(times):.3f} to {max(times):.3f}; the same question again {again:.3f} s"
        print(f"  the next ones {what:<14} {statistics.median(times):6.3f} s   {told}")
    (status,) = await hosts.running()
    print(f"  memory at the end: {_memory(status.pid)}")
    await hosts.aclose()


async def bundle(who: Intelligence, file: str, at: Position, *, references: bool) -> None:
    """Several questions at once, several times, after the first."""

    async def ask() -> float:
        began = time.perf_counter()
        asked = [who.hover(file, at), who.definition(file, at), who.outline(file), who.diagnostics(file)]
        await asyncio.gather(*asked, *([who.references(file, at)] if references else []))
        return time.perf_counter() - began

    first = await ask()
    times = [await ask() for _ in range(RUNS)]
    what = f"{who.name}{', with references' if references else ''}"
    told = f"median of {RUNS}, {min(times):.3f} to {max(times):.3f}; the first {first:.2f} s"
    print(f"  bundle of {what:<26} {statistics.median(times):6.3f} s   {told}")


def _memory(host: int) -> str:
    """MB of the host and of each program below it."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        children.setdefault(int(fields["PPid"]), []).append(int(fields["Pid"]))
    found, open_ = [f"host {_size(host)} MB"], [(child, "") for child in children.get(host, ())]
    while open_:
        pid, below = open_.pop(0)
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        found.append(f"{name}{below} {_size(pid)} MB")
        open_ += [(child, f" below {name}") for child in children.get(pid, ())]
    return ", ".join(found)


def _size(pid: int) -> int:
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)


@contextmanager
def data_directory(*, serena: bool) -> Iterator[Path]:
    """A new one, with Serena and ty as `turnout code install` brings them, or with ty on the PATH alone; the hosts that
    were started for it are ended."""
    programs = environment_dir(serena_dir(VERSION))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as path:
        os.environ["TURNOUT_DATA_DIR"], os.environ["PATH"] = folder, path
        if serena:
            environment_dir(Path(folder)).parent.mkdir(parents=True)
            environment_dir(Path(folder)).symlink_to(programs)
        else:
            Path(path, "ty").symlink_to(programs / "bin" / "ty")
        yield Path(folder)
        asyncio.run(end_all(Path(folder)))


async def text_alone(root: Path, file: str, name: str, at: Position) -> None:
    for what, query, place in (("at a position", "What is wrong?", FileContext(file, at)), ("by name", name, None)):
        began = time.perf_counter()
        await TextSearch(3.0).gather(query, TaskCategory.CODING, place, root, ROOM)
        print(f"  text search {what:<14} {time.perf_counter() - began:6.3f} s")


async def bundles(root: Path, data: Path, file: str, at: Position) -> None:
    program = find_serena(serena_dir(VERSION))
    assert program is not None
    ty = next(one for one in language_servers(root, {}, (environment_dir(data) / "bin",)) if one.name == "ty")
    serena = SerenaIntelligence(program, root, data)
    try:
        await serena.warm()
        for who in (ty, serena):
            await bundle(who, file, at, references=False)
            await bundle(who, file, at, references=True)
    finally:
        await ty.aclose()
        await serena.aclose()


def main() -> None:
    if len(sys.argv) != 2 or why_not(VERSION):
        raise SystemExit(why_not(VERSION) or __doc__)
    root = Path(sys.argv[1]).resolve()
    file, name, at, used = chosen(root)
    print(f"{file}:{at.line + 1}: {name}, used in {used} lines of other files")
    asyncio.run(text_alone(root, file, name, at))
    for serena in (False, True):
        print("Serena and ty" if serena else "ty alone")
        with data_directory(serena=serena) as data:
            asyncio.run(contexts(root, data, file, name, at))
    print("one after the other, in this process")
    with data_directory(serena=True) as data:
        asyncio.run(bundles(root, data, file, at))


if __name__ == "__main__":
    main()
