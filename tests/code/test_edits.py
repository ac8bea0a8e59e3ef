"""What is an edit in an answer, and what is not (SPEC CODE-4). The answers are ours, in the manner of real models."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.code.edits import HOW_TO_WRITE, parse_edits
from turnout.code.preview import Preview, preview
from turnout.code.proposal import Gone, Hunks, Moved, NewBody, NewName, ProposedEdit, Whole

GIT_DIFF = (
    "```patch\ndiff --git a/app.py b/app.py\nindex 1234567..89abcde 100644\n--- a/app.py\n+++ b/app.py\n"
    "@@ -2,4 +2,4 @@ import os\n\n\ndef one():\n-    return 1\n+    return 10\n```"
)
PATCH = "*** Begin Patch\n*** Update File: app.py\n def one():\n-    return 1\n+    return 10\n*** End Patch"
OLD = "import os\n\n\ndef one():\n    return 1\n\n\ndef two():\n    return 2\n"


def edits(answer: str) -> list[tuple[str, type]]:
    return [(edit.path, type(edit.change)) for edit in parse_edits(answer).edits]


def doubts(answer: str) -> list[str]:
    proposal = parse_edits(answer)
    assert proposal.edits == ()
    return [unclear.reason for unclear in proposal.unclear]


def after(tmp_path: Path, answer: str, files: dict[str, str | bytes] | None = None) -> dict[str, bytes | None]:
    """What the files would hold; an edit that cannot be carried out fails the test."""
    shown = looked(tmp_path, answer, files)
    assert shown.problems == ()
    assert shown.unclear == ()
    return {change.path: change.after for change in shown.changes}


def looked(tmp_path: Path, answer: str, files: dict[str, str | bytes] | None = None) -> Preview:
    for name, content in (files or {"app.py": OLD}).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    proposal = parse_edits(answer)
    return preview(tmp_path.resolve(), proposal.edits, proposal.unclear)


def block(old: str, new: str, *, path: str = "app.py", fence: str = "```") -> str:
    return f"{path}\n{fence}python\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n{fence}\n"


@pytest.mark.parametrize(
    "answer",
    [
        "You could write it like this:\n\n```python\ndef add(a, b):\n    return a + b\n```\n",
        "In `app.py` there is a loop. For example:\n```python\nfor x in y: print(x)\n```\n",
        "As in `app.py`, a class looks like so:\n\n```python\nclass A: ...\n```",
        "### Node.js\n```js\nconsole.log(1)\n```\n",
        "Run it:\n\n`app.py`\n```bash\npython app.py\n```\n",
        "This is what is there now:\n```12:15:src/app.py\ndef f():\n    pass\n```\n",
        "```python:app.py:10-12\ndef f(): ...\n```\n",
        "A merge conflict looks like this:\n```\n<<<<<<< HEAD\na\n=======\nb\n>>>>>>> main\n```\n",
        "The time is 3:14, e.g.:\n\n---\n\n+++ more\n",
        "def main():\n    print('no fence at all')\n",
        "",
    ],
)
def test_an_example_is_no_edit(answer: str) -> None:
    proposal = parse_edits(answer)
    assert (proposal.edits, proposal.unclear) == ((), ())


@pytest.mark.parametrize(
    "answer",
    [
        block("    return 1\n", "    return 10\n"),
        block("    return 1\n", "    return 10\n", fence="~~~~"),
        block("    return 1\n", "    return 10\n", path="**`app.py`**"),
        block("    return 1\n", "    return 10\n", path="### 1. Update `app.py`"),
        block("    return 1\n", "    return 10\n", path="In `app.py`, change the first function:\n"),
        block("    return 1\n", "    return 10\n").replace("\n", "\r\n"),
        "```python app.py\n<<<<<<< SEARCH\n    return 1\n=======\n    return 10\n>>>>>>> REPLACE\n```",
        "```\napp.py\n<<<<<<< SEARCH\n    return 1\n=======\n    return 10\n>>>>>>> REPLACE\n```",
        "app.py\n<<<<<<< SEARCH\n    return 1\n=======\n    return 10\n>>>>>>> REPLACE\n",
        "<<<<<<< SEARCH app.py\n    return 1\n=======\n    return 10\n>>>>>>> REPLACE\n",
        "app.py\n------- SEARCH\n    return 1\n=======\n    return 10\n+++++++ REPLACE\n",
        "app.py\n<<<<<<< ORIGINAL\n    return 1\n=======\n    return 10\n>>>>>>> UPDATED\n",
        "app.py\n<<<<<<< SEARCH\n:start_line:5\n-------\n    return 1\n=======\n    return 10\n>>>>>>> REPLACE\n",
        "- app.py\n  ```\n  <<<<<<< SEARCH\n      return 1\n  =======\n      return 10\n  >>>>>>> REPLACE\n  ```",
        "app.py\n```\n<<<<<<< SEARCH\nreturn 1\n=======\nreturn 10\n>>>>>>> REPLACE\n```",
        "app.py\n```\n<<<<<<< SEARCH\n    return 1   \n=======\n    return 10\n>>>>>>> REPLACE\n```",
        "```diff\n--- a/app.py\n+++ b/app.py\n@@ -4,2 +4,2 @@\n def one():\n-    return 1\n+    return 10\n```",
        "--- app.py\t2026-01-01\n+++ app.py\t2026\n@@ -4,2 +4,2 @@\n def one():\n-    return 1\n+    return 10\n\nSo.",
        "```diff\n--- a/app.py\n+++ b/app.py\n@@ -40,7 +90,1 @@\n def one():\n-    return 1\n+    return 10\n```",
        "```diff\n--- a/app.py\n+++ b/app.py\n@@ ... @@\n def one():\n-    return 1\n+    return 10\n```",
        "```diff\n--- a/app.py\n+++ b/app.py\n def one():\n-    return 1\n+    return 10\n```",
        "`app.py`\n```diff\n def one():\n-    return 1\n+    return 10\n```",
        GIT_DIFF,
        "*** Begin Patch\n*** Update File: app.py\n@@ def one():\n-    return 1\n+    return 10\n*** End Patch",
        f"```\n{PATCH}\n```",
        f"app.py\n```python\n{OLD.replace('return 1', 'return 10')}```",
        f"### `app.py`\n\n```python\n{OLD.replace('return 1', 'return 10')}```",
        f"File: app.py\n```python\n{OLD.replace('return 1', 'return 10')}```",
        f"**app.py** (updated)\n```python\n{OLD.replace('return 1', 'return 10')}```",
        f"```python:app.py\n{OLD.replace('return 1', 'return 10')}```",
        f'```python title="app.py"\n{OLD.replace("return 1", "return 10")}```',
        "Replace function `one` in `app.py`:\n```python\ndef one():\n    return 10\n```",
        "### Replace symbol one in app.py\n\n```python\ndef one():\n    return 10\n```",
    ],
)
def test_every_form_changes_the_same_line(tmp_path: Path, answer: str) -> None:
    assert after(tmp_path, answer) == {"app.py": OLD.replace("return 1", "return 10").encode()}


def test_what_the_model_is_told_to_write_is_understood() -> None:
    answer = HOW_TO_WRITE.partition("\n\n")[2]
    assert edits(answer) == [("path/to/file.py", Hunks)]


def test_several_files_are_made_changed_moved_and_deleted() -> None:
    answer = (
        "diff --git a/a.py b/b.py\nsimilarity index 100%\nrename from a.py\nrename to b.py\n"
        "diff --git a/new.txt b/new.txt\nnew file mode 100644\n--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+x\n"
        "\\ No newline at end of file\n"
        "diff --git a/gone.txt b/gone.txt\ndeleted file mode 100644\n--- a/gone.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
        "\nand\n\n*** Begin Patch\n*** Add File: c.py\n+y\n*** Delete File: d.py\n*** Update File: e.py\n"
        "*** Move to: f.py\n@@\n-1\n+2\n*** End of File\n*** End Patch\n"
        "\nRename symbol `total` to `sum_of` in `shop/order.py`.\n"
    )
    found = parse_edits(answer)
    assert found.unclear == ()
    assert edits(answer) == [
        *(("a.py", Moved), ("new.txt", Whole), ("gone.txt", Gone), ("c.py", Whole), ("d.py", Gone), ("e.py", Moved)),
        ("shop/order.py", NewName),
    ]
    assert found.edits[1].change == Whole("x", new=True)
    assert found.edits[6].change == NewName("total", "sum_of")


def test_fences_in_fences() -> None:
    text = "# How to\n\n```python\nprint(1)\n```\n\nDone.\n"
    for answer in (f"README.md\n````markdown\n{text}````", f"README.md\n```markdown\n{text}```"):
        (edit,) = parse_edits(answer).edits
        assert edit.change == Whole(text)
    (edit,) = parse_edits(block("```sh\nmake\n```\n", "```sh\nmake test\n```\n", path="README.md")).edits
    assert isinstance(edit.change, Hunks)
    assert edit.change.hunks[0].before == ("```sh", "make", "```")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("app.py\n```\n<<<<<<< SEARCH\na\n=======\nb\n", "not finished"),
        ("app.py\n<<<<<<< SEARCH\na\n<<<<<<< SEARCH\n", "no end before the next"),
        ("app.py\n<<<<<<< SEARCH\na\n>>>>>>> REPLACE\n", "no line `=======`"),
        ("app.py\n<<<<<<< SEARCH\na\n=======\nb\n=======\nc\n>>>>>>> REPLACE\n", "several lines `=======`"),
        ("app.py\n<<<<<<< SEARCH\na\n=======\na\n>>>>>>> REPLACE\n", "changes nothing"),
        ("<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n", "names no file"),
        ("app.py\n```python\nx = 1\n", "of app.py is not finished"),
        ("```diff\n--- a/app.py\n+++ b/app.py\n@@ -1 +1 @@\n-a\n", "not finished"),
        ("```diff\n-a\n+b\n```", "names no file"),
        ("*** Begin Patch\n*** Update File: a.py\n-a\n+b\n", "`*** End Patch` is missing"),
        ("*** Begin Patch\nhello\n*** End Patch\n", "belongs to no file"),
        ("diff --git a/x.png b/x.png\nBinary files a/x.png and b/x.png differ\n", "a binary file"),
        ("### app.py\n\nIt reads files:\n\n```python\nimport os\n```\n", "text stands between the heading app.py"),
    ],
)
def test_half_an_edit_is_none_and_the_reason_is_told(answer: str, reason: str) -> None:
    assert [reason in found for found in doubts(answer)][:1] == [True], doubts(answer)


@pytest.mark.parametrize(
    "old",
    [
        OLD.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + OLD.encode(),
        OLD.removesuffix("\n").encode(),
        OLD.encode("utf-16"),
        f"# coding: latin-1\n# \xe9\n{OLD}".encode("latin-1"),
        b"# \xff\xfe \x80 no text\n" + OLD.encode(),
        OLD.replace("\n\n", "\r\n\r\n", 1).encode(),
        OLD.replace("    return 1", "\treturn 1").encode(),
    ],
    ids=["CRLF", "BOM", "no last line break", "UTF-16", "Latin-1", "bytes", "mixed", "tabs"],
)
def test_what_is_not_edited_keeps_its_bytes(tmp_path: Path, old: bytes) -> None:
    text = old.decode("utf-16") if old[:2] in (b"\xff\xfe", b"\xfe\xff") else None
    wanted = text.replace("return 1", "return 10").encode("utf-16") if text else old.replace(b"return 1", b"return 10")
    for answer in (
        block("def one():\n    return 1\n", "def one():\n    return 10\n"),
        "```diff\n--- a/app.py\n+++ b/app.py\n@@ -4,2 +4,2 @@\n def one():\n-    return 1\n+    return 10\n```",
    ):
        assert after(tmp_path, answer, {"app.py": old}) == {"app.py": wanted}


def test_lines_that_are_found_twice_or_nowhere_are_refused(tmp_path: Path) -> None:
    twice = looked(
        tmp_path, block("    x = 1\n", "    x = 2\n"), {"app.py": "def a():\n    x = 1\ndef b():\n    x = 1\n"}
    )
    assert [p.reason for p in twice.problems] == [
        "the lines that it quotes are found 2 times, at lines 2, 4: more of them must be quoted"
    ]
    assert twice.changes == ()
    nowhere = looked(tmp_path, block("def one():\n    return 7\n", "x\n"))
    assert nowhere.problems[0].nearest[0] == "4: def one():"
    assert "seems to be done" in looked(tmp_path, block("    return 0\n", "    return 2\n")).problems[0].reason
    assert (
        "quoted" in looked(tmp_path, "```diff\n--- a/app.py\n+++ b/app.py\n@@ -1,0 +2 @@\n+x\n```").problems[0].reason
    )


def test_an_anchor_or_a_true_line_number_tells_equal_places_apart(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"app.py": "def a():\n    x = 1\n\n\ndef b():\n    x = 1\n"}
    wanted = {"app.py": b"def a():\n    x = 1\n\n\ndef b():\n    x = 2\n"}
    anchored = "*** Begin Patch\n*** Update File: app.py\n@@ def b():\n-    x = 1\n+    x = 2\n*** End Patch"
    assert after(tmp_path, anchored, files) == wanted
    numbered = "```diff\n--- a/app.py\n+++ b/app.py\n@@ -6 +6 @@\n-    x = 1\n+    x = 2\n```"
    assert after(tmp_path, numbered, files) == wanted
    at_end = anchored.replace(" def b():", "").replace("*** End Patch", "*** End of File\n*** End Patch")
    assert after(tmp_path, at_end, files) == wanted
    wrong = looked(tmp_path, numbered.replace("@@ -6 +6 @@", "@@ -3 +3 @@"), files)
    assert "found 2 times" in wrong.problems[0].reason


def test_a_method_is_replaced_by_its_name_at_its_indentation(tmp_path: Path) -> None:
    old = "class A:\n    @property\n    def total(self):\n        return 1\n\n"
    old += "class B:\n    def total(self):\n        return 2\n"
    new = 'def total(self):\n    """Sum.\n\n    Long."""\n    return """a\n  b"""\n'
    answer = f"Replace symbol `A.total` in `m.py`:\n```python\n{new}```"
    moved = '    def total(self):\n        """Sum.\n\n        Long."""\n        return """a\n  b"""\n'
    wanted = old.replace("    def total(self):\n        return 1\n", moved)
    assert after(tmp_path, answer, {"m.py": old}) == {"m.py": wanted.encode()}
    for wrong, reason in (
        (answer.replace("A.total", "total"), "defined 2 times"),
        (answer.replace("def total", "def t"), "alone"),
    ):
        assert reason in looked(tmp_path, wrong, {"m.py": old}).problems[0].reason


@pytest.mark.parametrize(
    ("new", "doubt"),
    [
        ("def one():\n    # ... existing code ...\n    return 10\n", "stands for code that is left out"),
        ("def one():\n    # rest of the function stays the same\n", "stands for code that is left out"),
        ("def one():\n    key = '[redacted]'\n", "a secret that the model was not shown"),
        ("def one(:\n    return 1\n", "it is no Python any more: line 4"),
    ],
)
def test_what_is_doubtful_is_said(tmp_path: Path, new: str, doubt: str) -> None:
    shown = looked(tmp_path, block("def one():\n    return 1\n", new))
    assert doubt in shown.changes[0].doubts[0]


def test_a_part_of_a_file_is_not_taken_for_the_whole_unseen(tmp_path: Path) -> None:
    old = "".join(f"x{n} = {n}\n" for n in range(40))
    shown = looked(tmp_path, "app.py\n```python\nx3 = 4\n```", {"app.py": old})
    assert "40 of its 40 lines of text would go" in shown.changes[0].doubts[0]
    shown = looked(tmp_path, "app.py\n```python\n\nx3 = 4\n```", {"app.py": old.replace("\n", "\n\n")})
    assert "40 of its 40 lines of text would go" in shown.changes[0].doubts[0], "a blank line is no line that stays"
    stub = looked(tmp_path, "a.pyi\n```python\ndef f() -> int:\n    ...\n```")
    assert stub.changes[0].doubts == ()


# Round trips: a random file and a random edit, written in each form.

LINE = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12).filter(
    lambda line: (
        not line.lstrip().startswith(("<<<", "===", ">>>", "---", "+++", "```", "~~~", "***", "@@", "\\"))
        and not line.startswith(":start_line")
    )
)


@st.composite
def changes(draw: Any) -> tuple[list[str], int, int, list[str], str, bool]:
    """Lines, which of them are replaced and by what; each line is its own, so that every place is found once."""
    lines = [f"{n} {line}x" for n, line in enumerate(draw(st.lists(LINE, min_size=3, max_size=30)))]
    first = draw(st.integers(0, len(lines) - 1))
    last = draw(st.integers(first + 1, len(lines)))
    new = [f"{line}n" for line in draw(st.lists(LINE, max_size=6))]
    return lines, first, last, new, draw(st.sampled_from(("\n", "\r\n"))), draw(st.booleans())


def as_block(old: list[str], new: list[str], first: int, last: int, added: list[str]) -> str:
    return block("".join(f"{x}\n" for x in old[first:last]), "".join(f"{x}\n" for x in added), path="f.txt")


def as_diff(old: list[str], new: list[str], first: int, last: int, added: list[str]) -> str:
    body = "\n".join(difflib.unified_diff(old, new, "a/f.txt", "b/f.txt", lineterm="", n=3))
    return f"Here:\n\n```diff\n{body}\n```\n"


def as_loose_diff(old: list[str], new: list[str], first: int, last: int, added: list[str]) -> str:
    body = "\n".join(difflib.unified_diff(old, new, "f.txt", "f.txt", lineterm="", n=3))
    return f"Here:\n\n{body}\n\nThat is it.\n"


def as_patch(old: list[str], new: list[str], first: int, last: int, added: list[str]) -> str:
    body = [f" {x}" for x in old[max(0, first - 2) : first]] + [f"-{x}" for x in old[first:last]]
    body += [f"+{x}" for x in added] + [f" {x}" for x in old[last : last + 2]]
    return "\n".join(("*** Begin Patch", "*** Update File: f.txt", "@@", *body, "*** End Patch"))


@pytest.mark.parametrize("form", [as_block, as_diff, as_loose_diff, as_patch])
@settings(max_examples=150, deadline=None)
@given(change=changes())
def test_an_edit_in_any_form_gives_the_text_that_was_meant(
    tmp_path_factory: pytest.TempPathFactory,
    form: Callable[..., str],
    change: tuple[list[str], int, int, list[str], str, bool],
) -> None:
    lines, first, last, added, newline, ends = change
    new = [*lines[:first], *added, *lines[last:]]
    if new == lines:
        return
    old_bytes, new_bytes = ((newline.join(some) + (newline if ends and some else "")).encode() for some in (lines, new))
    folder = tmp_path_factory.mktemp("w")
    answer = form(lines, new, first, last, added)
    assert after(folder, answer, {"f.txt": old_bytes}) == {"f.txt": new_bytes}


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *("```", "```python", "~~~", "````md", "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "app.py", ""),
                *("--- a/x.py", "+++ b/x.py", "@@ -1 +1 @@", "-a", "+b", " c", "*** Begin Patch", "*** End Patch"),
                *(
                    "*** Update File: y.py",
                    "diff --git a/x b/x",
                    "rename from x",
                    "\\ No newline",
                    "### `z.py`",
                    "\x00",
                ),
                "*** Add File: ../q",
            ]
        ),
        max_size=25,
    )
)
def test_no_answer_breaks_the_reader(lines: list[str]) -> None:
    for edit in parse_edits("\n".join(lines)).edits:
        assert isinstance(edit, ProposedEdit)
        assert edit.path


@pytest.mark.parametrize(
    "line",
    ["```a\n", "<<<<<<< SEARCH\n", "*** Begin Patch\n", "diff --git a/x b/x\n", "--- a\n+++ b\n@@\n", "~~~\n\n",
     "`" * 90 + "\n", "- [ ] `a.b` " * 20 + "\n", "@@ -1 +1 @@\n", "*" * 300 + "\n"],
)  # fmt: skip
def test_the_work_grows_with_the_answer_and_no_faster(line: str) -> None:
    """Counted in steps of the interpreter, since a clock depends on who else works here."""

    def steps(answer: str) -> int:
        count = 0

        def see(_frame: object, _event: str, _arg: object) -> Any:
            nonlocal count
            count += 1
            return see

        before = sys.gettrace()
        sys.settrace(see)
        try:
            parse_edits(answer)
        finally:
            sys.settrace(before)
        return count

    small, large = steps(line * 200), steps(line * 800)
    assert large < 5 * small


@pytest.mark.parametrize("head", ["*** Update File: a", "*** Update File: a.py\n*** Move to: a"])
def test_a_model_that_falls_into_writing_blanks_costs_what_their_number_is(head: str) -> None:
    """Its answer is read on the event loop of a gateway; tried from each blank on, a megabyte takes half an hour."""
    answer = f"*** Begin Patch\n{head}{' ' * 1_000_000}b.py\n@@\n-a\n+b\n*** End Patch\n"
    assert len(parse_edits(answer).edits) == 1


def test_too_long_an_answer_is_refused_in_words() -> None:
    assert "the most is 4,000,000" in doubts("x" * 4_000_001)[0]
    assert "the most is 500" in doubts(block("a\n", "b\n") * 501)[0]


def test_a_definition_in_another_language_is_found_by_its_keyword(tmp_path: Path) -> None:
    old = "package x\n\nfunc A() int {\n\treturn 1\n}\n\nfunc B() int {\n\treturn 2\n}\n"
    answer = "Replace function `A` in `x.go`:\n```go\nfunc A() int {\n\treturn 3\n}\n```"
    assert parse_edits(answer).edits[0].change == NewBody("A", "func A() int {\n\treturn 3\n}")
    assert after(tmp_path, answer, {"x.go": old}) == {"x.go": old.replace("return 1", "return 3").encode()}


FENCED = "README.md\n```markdown\n# Title\n{inside}\nThe end\n```\nDone.\n"


@pytest.mark.parametrize("fence", ["```", "```sh"])
def test_a_text_with_fences_of_its_own_is_never_cut_off_at_one(fence: str) -> None:
    found = parse_edits(FENCED.format(inside=f"{fence}\nmake\n```"))
    if fence == "```":  # nobody can tell an inner fence without a language from the end
        assert found.edits == ()
        assert "README.md may go on after its fence" in found.unclear[0].reason
    else:
        assert found.edits[0].change == Whole("# Title\n```sh\nmake\n```\nThe end\n")


def test_a_text_before_a_block_of_code_is_whole() -> None:
    found = parse_edits(FENCED.format(inside="words") + "\n```python\nx = 1\n```\nand more\n")
    assert [edit.path for edit in found.edits] == ["README.md"]
    assert not found.unclear
