"""A corpus of answers in the manner of models, and what becomes of each (issue 7): the good ones, and what is no edit.

The texts are ours. ``answers_bad.py`` has the malformed and the hostile ones; ``test_answers.py`` applies them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Case:
    """One answer and its outcome.

    Attributes:
        name: of the case, unique.
        answer: its text. ``@OUTSIDE@`` stands for the absolute path of a folder beside the workspace.
        files: the whole content of each file that it changes, None for one that is gone. Empty, with no ``refused``:
            nothing is proposed.
        refused: a part of the reason why nothing is written.
    """

    name: str
    answer: str
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    refused: str = ""


APP = "import os\n\n\ndef one():\n    return 1\n\n\ndef two():\n    return 2\n"
TWICE = "def a():\n    x = 1\n    return x\n\n\ndef b():\n    x = 1\n    return x\n"
ORDER = 'class Order:\n    """An order."""\n\n    def total(self):\n        return sum(self.lines)\n'
GUIDE = "# Guide\n\nRun it:\n\n```sh\nmake\n```\n\nDone.\n"
GO = "package main\n\nfunc main() {\n\tif true {\n\t\tprintln(1)\n\t}\n}\n"
LONG = "".join(f"value_{n} = {n}\n" for n in range(40))
CONFLICT = "title\n=======\ntext\n"
WIDE = "gr\u00f6\u00dfe = 1\nend = 2\n"
LEGACY = "# coding: latin-1\nname = 'caf\u00e9'\nsize = 1\n"
SQL = "SELECT 1;\n-- old comment\nSELECT 2;\n"

WORKSPACE: dict[str, bytes] = {
    "app.py": APP.encode(),
    "twice.py": TWICE.encode(),
    "shop/order.py": ORDER.encode(),
    "docs/guide.md": GUIDE.encode(),
    "main.go": GO.encode(),
    "long.py": LONG.encode(),
    "windows.txt": b"alpha\r\nbeta\r\ngamma\r\n",
    "mixed.txt": b"alpha\r\nbeta\ngamma\n",
    "bare.txt": b"first\nlast",
    "marked.txt": b"\xef\xbb\xbfone\ntwo\n",
    "wide.txt": WIDE.encode("utf-16"),
    "legacy.py": LEGACY.encode("latin-1"),
    "conflict.txt": CONFLICT.encode(),
    "query.sql": SQL.encode(),
    "empty.txt": b"",
    "Makefile": b"all:\n\techo hi\n",
    "logo.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "large.txt": b"x" * 1_000_001,
    "locked.txt": b"locked\n",
    ".env": b"TOKEN=abc\n",
    ".git/config": b"[core]\n",
    ".git/hooks/pre-commit": b"#!/bin/sh\n",
    ".gitignore": b"ignored/\n*.tmp\n",
    "ignored/x.py": b"x = 1\n",
    "node_modules/lib.js": b"x\n",
}
"""Besides these a file is made read-only, and there are links, a folder's and a file's, that lead out of it."""

APP_10 = {"app.py": APP.replace("return 1", "return 10").encode()}


def block(path: str, old: str, new: str) -> str:
    """A search/replace block as Turnout's own instruction asks for it."""
    return f"{path}\n```\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n```\n"


def diff(path: str, body: str) -> str:
    """A file's diff in a fence."""
    return f"```diff\n--- a/{path}\n+++ b/{path}\n{body}```\n"


def patch(body: str) -> str:
    """A patch envelope."""
    return f"*** Begin Patch\n{body}*** End Patch\n"


ONE, TEN = "    return 1\n", "    return 10\n"
HUNK = "@@ -4,2 +4,2 @@\n def one():\n-    return 1\n+    return 10\n"
NEW_FILE = "--- /dev/null\n+++ b/{}\n@@ -0,0 +1 @@\n+x = 1\n"

BLOCKS = (
    Case("a block and nothing else", block("app.py", ONE, TEN), APP_10),
    Case(
        "prose around a block",
        f"Sure! The bug is in `one`. I change it:\n\n{block('app.py', ONE, TEN)}\nThis fixes it. Anything else?\n",
        APP_10,
    ),
    Case("an answer with CRLF", block("app.py", ONE, TEN).replace("\n", "\r\n"), APP_10),
    Case("a byte order mark first", "\ufeff" + block("app.py", ONE, TEN), APP_10),
    Case("no line break at the end", block("app.py", ONE, TEN).removesuffix("\n"), APP_10),
    Case("the path in bold", block("**app.py**", ONE, TEN), APP_10),
    Case("the path in a heading", block("### `app.py`", ONE, TEN), APP_10),
    Case("the path in a sentence", block("In `app.py` I return ten instead:", ONE, TEN), APP_10),
    Case("the path with ./", block("./app.py", ONE, TEN), APP_10),
    Case("the path in a numbered list", block("1. app.py", ONE, TEN), APP_10),
    Case("the path on the marker", f"<<<<<<< SEARCH app.py\n{ONE}=======\n{TEN}>>>>>>> REPLACE\n", APP_10),
    Case("a fence without its end", block("app.py", ONE, TEN).removesuffix("```\n"), APP_10),
    Case("short markers", f"app.py\n<<<<< SEARCH\n{ONE}=====\n{TEN}>>>>> REPLACE\n", APP_10),
    Case("markers of dashes", f"app.py\n------- SEARCH\n{ONE}=======\n{TEN}+++++++ REPLACE\n", APP_10),
    Case("a line number in the block", block("app.py", f":start_line:5\n-------\n{ONE}", TEN), APP_10),
    Case("indented in a list", "- app.py\n  " + "  ".join(block("", ONE, TEN).splitlines(keepends=True)[1:]), APP_10),
    Case("quoted at another indentation", block("app.py", "return 1\n", "return 10\n"), APP_10),
    Case("blanks at the end of a quoted line", block("app.py", "    return 1  \n", TEN), APP_10),
    Case("tildes as a fence", block("app.py", ONE, TEN).replace("```", "~~~"), APP_10),
    Case(
        "two blocks of a file that is named once",
        block("app.py", ONE, TEN) + "\nand\n\n" + block("", "    return 2\n", "    return 20\n").lstrip("\n"),
        {"app.py": APP.replace("return 1", "return 10").replace("return 2", "return 20").encode()},
    ),
    Case(
        "the second block quotes what the first wrote",
        block("app.py", ONE, TEN) + block("app.py", TEN, "    return 11\n"),
        {"app.py": APP.replace("return 1", "return 11").encode()},
    ),
    Case(
        "three files in one answer",
        block("app.py", ONE, TEN) + block("bare.txt", "first\n", "1st\n") + block("pkg/new.py", "", "y = 2\n"),
        {**APP_10, "bare.txt": b"1st\nlast", "pkg/new.py": b"y = 2\n"},
    ),
    Case("lines taken out", block("app.py", "import os\n\n\n", ""), {"app.py": APP[12:].encode()}),
    Case(
        "a file with CRLF keeps it",
        block("windows.txt", "beta\n", "BETA\nmore\n"),
        {"windows.txt": b"alpha\r\nBETA\r\nmore\r\ngamma\r\n"},
    ),
    Case(
        "a file with both line ends keeps each",
        block("mixed.txt", "beta\n", "BETA\n"),
        {"mixed.txt": b"alpha\r\nBETA\ngamma\n"},
    ),
    Case("a missing last line break stays missing", block("bare.txt", "last\n", "end\n"), {"bare.txt": b"first\nend"}),
    Case("a byte order mark stays", block("marked.txt", "one\n", "1\n"), {"marked.txt": b"\xef\xbb\xbf1\ntwo\n"}),
    Case(
        "UTF-16 stays",
        block("wide.txt", "end = 2\n", "end = 3\n"),
        {"wide.txt": WIDE.replace("2", "3").encode("utf-16")},
    ),
    Case(
        "Latin-1 stays",
        block("legacy.py", "size = 1\n", "size = '\u00e4'\n"),
        {"legacy.py": LEGACY.replace("size = 1", "size = '\u00e4'").encode("latin-1")},
    ),
    Case(
        "blanks for tabs",
        block("main.go", "        println(1)\n", "        println(2)\n"),
        {"main.go": GO.replace("1", "2").encode()},
    ),
    Case("a Makefile's tab", block("Makefile", "\techo hi\n", "\techo ho\n"), {"Makefile": b"all:\n\techo ho\n"}),
    Case(
        "a fence in the replaced text",
        block("docs/guide.md", "```sh\nmake\n```\n", "```sh\nmake test\n```\n"),
        {"docs/guide.md": GUIDE.replace("make", "make test").encode()},
    ),
    Case("a new file", block("pkg/new.py", "", "y = 2\n"), {"pkg/new.py": b"y = 2\n"}),
    Case("an empty file is filled", block("empty.txt", "", "text\n"), {"empty.txt": b"text\n"}),
    Case(
        "a line like a divider, with longer markers",
        "conflict.txt\n<<<<<<<< SEARCH\ntitle\n=======\n========\nTitle\n=======\n>>>>>>>> REPLACE\n",
        {"conflict.txt": b"Title\n=======\ntext\n"},
    ),
    Case(
        "the line number tells equal places apart",
        block("twice.py", ":start_line:7\n    x = 1\n", "    x = 2\n"),
        {"twice.py": (TWICE[:-27] + TWICE[-27:].replace("x = 1", "x = 2")).encode()},
    ),
)

DIFFS = (
    Case("a diff in a fence", diff("app.py", HUNK), APP_10),
    Case("a diff in prose", f"Apply this:\n\n--- a/app.py\n+++ b/app.py\n{HUNK}\nIt is tested.\n", APP_10),
    Case(
        "a diff of git",
        f"```\ndiff --git a/app.py b/app.py\nindex 12ab..34cd 100644\n--- a/app.py\n+++ b/app.py\n{HUNK}```",
        APP_10,
    ),
    Case("wrong counts", diff("app.py", HUNK.replace("-4,2 +4,2", "-4,9 +4,1")), APP_10),
    Case("wrong line numbers", diff("app.py", HUNK.replace("-4,2 +4,2", "-900,2 +900,2")), APP_10),
    Case("no line numbers", diff("app.py", HUNK.replace("@@ -4,2 +4,2 @@", "@@ ... @@")), APP_10),
    Case("no hunk's head", diff("app.py", HUNK.partition("\n")[2]), APP_10),
    Case("no prefix of the paths", diff("app.py", HUNK).replace("a/app", "app").replace("b/app", "app"), APP_10),
    Case("no paths, named above", f"`app.py`\n```diff\n{HUNK}```\n", APP_10),
    Case(
        "blank lines of context without their blank",
        diff("app.py", "@@ -3,3 +3,3 @@\n\n def one():\n-    return 1\n+    return 10\n"),
        APP_10,
    ),
    Case(
        "two hunks",
        diff("app.py", HUNK + "@@ -8,2 +8,2 @@\n def two():\n-    return 2\n+    return 3\n"),
        {"app.py": APP.replace("return 2", "return 3").replace("return 1", "return 10").encode()},
    ),
    Case(
        "two files in one fence",
        diff("app.py", HUNK + "--- a/bare.txt\n+++ b/bare.txt\n@@ -1 +1 @@\n-first\n+1st\n"),
        {**APP_10, "bare.txt": b"1st\nlast"},
    ),
    Case(
        "a comment of SQL goes",
        diff("query.sql", "@@ -1,3 +1,2 @@\n SELECT 1;\n--- old comment\n SELECT 2;\n"),
        {"query.sql": b"SELECT 1;\nSELECT 2;\n"},
    ),
    Case(
        "the last line break comes",
        diff("bare.txt", "@@ -2 +2 @@\n-last\n\\ No newline at end of file\n+last\n"),
        {"bare.txt": b"first\nlast\n"},
    ),
    Case(
        "the last line break goes",
        diff("Makefile", "@@ -2 +2 @@\n-\techo hi\n+\techo ho\n\\ No newline at end of file\n"),
        {"Makefile": b"all:\n\techo ho"},
    ),
    Case("a new file by diff", f"```diff\n{NEW_FILE.format('pkg/new.py')}```\n", {"pkg/new.py": b"x = 1\n"}),
    Case(
        "a file deleted by diff",
        "```diff\n--- a/bare.txt\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-first\n-last\n```\n",
        {"bare.txt": None},
    ),
    Case(
        "a file renamed by git",
        "```diff\ndiff --git a/bare.txt b/docs/bare.txt\nsimilarity index 100%\nrename from bare.txt\n"
        "rename to docs/bare.txt\n```\n",
        {"bare.txt": None, "docs/bare.txt": b"first\nlast"},
    ),
    Case(
        "the head names the function",
        diff("twice.py", "@@ -1,1 +1,1 @@ def b():\n-    x = 1\n+    x = 2\n"),
        {"twice.py": (TWICE[:-27] + TWICE[-27:].replace("x = 1", "x = 2")).encode()},
    ),
    Case("a diff with CRLF for a file with LF", diff("app.py", HUNK).replace("\n", "\r\n"), APP_10),
)

PATCHES = (
    Case("a patch", patch(f"*** Update File: app.py\n@@ def one():\n-{ONE}+{TEN}"), APP_10),
    Case(
        "a patch in a fence, with prose",
        "Done:\n\n```\n" + patch(f"*** Update File: app.py\n@@\n-{ONE}+{TEN}") + "```\nBye.\n",
        APP_10,
    ),
    Case("a patch makes a file", patch("*** Add File: pkg/new.py\n+x = 1\n"), {"pkg/new.py": b"x = 1\n"}),
    Case("a patch deletes a file", patch("*** Delete File: bare.txt\n"), {"bare.txt": None}),
    Case(
        "a patch moves a file",
        patch("*** Update File: app.py\n*** Move to: src/app.py\n"),
        {"app.py": None, "src/app.py": APP.encode()},
    ),
    Case(
        "a patch moves and changes a file",
        patch(f"*** Update File: app.py\n*** Move to: src/app.py\n@@\n-{ONE}+{TEN}"),
        {"app.py": None, "src/app.py": APP_10["app.py"]},
    ),
    Case(
        "a patch of three files",
        patch(f"*** Update File: app.py\n@@\n-{ONE}+{TEN}*** Add File: n.txt\n+n\n*** Delete File: bare.txt\n"),
        {**APP_10, "n.txt": b"n\n", "bare.txt": None},
    ),
    Case(
        "an anchor tells equal places apart",
        patch("*** Update File: twice.py\n@@ def b():\n-    x = 1\n+    x = 2\n"),
        {"twice.py": (TWICE[:-27] + TWICE[-27:].replace("x = 1", "x = 2")).encode()},
    ),
    Case(
        "an end of file in a patch",
        patch("*** Update File: twice.py\n@@\n-    return x\n+    return 0\n*** End of File\n"),
        {"twice.py": (TWICE[:-27] + TWICE[-27:].replace("return x", "return 0")).encode()},
    ),
)

WHOLES = (
    Case("a whole file below its path", f"app.py\n```python\n{APP_10['app.py'].decode()}```\n", APP_10),
    Case("a whole file below a heading", f"### app.py\n\n```python\n{APP_10['app.py'].decode()}```\n", APP_10),
    Case("a whole file, path in the fence", f"```python:app.py\n{APP_10['app.py'].decode()}```\n", APP_10),
    Case("a whole file, title in the fence", f'```python title="app.py"\n{APP_10["app.py"].decode()}```\n', APP_10),
    Case(
        "a new file below a sentence that makes it",
        "Create `pkg/new.py`:\n\n```python\nx = 1\n```\n",
        {"pkg/new.py": b"x = 1\n"},
    ),
    Case(
        "a file with fences in a longer fence",
        f"docs/guide.md\n````markdown\n{GUIDE}More.\n````\n",
        {"docs/guide.md": (GUIDE + "More.\n").encode()},
    ),
    Case(
        "a file with fences in an equal fence",
        f"docs/guide.md\n```markdown\n{GUIDE}More.\n```\n",
        {"docs/guide.md": (GUIDE + "More.\n").encode()},
    ),
    Case("a whole file keeps CRLF", "windows.txt\n```\nalpha\nbeta\n```\n", {"windows.txt": b"alpha\r\nbeta\r\n"}),
    Case("a whole file brings a last line break", "bare.txt\n```\nfirst\nend\n```\n", {"bare.txt": b"first\nend\n"}),
    Case(
        "an example and a file",
        "It is like\n\n```python\nx = 5\n```\n\nso I write:\n\n`pkg/new.py`\n```python\nx = 1\n```\n",
        {"pkg/new.py": b"x = 1\n"},
    ),
    Case(
        "a method by its name",
        "Replace symbol `Order.total` in `shop/order.py`:\n```python\ndef total(self):\n    return 0\n```\n",
        {"shop/order.py": ORDER.replace("sum(self.lines)", "0").encode()},
    ),
    Case(
        "all forms in one answer",
        block("bare.txt", "first\n", "1st\n")
        + diff("query.sql", "@@\n-SELECT 2;\n+SELECT 3;\n")
        + patch("*** Add File: n.txt\n+n\n")
        + "\n`m.py`\n```python\nm = 1\n```\n"
        + "\nReplace function `one` in `app.py`:\n```python\ndef one():\n    return 10\n```\n",
        {
            **APP_10,
            "bare.txt": b"1st\nlast",
            "query.sql": SQL.replace("2;", "3;").encode(),
            "n.txt": b"n\n",
            "m.py": b"m = 1\n",
        },
    ),
)

NOTHING = tuple(
    Case(name, answer)
    for name, answer in (
        ("an empty answer", ""),
        ("prose alone", "I cannot see a bug in app.py. Could you show me the error?\n"),
        ("a block of code without a path", "For example:\n\n```python\ndef one():\n    return 10\n```\n"),
        ("code below a sentence with a path", "As in `app.py`, one can write:\n\n```python\nreturn 10\n```\n"),
        ("a command below a program's name", "Run `app.py`:\n\n`app.py`\n```bash\npython app.py\n```\n"),
        ("lines that are cited", "It is here:\n```4:5:app.py\ndef one():\n    return 1\n```\n"),
        ("lines that are cited in the fence", "```python:app.py:4-5\ndef one():\n    return 1\n```\n"),
        ("lines that are cited below their path", "`app.py`\n```4:5:app.py\ndef one():\n    return 1\n```\n"),
        ("a merge conflict", "```\n<<<<<<< HEAD\na\n=======\nb\n>>>>>>> main\n```\n"),
        ("a heading that is a product", "### Node.js\n\n```js\nprocess.exit(1)\n```\n"),
        ("output of a test", "```\nFAILED tests/test_app.py::test_one - assert 1 == 10\n```\n"),
        ("a rule of dashes", "First.\n\n---\n\n+++ second\n"),
        ("a block shown within a fence of its own", "```text\nfirst line\n--- a\n```\n"),
        ("a file as it is already", f"app.py\n```python\n{APP}```\n"),
        ("a tool call as JSON", '```json\n{"name": "write_file", "arguments": {"path": "app.py", "text": "x"}}\n```\n'),
        ("tags of another tool", "<write_file><path>app.py</path><content>x = 1</content></write_file>\n"),
        ("a shell's heredoc", "```bash\ncat > app.py <<'END'\nx = 1\nEND\n```\n"),
        ("sed in place", "```sh\nsed -i 's/return 1/return 10/' app.py\n```\n"),
        ("NUL bytes alone", "\0" * 50),
        ("a block in a quotation", "".join(f"> {x}\n" for x in block("app.py", ONE, TEN).splitlines())),
        ("line ends of an old Mac", block("app.py", ONE, TEN).replace("\n", "\r")),
        ("a deletion of what is not there", patch("*** Delete File: missing.py\n")),
        ("made and deleted", patch("*** Add File: n.txt\n+n\n*** Delete File: n.txt\n")),
    )
)
