"""Edits that can be trusted: what may be touched, all or nothing, kills, races, undo, the audit log (SPEC CODE-4)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from turnout.code.apply import Editor, chosen
from turnout.code.ignore import ignored
from turnout.code.intelligence import Ability, CodeSymbol, Diagnostic, Intelligence, Place, TextEdit
from turnout.code.journal import MOST_KEPT, Journal, journal_folder
from turnout.code.paths import checked
from turnout.code.preview import FileChange
from turnout.code.provider import Issue
from turnout.code.semantic import issues_of
from turnout.errors import AuditError, EditError, StorageError
from turnout.guard.audit import AuditLog, open_audit
from turnout.guard.chain import verify
from turnout.types import Position

BOTH = """\
a.txt
<<<<<<< SEARCH
one
=======
1
>>>>>>> REPLACE

sub/new/c.txt
<<<<<<< SEARCH
=======
new
>>>>>>> REPLACE

diff --git a/b.txt b/b.txt
deleted file mode 100644
--- a/b.txt
+++ /dev/null
@@ -1 +0,0 @@
-two
"""
OLD = {"a.txt": b"one\nrest\n", "b.txt": b"two\n"}
NEW = {"a.txt": b"1\nrest\n", "sub/new/c.txt": b"new\n"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    for name, data in OLD.items():
        (folder / name).write_bytes(data)
    return folder


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the workspace, also hidden ones that were left behind."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def editor(root: Path, **more: object) -> Editor:
    return Editor(root, root.parent / "data", audit=more.pop("audit", None), **more)  # type: ignore[arg-type]


def audit_of(root: Path) -> AuditLog:
    return open_audit(root.parent / "audit.log", root.parent / "audit.key", log_queries=True, log_responses=False)


async def test_all_is_written_and_taken_back(root: Path) -> None:
    (root / "a.txt").chmod(0o751)
    edits = editor(root)
    outcome = await edits.apply(await edits.preview(BOTH))
    assert [(c.path, c.action) for c in outcome.changes] == [
        *(("a.txt", "change"), ("sub/new/c.txt", "create"), ("b.txt", "delete"))
    ]
    assert contents(root) == NEW
    assert stat.S_IMODE((root / "a.txt").stat().st_mode) == 0o751
    undone = await editor(root).undo()
    assert contents(root) == OLD
    assert stat.S_IMODE((root / "a.txt").stat().st_mode) == 0o751
    assert not (root / "sub").exists()
    assert [(c.path, c.action) for c in undone.changes] == [
        *(("a.txt", "change"), ("sub/new/c.txt", "delete"), ("b.txt", "create"))
    ]
    with pytest.raises(EditError, match="nothing to undo"):
        await editor(root).undo()


async def test_only_what_was_chosen_is_written(root: Path) -> None:
    edits = editor(root)
    await edits.apply(chosen(await edits.preview(BOTH), ["b.txt"]))
    assert contents(root) == {"a.txt": OLD["a.txt"]}


async def test_one_edit_that_cannot_be_done_stops_all(root: Path) -> None:
    edits = editor(root)
    for bad in ("a.txt\n<<<<<<< SEARCH\nnine\n=======\n9\n>>>>>>> REPLACE\n", "a.txt\n<<<<<<< SEARCH\nx\n"):
        proposed = await edits.preview(BOTH + "\n" + bad)
        with pytest.raises(EditError):
            await edits.apply(proposed)
        assert contents(root) == OLD


async def test_what_is_doubtful_needs_somebody_who_saw_it(root: Path) -> None:
    edits = editor(root)
    proposed = await edits.preview("x.py\n```python\ndef f(:\n```\n")
    with pytest.raises(EditError, match=r"x\.py: it is no Python any more"):
        await edits.apply(proposed)
    assert contents(root) == OLD
    await edits.apply(proposed, doubtful=True)
    assert contents(root) == OLD | {"x.py": b"def f(:\n"}


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "../x.txt", "sub/../../x", "~/x.txt", "C:/x.txt", "C:x.txt", "a\\b.txt", "//x/y.txt"),
        *(".git/hooks/post-commit", ".GIT/config", ".env", ".env.local", "id_rsa", "keys/server.pem", ".ssh/config"),
        *("node_modules/x.js", "nul.txt", "sub/CON", "com1.log", "a.txt.", "x\x00.txt", "x\u202e.txt", "a.txt/b.txt"),
        *("secret.txt", "out/x.txt", "link.txt", "linked/x.txt", "pipe.txt", "locked.txt", "large.txt", "sub//x.txt"),
        *("", ".", "./", "x" * 300 + ".txt", "a/" * 50 + "x.txt", "b.txt:stream"),
        *("GIT~1/config", "GIT~1.TXT/x.txt", "di\ufb05/x.txt", ".\u017f\u017fh/config"),
    ],
)
async def test_hostile_paths_are_refused(root: Path, path: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (root / "link.txt").symlink_to(outside / "target.txt")
    (root / "linked").symlink_to(outside)
    (root / ".gitignore").write_text("secret*\nout/\n!secret.md\n")
    os.mkfifo(root / "pipe.txt")
    (root / "locked.txt").write_text("x")
    (root / "locked.txt").chmod(0o444)
    (root / "large.txt").write_bytes(b"x" * 1_000_001)
    with pytest.raises(EditError):
        checked(root.resolve(), path)
    edits = editor(root)
    proposed = await edits.preview(f"*** Begin Patch\n*** Add File: {path}\n+x\n*** End Patch\n")
    assert proposed.changes == ()
    with pytest.raises(EditError):
        await edits.apply(proposed)
    assert list(outside.iterdir()) == []


def test_good_paths_are_taken(root: Path) -> None:
    for path, same in (("./a.txt", "a.txt"), ("sub/x.py", "sub/x.py"), (".github/ci.yml", ".github/ci.yml")):
        assert checked(root.resolve(), path) == same
    assert checked(root.resolve(), "häuser/größe.txt") == "häuser/größe.txt"


GIT_RULES = """\
# comment
*.log
!keep.log
/top.txt
build*/
docs/**/x.md
a/**
**/deep/y
foo[0-9].txt
\\#hash
space\\ end
sub/only
/m/*a*b*ab
p/**/q/**/s
"""


def test_the_ignore_rules_are_those_of_git(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text(GIT_RULES)
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / ".gitignore").write_text("!x.log\n/own\n")
    names = [
        *(
            "x.log",
            "keep.log",
            "n/x.log",
            "n/y.log",
            "top.txt",
            "n/top.txt",
            "builds/f",
            "builds",
            "docs/x.md",
            "docs/a/b/x.md",
        ),
        *(
            "a/b",
            "a",
            "q/deep/y",
            "deep/y",
            "foo1.txt",
            "foox.txt",
            "#hash",
            "space end",
            "sub/only/z",
            "n/sub/only",
            "n/own",
        ),
        *("own", "docs/y.md", "n/foo2.txt", "log"),
        *("m/aXbYab", "m/abba", "m/ab", "m/b/ab", "p/q/r/q/s", "p/x/q/y/q/z/s", "p/q/s", "p/q/x"),
    ]
    git = ["git", "-c", "core.excludesFile=/dev/null"]
    subprocess.run([*git, "init", "-q", str(tmp_path)], check=True)
    asked = subprocess.run(
        [*git, "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin"],
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=False,
    )
    theirs = {line.strip('"') for line in asked.stdout.splitlines()}
    assert {name for name in names if ignored(tmp_path, PurePosixPath(name))} == theirs


@pytest.mark.parametrize("rule", ["*a" * 20 + "b", "**/a/" * 20 + "b"])
def test_a_rule_with_many_wildcards_is_judged_at_once(tmp_path: Path, rule: str) -> None:
    """Tried in every way, this takes longer than anybody waits, and nothing interrupts it."""
    (tmp_path / ".gitignore").write_text(rule)
    for name in ("a" * 200, "a/" * 38 + "a"):
        assert not ignored(tmp_path, PurePosixPath(name))
    assert ignored(tmp_path, PurePosixPath("a" * 30 + "b" if "/" not in rule else "a/" * 30 + "b"))


async def test_a_workspace_whose_name_is_no_utf_8_is_edited(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"w\xff")
    root.mkdir()
    (root / "a.txt").write_bytes(OLD["a.txt"])
    edits = editor(root)
    await edits.apply(await edits.preview("a.txt\n<<<<<<< SEARCH\none\n=======\n1\n>>>>>>> REPLACE\n"))
    assert contents(root) == {"a.txt": NEW["a.txt"]}
    await edits.undo()
    assert contents(root) == {"a.txt": OLD["a.txt"]}


async def test_a_file_that_changed_after_the_preview_is_not_overwritten(root: Path) -> None:
    edits = editor(root)
    proposed = await edits.preview(BOTH)
    (root / "a.txt").write_bytes(b"one, and mine\n")
    with pytest.raises(EditError, match=r"a\.txt was changed since the preview"):
        await edits.apply(proposed)
    (root / "a.txt").write_bytes(OLD["a.txt"])
    (root / "sub").mkdir()
    (root / "sub" / "new").symlink_to(root.parent)
    with pytest.raises(EditError, match="is a link"):
        await edits.apply(proposed)
    (root / "sub" / "new").unlink()
    (root / "sub").rmdir()
    assert contents(root) == OLD


async def test_no_folder_is_made_beyond_a_link(root: Path) -> None:
    """A folder became a link after the preview: nothing appears where it leads, and the next edit is not held up."""
    (root / "sub").mkdir()
    outside = root.parent / "outside"
    outside.mkdir()
    edits = editor(root)
    proposed = await edits.preview("sub/new/deep/x.txt\n<<<<<<< SEARCH\n=======\nnew\n>>>>>>> REPLACE\n")
    (root / "sub").rmdir()
    (root / "sub").symlink_to(outside)
    with pytest.raises(EditError, match="is a link"):
        await edits.apply(proposed)
    assert list(outside.iterdir()) == []
    await edits.apply(await edits.preview("a.txt\n<<<<<<< SEARCH\none\n=======\n1\n>>>>>>> REPLACE\n"))
    assert (root / "a.txt").read_bytes() == NEW["a.txt"]


@pytest.mark.parametrize("now", ["link", "folder", "read-only"])
async def test_an_undo_that_cannot_be_whole_changes_nothing_and_is_in_nobodys_way(root: Path, now: str) -> None:
    edits = editor(root)
    await edits.apply(await edits.preview(BOTH))
    new = root / "sub" / "new" / "c.txt"
    if now == "read-only":
        new.chmod(0o444)
    else:
        new.unlink()
        (root / "same.txt").write_bytes(NEW["sub/new/c.txt"])
        new.symlink_to(root / "same.txt") if now == "link" else new.mkdir()
    for force in (False, True):
        with pytest.raises(EditError, match=r"sub/new/c\.txt"):
            await edits.undo(force=force)
        assert (root / "a.txt").read_bytes() == NEW["a.txt"]
    await edits.apply(await edits.preview("a.txt\n<<<<<<< SEARCH\n1\n=======\n2\n>>>>>>> REPLACE\n"))
    await edits.undo()
    assert (root / "a.txt").read_bytes() == NEW["a.txt"]


async def test_what_became_a_link_after_a_kill_is_left_alone(root: Path) -> None:
    """What was half written is put back as far as it goes, and told of; the link and what it leads to stay."""
    edits = editor(root)
    await edits.apply(await edits.preview(BOTH))
    (entry,) = (root.parent / "data").rglob("entry.json")
    entry.write_text(entry.read_text().replace('"applied"', '"writing"'))  # as a kill leaves it
    (root / "mine.txt").write_bytes(b"mine")
    (root / "a.txt").unlink()
    (root / "a.txt").symlink_to(root / "mine.txt")
    (told,) = await edits.recover()
    assert told.endswith("left alone: a.txt")
    assert (root / "mine.txt").read_bytes() == b"mine"
    assert (root / "a.txt").is_symlink()
    assert (root / "b.txt").read_bytes() == OLD["b.txt"]
    assert not (root / "sub").exists()


@pytest.mark.parametrize(
    "damage", ["old bytes changed", "old bytes gone", "path", "folder", "token", "number", "a file", "no json"]
)
async def test_a_damaged_journal_is_told_of_and_writes_nothing(root: Path, damage: str) -> None:
    edits = editor(root)
    await edits.apply(await edits.preview(BOTH))
    outside = root.parent / "outside.txt"
    outside.write_bytes(NEW["a.txt"])
    (entry,) = (root.parent / "data").rglob("entry.json")
    text = entry.read_text()
    match damage:
        case "old bytes changed":
            (entry.parent / "0.before").write_bytes(b"evil")
        case "old bytes gone":
            (entry.parent / "0.before").unlink()
        case "path":
            entry.write_text(text.replace('"a.txt"', '"../outside.txt"'))
        case "folder":
            entry.write_text(text.replace('"sub/new"]', '"../x"]'))
        case "token":
            entry.write_text(text.replace('"token":"', '"token":"/../'))
        case "number":
            entry.write_text(text.replace('"number":1', '"number":7'))
        case "no json":
            entry.write_text(text[:50])
    if damage == "a file":
        (entry.parent.parent / "00000009").write_text("x")
        await edits.undo()
        assert contents(root) == OLD
        return
    for _ in range(2):
        with pytest.raises(StorageError, match="is damaged"):
            await edits.undo()
    assert contents(root) == NEW
    assert outside.read_bytes() == NEW["a.txt"]
    if damage.startswith("old"):  # what is complete is in nobody's way
        await edits.apply(await edits.preview("a.txt\n<<<<<<< SEARCH\n1\n=======\n2\n>>>>>>> REPLACE\n"))


@pytest.mark.parametrize(
    "name", ["c:d.txt", "con.txt", "back\\slash.txt", "V1~2.TXT", "dot.", ".git2/x", "node_modules/x.js"]
)
def test_what_a_tried_rename_may_touch_is_put_back_whatever_it_is_called(root: Path, name: str) -> None:
    """Serena writes also where edits must not: when it is killed there, the next one who looks puts it back."""
    file = root / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"old")
    journal = Journal(journal_folder(root.parent / "data", "local", root), root)
    with journal.locked():
        journal.begin([FileChange(name, b"old", b"old", 0o644)], renames=("old", "new"))
        file.write_bytes(b"new")
        assert len(journal.recover()) == 1
    assert file.read_bytes() == b"old"


async def test_a_file_in_an_encoding_that_refuses_its_own_text_is_edited_as_bytes(root: Path) -> None:
    (root / "x.py").write_bytes(b"# coding: idna\na = 1\n# " + b"x" * 100 + b"\xff\n")
    edits = editor(root)
    await edits.apply(
        await edits.preview("x.py\n<<<<<<< SEARCH\na = 1\n=======\na = 2\n>>>>>>> REPLACE\n"), doubtful=True
    )
    assert (root / "x.py").read_bytes() == b"# coding: idna\na = 2\n# " + b"x" * 100 + b"\xff\n"


class _Meddles:
    """An audit log that has somebody else save a file between the last look of the preview and the writing."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def edit(self, phase: str, *_: object, **__: object) -> None:
        if phase == "start":
            self.file.write_bytes(b"mine\n")


async def test_a_file_that_is_saved_while_others_are_written_is_left_alone(root: Path) -> None:
    edits = editor(root, audit=_Meddles(root / "b.txt"))
    with pytest.raises(EditError, match=r"b\.txt was changed meanwhile"):
        await edits.apply(await edits.preview(BOTH))
    assert contents(root) == OLD | {"b.txt": b"mine\n"}


async def test_a_file_that_is_saved_before_it_is_put_back_is_left_alone_and_named(root: Path) -> None:
    async def check(paths: Sequence[str]) -> dict[str, list[Issue]]:
        if not (root / "b.txt").exists():
            (root / "a.txt").write_bytes(b"mine\n")
            return {"a.txt": [Issue(1, "bad")]}
        return {"a.txt": []}

    edits = editor(root, check=check)
    with pytest.raises(EditError, match=r"left alone: a\.txt"):
        await edits.apply(await edits.preview(BOTH))
    assert contents(root) == OLD | {"a.txt": b"mine\n"}


async def test_undo_leaves_alone_what_was_changed_since(root: Path) -> None:
    edits = editor(root)
    await edits.apply(await edits.preview(BOTH))
    (root / "a.txt").write_bytes(b"mine\n")
    with pytest.raises(EditError, match=r"changed since the edit of .*: a\.txt"):
        await edits.undo()
    assert contents(root) == NEW | {"a.txt": b"mine\n"}
    await edits.undo(force=True)
    assert contents(root) == OLD


async def test_new_errors_have_it_put_back(root: Path) -> None:
    seen: list[Sequence[str]] = []

    async def check(paths: Sequence[str]) -> dict[str, list[Issue]]:
        seen.append(paths)
        found = [Issue(1, "old trouble")]
        return {"a.txt": found + [Issue(2, "one is gone")] * (b"one" not in (root / "a.txt").read_bytes())}

    edits = editor(root, check=check)
    proposed = await edits.preview(BOTH)
    with pytest.raises(EditError, match=r"adds 1 error: a\.txt:2: one is gone"):
        await edits.apply(proposed)
    assert contents(root) == OLD
    assert not (root / "sub").exists()
    assert seen == [["a.txt", "b.txt"], ["a.txt", "sub/new/c.txt"]]
    kept = await edits.apply(proposed, despite_errors=True)
    assert kept.issues == ("a.txt:2: one is gone",)
    assert contents(root) == NEW


async def test_a_cancelled_check_has_it_put_back(root: Path) -> None:
    begun = asyncio.Event()

    async def check(paths: Sequence[str]) -> dict[str, list[Issue]]:
        if (root / "sub").exists():
            begun.set()
            await asyncio.Event().wait()
        return {}

    edits = editor(root, check=check)
    task = asyncio.create_task(edits.apply(await edits.preview(BOTH)))
    await begun.wait()
    with pytest.raises(EditError, match="another process changes files"):
        await editor(root).undo()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert contents(root) == OLD


async def test_the_audit_log_has_paths_and_hashes_and_no_content(root: Path) -> None:
    audit = audit_of(root)
    edits = editor(root, audit=audit)
    await edits.apply(await edits.preview(BOTH))
    await edits.undo()
    audit.close()
    log = root.parent / "audit.log"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(x["event_type"], x["phase"], x["success"]) for x in lines] == [
        *(("edit", "start", None), ("edit", "end", True), ("edit", "start", None), ("edit", "end", True))
    ]
    first, gone = lines[0]["files"][0], lines[0]["files"][2]
    assert first["path"] == "a.txt"
    assert (len(first["before"]), len(first["after"]), gone["after"]) == (64, 64, None)
    assert (lines[2]["files"][0]["before"], lines[2]["files"][0]["after"]) == (first["after"], first["before"])
    assert "rest" not in log.read_text()
    assert verify(log).ok


class _Full:
    """An audit log on a full disk: from the n-th record on nothing is written."""

    def __init__(self, left: int) -> None:
        self.left = left

    def edit(self, *_: object, **__: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise AuditError("the disk is full")


@pytest.mark.parametrize("left", [0, 1])
async def test_what_cannot_be_audited_is_not_done(root: Path, left: int) -> None:
    edits = editor(root, audit=_Full(left))
    with pytest.raises(AuditError):
        await edits.apply(await edits.preview(BOTH))
    assert contents(root) == OLD


async def test_the_journal_is_bounded_private_and_told_when_it_cannot_be_used(root: Path) -> None:
    edits = editor(root)
    for n in range(MOST_KEPT + 5):
        old = (root / "a.txt").read_text().split("\n")[0]
        await edits.apply(await edits.preview(f"a.txt\n<<<<<<< SEARCH\n{old}\n=======\nline {n}\n>>>>>>> REPLACE\n"))
    entries = list((root.parent / "data").rglob("entry.json"))
    assert len(entries) == MOST_KEPT
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root.parent / "data").rglob("*.*")} == {0o600}
    for _ in range(MOST_KEPT):
        await edits.undo()
    assert (root / "a.txt").read_text() == "line 4\nrest\n"
    blocked = root.parent / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="journal of edits"):
        await Editor(root, blocked, audit=None).apply(await edits.preview(BOTH.replace("\none\n", "\nline 4\n")))


# A child that kills itself at its n-th call into the system: the next one who comes puts everything back. One process
# forks them all, since an interpreter takes a second to start.

KILLS = """
import asyncio, json, os, shutil, signal, sys
from pathlib import Path
from turnout.code.apply import Editor
root, data, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
answer = sys.stdin.read()
old = {path.name: path.read_bytes() for path in root.iterdir()}

def counted(call, step, count=[0]):
    def wrapped(*args, **named):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **named)
    return wrapped

async def apply():
    editor = Editor(root, data, audit=None)
    await editor.apply(await editor.preview(answer))

async def work(step):
    editor = Editor(root, data, audit=None)
    proposed = await editor.preview(answer) if what == "apply" else None
    for name in ("open", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "fchmod"):
        setattr(os, name, counted(getattr(os, name), step))
    await (editor.apply(proposed) if what == "apply" else editor.undo())

async def recover():
    return await Editor(root, data, audit=None).recover()

def look():
    return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*") if p.is_file()}

code = step = 1
while code:
    for path in (root, data):
        shutil.rmtree(path, ignore_errors=True)
    root.mkdir()
    for name, content in old.items():
        (root / name).write_bytes(content)
    if what == "undo":
        asyncio.run(apply())
    pid = os.fork()
    if not pid:
        asyncio.run(work(step))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    half = look()
    told = asyncio.run(recover())
    print(json.dumps([code, half, look(), told, (root / "sub").exists()]))
    step += 1
"""


@pytest.mark.parametrize("what", ["apply", "undo"])
def test_a_kill_at_any_step_leaves_all_or_nothing_at_the_next_start(root: Path, what: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLS, str(root), str(root.parent / "data"), what]
    done = subprocess.run(command, input=BOTH, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    old, new = ({name: data.decode() for name, data in some.items()} for some in (OLD, NEW))
    begin, end = (old, new) if what == "apply" else (new, old)
    assert [code for code, *_ in steps] == [*([-signal.SIGKILL] * (len(steps) - 1)), 0]
    assert len(steps) > 15, "it was killed at every step of its work"
    assert any(half not in (old, new) for _, half, *_ in steps), "also when half was written"
    for _, half, found, told, folder in steps:
        assert found in (begin, end)
        assert folder == (found == new)
        assert told or half == found or set(half) - set(old) - set(new), "what was put back is told"
    assert steps[-1][2] == end


class _Knows:
    """An intelligence of one file: it finds ``total`` and renames it. Omitted: everything else that one is asked."""

    name = "fake"
    abilities = frozenset((Ability.FIND_SYMBOL, Ability.RENAME, Ability.DIAGNOSTICS))

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        return (CodeSymbol(name, "function", Place(path, 0, 0, 1, 12)),) if name == "total" else ()

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        assert position == Position(0, 4)
        return (
            TextEdit(Place(path, 0, 4, 0, 9), new_name),
            TextEdit(Place("use.py", 0, 6, 0, 11), new_name),  # counted in UTF-16
        )

    async def diagnostics(self, path: str) -> tuple[Diagnostic, ...]:
        return (Diagnostic(Place(path, 3), "bad"), Diagnostic(Place(path, 4), "meh", 2))


async def test_a_symbol_is_renamed_everywhere_in_one_set(root: Path) -> None:
    (root / "m.py").write_text("def total():\n    return 1\n")
    (root / "use.py").write_text("'\U0001f600'; total()\n")
    knows: Intelligence = _Knows()  # type: ignore[assignment]
    edits = editor(root, intelligence=knows)
    proposed = await edits.preview("Rename symbol `total` to `whole` in `m.py`\n")
    assert proposed.problems == ()
    await edits.apply(proposed)
    assert (root / "m.py").read_text() == "def whole():\n    return 1\n"
    assert (root / "use.py").read_text() == "'\U0001f600'; whole()\n"
    for new, reason in (("not", "a word of the language"), ("1x", "no name of a symbol"), ("a-b", "no name")):
        shown = await edits.preview(f"Rename symbol `total` to `{new}` in `m.py`\n")
        assert [reason in problem.reason for problem in shown.problems] == [True]
    alone = await editor(root).preview("Rename symbol `whole` to `total` in `m.py`\n")
    assert "needs a language server" in alone.problems[0].reason
    assert await issues_of(knows, ["m.py"]) == {"m.py": (Issue(4, "bad"),)}


async def test_a_file_that_cannot_be_judged_both_times_is_kept_and_told(root: Path) -> None:
    async def judged_before(paths: Sequence[str]) -> dict[str, list[Issue]]:
        return {} if "sub/new/c.txt" in paths else {"a.txt": []}

    async def judged_after(paths: Sequence[str]) -> dict[str, list[Issue]]:
        return {"a.txt": [Issue(1, "old trouble")]} if "sub/new/c.txt" in paths else {}

    edits = editor(root, check=judged_before)
    outcome = await edits.apply(await edits.preview(BOTH))
    assert outcome.notes == ("nobody could say in time whether there are new errors in a.txt",)
    await edits.undo()
    edits = editor(root, check=judged_after)
    outcome = await edits.apply(await edits.preview(BOTH))
    assert (outcome.issues, outcome.notes) == ((), ())
