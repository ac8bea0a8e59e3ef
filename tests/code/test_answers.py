"""The corpus of answers (``answers.py``, ``answers_bad.py``): what each makes of a workspace, and of all around it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.code import answers, answers_bad
from tests.code.answers import WORKSPACE, Case
from turnout.code.apply import Editor
from turnout.errors import EditError

KINDS: Mapping[str, tuple[Case, ...]] = {
    "block": answers.BLOCKS,
    "diff": answers.DIFFS,
    "patch": answers.PATCHES,
    "whole": answers.WHOLES,
    "nothing": answers.NOTHING,
    "half": answers_bad.HALF,
    "wrong": answers_bad.WRONG,
    "huge": answers_bad.HUGE,
    "binary": answers_bad.BINARY,
    "hostile": answers_bad.HOSTILE,
    "mixed": answers_bad.MIXED,
    "plain": answers_bad.AS_PLAIN_FILES,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The workspace, with links out of it to a folder beside it."""
    outside, folder = tmp_path / "outside", tmp_path / "work"
    outside.mkdir()
    (outside / "target.py").write_bytes(b"target\n")
    for name, data in WORKSPACE.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (folder / "locked.txt").chmod(0o444)
    (folder / "link.py").symlink_to(outside / "target.py")
    (folder / "linked").symlink_to(outside)
    (folder / "loop").symlink_to("loop")
    return folder


def seen(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a folder but Turnout's own data: type and permissions, and content or where a link leads."""
    found: dict[str, tuple[int, bytes]] = {}
    for path in folder.rglob("*"):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if name.partition("/")[0] == "data" or stat.S_ISDIR(mode):
            continue
        found[name] = (mode, os.fsencode(path.readlink()) if stat.S_ISLNK(mode) else path.read_bytes())
    return found


def expected(before: Mapping[str, tuple[int, bytes]], case: Case) -> dict[str, tuple[int, bytes]]:
    """What is there after a case: its files as it says, with the permissions they had, and all else as it was."""
    wanted = dict(before)
    for path, data in case.files.items():
        old = wanted.pop(f"work/{path}", None)
        if data is not None:
            wanted[f"work/{path}"] = (old or before["work/app.py"])[0], data
    return wanted


def cases() -> list[object]:
    """Every case as a parameter of the test."""
    return [pytest.param(case, id=f"{kind}: {case.name}") for kind, some in KINDS.items() for case in some]


@pytest.mark.parametrize("case", cases())
async def test_an_answer_of_the_corpus_does_what_is_written_of_it_and_nothing_else(root: Path, case: Case) -> None:
    before = seen(root.parent)
    editor = Editor(root, root.parent / "data", audit=None)
    proposed = await editor.preview(case.answer.replace("@OUTSIDE@", str(root.parent / "outside")))
    assert seen(root.parent) == before, "a preview writes nothing"
    if case.files:
        await editor.apply(proposed)
    else:
        assert proposed.empty == (not case.refused), (proposed.problems, proposed.unclear)
        with pytest.raises(EditError) as refused:
            await editor.apply(proposed)
        assert (case.refused or "proposes nothing") in str(refused.value)
    assert seen(root.parent) == expected(before, case)


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    written = [case for kind, some in KINDS.items() if kind != "hostile" for case in some]
    assert len(written) >= 130
    names = [(kind, case.name) for kind, some in KINDS.items() for case in some]
    assert len(set(names)) == len(names)
