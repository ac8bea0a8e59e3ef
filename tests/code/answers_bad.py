"""The malformed and the hostile answers of the corpus (``answers.py``): each is refused with a reason, whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.code.answers import (
    APP,
    HUNK,
    LONG,
    NEW_FILE,
    ONE,
    TEN,
    TWICE,
    Case,
    block,
    diff,
    patch,
)

_GOOD_ONE = block("app.py", ONE, TEN)

HALF = tuple(
    Case(name, answer, refused=reason)
    for name, answer, reason in (
        ("cut off in SEARCH", f"app.py\n```\n<<<<<<< SEARCH\n{ONE}", "is not finished"),
        ("cut off in REPLACE", f"app.py\n```\n<<<<<<< SEARCH\n{ONE}=======\n    retu", "is not finished"),
        ("cut off in the last marker", f"app.py\n<<<<<<< SEARCH\n{ONE}=======\n{TEN}>>>", "is not finished"),
        ("cut off after a good block", f"{_GOOD_ONE}\napp.py\n```\n<<<<<<< SEARCH\n    ret", "is not finished"),
        ("cut off in a whole file", "app.py\n```python\nimport os\n\ndef one(", "of app.py is not finished"),
        ("cut off in a diff", diff("app.py", HUNK).removesuffix("```\n"), "is not finished"),
        (
            "cut off in a patch",
            f"*** Begin Patch\n*** Update File: app.py\n@@\n-{ONE}+{TEN}",
            "`*** End Patch` is missing",
        ),
        ("a patch begins in a patch", f"*** Begin Patch\n*** Add File: a.py\n+a\n{patch('')}", "not finished"),
        ("no divider", f"app.py\n<<<<<<< SEARCH\n{ONE}{TEN}>>>>>>> REPLACE\n", "no line `=======`"),
        ("two dividers", f"app.py\n<<<<<<< SEARCH\n{ONE}=======\n{TEN}=======\n>>>>>>> REPLACE\n", "several lines"),
        ("a block in a block", f"app.py\n<<<<<<< SEARCH\n{_GOOD_ONE}", "no end before the next"),
        ("a block without a path", block("", ONE, TEN), "names no file"),
        ("a block changes nothing", block("app.py", ONE, ONE), "changes nothing"),
        ("a diff without a path", f"```diff\n{HUNK}```\n", "names no file"),
        (
            "a diff without a change",
            diff("app.py", "@@ -4,2 +4,2 @@\n def one():\n     return 1\n"),
            "no line that changes",
        ),
        ("a diff adds a line nowhere", diff("app.py", "@@ -4,0 +5 @@\n+    x = 1\n"), "where its lines belong"),
        (
            "a new file that takes out lines",
            "```diff\n--- /dev/null\n+++ b/n.py\n@@ -1 +1 @@\n-a\n+b\n```\n",
            "takes lines",
        ),
        ("a patch of no file", patch("hello\n"), "belongs to no file"),
        ("a patch changes nothing", patch("*** Update File: app.py\n@@ def one():\n"), "nothing changes in app.py"),
        ("a good edit and a half one in a patch", patch("*** Add File: n.txt\n+n\nand so on\n"), "belongs to no file"),
        (
            "text between a heading and code",
            "### app.py\n\nIt imports:\n\n```python\nimport os\n```\n",
            "may be a part",
        ),
        ("a git diff that copies", "diff --git a/app.py b/b.py\ncopy from app.py\ncopy to b.py\n", "it copies a file"),
        (
            "a diff of a binary file",
            "diff --git a/logo.png b/logo.png\nBinary files a/logo.png and b/logo.png differ\n",
            "changes a binary file",
        ),
    )
)

WRONG = tuple(
    Case(name, answer, refused=reason)
    for name, answer, reason in (
        ("quotes what is nowhere", block("app.py", "    return 7\n", TEN), "nowhere in the file"),
        (
            "a quoted word differs",
            block("app.py", "def One():\n    return 1\n", "def One():\n    return 10\n"),
            "nowhere",
        ),
        ("a quote leaves out lines", block("app.py", "import os\n...\n    return 1\n", TEN), "nowhere in the file"),
        ("found twice", block("twice.py", "    x = 1\n", "    x = 2\n"), "found 2 times, at lines 2, 7"),
        (
            "a wrong line number, found twice",
            diff("twice.py", "@@ -4 +4 @@\n-    x = 1\n+    x = 2\n"),
            "found 2 times",
        ),
        ("two blocks for one place", _GOOD_ONE + block("app.py", ONE, "    return 11\n"), "nowhere"),
        ("the same block twice", _GOOD_ONE + _GOOD_ONE, "seems to be done"),
        ("it is done already", block("app.py", "    return 0\n", ONE), "seems to be done"),
        (
            "a good edit and a wrong one",
            block("bare.txt", "first\n", "1\n") + block("app.py", "no\n", "x\n"),
            "nowhere",
        ),
        ("a file that is not there", block("missing.py", ONE, TEN), "there is no such file"),
        (
            "the right name in the wrong folder",
            block("src/order.py", "class Order:\n", "class O:\n"),
            "did the answer mean shop/order.py?",
        ),
        ("the wrong case of a path", block("App.py", ONE, TEN), "there is no such file"),
        ("the wrong case of a folder", block("Shop/order.py", "class Order:\n", "class O:\n"), "there is no such file"),
        ("a new file that is there", block("app.py", "", "x = 1\n"), "it is there already"),
        ("a patch adds what is there", patch("*** Add File: app.py\n+x = 1\n"), "it is there already"),
        ("a diff makes what is there", f"```diff\n{NEW_FILE.format('app.py')}```\n", "it is there already"),
        ("a move onto what is there", patch("*** Update File: app.py\n*** Move to: twice.py\n"), "twice.py is there"),
        (
            "a deletion that believes too little",
            "```diff\n--- a/bare.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-first\n```\n",
            "holds more than",
        ),
        (
            "a symbol that is nowhere",
            "Replace function `six` in `app.py`:\n```python\ndef six(): ...\n```\n",
            "nowhere",
        ),
        (
            "a symbol by another's body",
            "Replace function `one` in `app.py`:\n```python\ndef six(): ...\n```\n",
            "alone",
        ),
        ("a rename without a language server", "Rename symbol `one` to `first` in `app.py`\n", "language server"),
        ("a character that Latin-1 lacks", block("legacy.py", "size = 1\n", "size = '\u20ac'\n"), "cannot hold"),
        ("code left out, in a block", block("app.py", ONE, "    # ... existing code ...\n"), "left out"),
        (
            "code left out, in a whole file",
            "app.py\n```python\nimport os\n\n# ... existing code ...\n```\n",
            "left out",
        ),
        (
            "code left out, in Go",
            block("main.go", "\tif true {\n", "\t// rest of the code unchanged\n\tif true {\n"),
            "left out",
        ),
        (
            "code left out, in Markdown",
            block("docs/guide.md", "Done.\n", "<!-- ... rest of the guide ... -->\n"),
            "left out",
        ),
        (
            "code left out, in a new file",
            block("n.py", "", "def f():\n    # (rest of the function)\n    pass\n"),
            "left out",
        ),
        ("a part as the whole", "long.py\n```python\nvalue_3 = 4\n```\n", "40 of its 40 lines of text would go"),
        ("a start as the whole", f"long.py\n```python\n{LONG[:60]}```\n", "lines of text would go"),
        ("no Python any more", block("app.py", "def one():\n", "def one(:\n"), "it is no Python any more"),
        ("a bracket is missing", f"app.py\n```python\n{APP.replace('one()', 'one(')}```\n", "it is no Python any more"),
        ("a secret that was not shown", block("app.py", "import os\n", "KEY = '[redacted]'\nimport os\n"), "a secret"),
        ("two places, quoted too short", block("twice.py", "    return x\n", "    return 0\n"), "found 2 times"),
        ("both functions in one block", block("twice.py", TWICE.replace("\n\n\n", "\n"), "x = 1\n"), "nowhere"),
    )
)

_BIG = "y" * 99 + "\n"
HUGE = (
    Case("more characters than any answer", "x" * 4_000_001, refused="the most is 4,000,000"),
    Case("more changes than any answer", block("app.py", ONE, TEN) * 501, refused="the most is 500"),
    Case("a new file that is too large", block("n.txt", "", _BIG * 10_001), refused="the most is 1,000,000"),
    Case("a file that would grow too large", block("bare.txt", "first\n", _BIG * 10_001), refused="the most is"),
    Case("a file that is too large", block("large.txt", "x\n", "y\n"), refused="it has 1,000,001 bytes"),
    Case("a megabyte of prose", "word " * 200_000),
    Case("a megabyte of fences", "```a\n" * 200_000),
    Case("a megabyte of opened blocks", "<<<<<<< SEARCH\n" * 60_000, refused="no end before the next"),
    Case("a line of a megabyte", block("n.txt", "", "z" * 999_000 + "\n"), {"n.txt": b"z" * 999_000 + b"\n"}),
)
BINARY = (
    Case("a block for a binary file", block("logo.png", "PNG\n", "GIF\n"), refused="it is a binary file"),
    Case("a whole file for a binary one", "logo.png\n```\ntext\n```\n", refused="it is a binary file"),
    Case("a diff for a binary file", diff("logo.png", "@@ -1 +1 @@\n-PNG\n+GIF\n"), refused="it is a binary file"),
    Case(
        "a binary file moved", patch("*** Update File: logo.png\n*** Move to: l.png\n"), refused="it is a binary file"
    ),
    Case("NUL comes into a text", block("bare.txt", "first\n", "fir\0st\n"), {"bare.txt": b"fir\0st\nlast"}),
    Case("a binary file deleted", patch("*** Delete File: logo.png\n"), {"logo.png": None}),
)

# Each path in each form. Where the check of paths failed, these would write to a folder that is the test's own.
_PATHS = (
    ("../outside/evil.py", "out of the workspace"),
    ("docs/../../outside/evil.py", "out of the workspace"),
    ("./../outside/evil.py", "out of the workspace"),
    ("docs/../app2.py", "out of the workspace or up in it"),
    ("@OUTSIDE@/evil.py", "not relative"),
    ("/@OUTSIDE@/evil.py", "not relative"),
    ("~/evil.py", "not relative"),
    ("C:/evil.py", "not relative"),
    ("C:\\Users\\me\\evil.py", "not relative"),
    ("\\\\server\\share\\evil.py", "not relative"),
    ("..\\outside\\evil.py", "has a backslash"),
    ("docs\\evil.py", "has a backslash"),
    ("linked/evil.py", "'linked' is a link"),
    ("link.py", "'link.py' is a link"),
    ("loop/evil.py", "'loop' is a link"),
    (".git/hooks/post-commit.sh", "'.git' is what"),
    (".GIT/hooks/post-commit.sh", "'.GIT' is what"),
    ("docs/.git/config.py", "'.git' is what"),
    ("GIT~1/config.py", "no path of a file"),
    (".env", "'.env' is what"),
    (".env.local", "'.env.local' is what"),
    ("keys/server.pem", "'server.pem' is what"),
    (".ssh/config.py", "'.ssh' is what"),
    ("node_modules/evil.js", "'node_modules' is what"),
    ("ignored/evil.py", "it is ignored: .gitignore line 1"),
    ("scratch.tmp", "it is ignored: .gitignore line 2"),
    ("locked.txt", "it is read-only"),
    ("app.py/evil.py", "'app.py' is no folder"),
    ("nul.txt", "no path of a file"),
    ("app.py:stream.py", "no path of a file"),
    ("docs//evil.py", "no path of a file"),
    ("evil\u202eyp.py", "that is no path"),
    ("evil\0.py", "that is no path"),
    ("a/" * 50 + "evil.py", "no path of a file"),
)
_FORMS: Mapping[str, Callable[[str], str]] = {
    "block": lambda path: block(path, "", "x = 1\n"),
    "whole": lambda path: f"`{path}`\n```\nx = 1\n```\n",
    "diff": lambda path: f"```diff\n{NEW_FILE.format(path)}```\n",
    "patch": lambda path: patch(f"*** Add File: {path}\n+x = 1\n"),
    "delete": lambda path: patch(f"*** Delete File: {path}\n"),
    "move": lambda path: patch(f"*** Update File: app.py\n*** Move to: {path}\n"),
}
HOSTILE = tuple(
    Case(f"{form} {path[:40]!a}", write(path), refused=reason)
    for path, reason in _PATHS
    for form, write in _FORMS.items()
)
MIXED = tuple(
    Case(name, answer, refused=reason)
    for name, answer, reason in (
        (
            "a good edit before a hostile one",
            _GOOD_ONE + block("../outside/evil.py", "", "x\n"),
            "out of the workspace",
        ),
        ("a good edit after a hostile one", block(".git/hooks/pre-push", "", "x\n") + _GOOD_ONE, "'.git' is what"),
        ("a secret is read into a file", patch("*** Update File: .env\n*** Move to: docs/env.txt\n"), "'.env' is what"),
        ("a secret is quoted", block(".env", "TOKEN=abc\n", "TOKEN=evil\n"), "'.env' is what"),
        (
            "a hook is changed by git's rename",
            "diff --git a/app.py b/.git/hooks/x\nrename from app.py\nrename to .git/hooks/x\n",
            "'.git' is what",
        ),
        (
            "a hook is deleted by diff",
            "```diff\n--- a/.git/config\n+++ /dev/null\n@@ -1 +0,0 @@\n-[core]\n```\n",
            "'.git' is",
        ),
        ("a file beyond a link is changed", block("link.py", "target\n", "evil\n"), "'link.py' is a link"),
        ("a file in a linked folder is changed", block("linked/target.py", "target\n", "evil\n"), "'linked' is a link"),
        (
            "a path that git quotes",
            '```diff\n--- /dev/null\n+++ "b/..\\057outside/evil.py"\n@@ -0,0 +1 @@\n+x\n```\n',
            "out of the workspace",
        ),
        (
            "old name good, new name hostile",
            f"```diff\n--- a/app.py\n+++ b/../outside/evil.py\n{HUNK}```\n",
            "out of the workspace",
        ),
        (
            "a prefix that hides the way up",
            f"```diff\n{NEW_FILE.format('../../outside/evil.py')}```\n",
            "out of the workspace",
        ),
        (
            "a change of permissions alone",
            "diff --git a/app.py b/app.py\nold mode 100644\nnew mode 100755\n",
            "no line",
        ),
        (
            "a file that is to be a folder too",
            _GOOD_ONE + block("n.txt", "", "n\n") + block("n.txt/x.py", "", "x = 1\n"),
            "it is no regular file",
        ),
        ("a folder is taken for a file", patch("*** Add File: docs\n+x\n"), "no regular file"),
        (
            "one file under two new names",
            patch("*** Update File: app.py\n*** Move to: a.py\n*** Update File: app.py\n*** Move to: b.py\n"),
            "there is no such file",
        ),
        ("thought and then said", f"<think>\n{block('app.py', ONE, TEN)}</think>\n{_GOOD_ONE}", "seems to be done"),
        ("a symbol beyond a link", "Replace function `f` in `link.py`:\n```python\ndef f(): ...\n```\n", "is a link"),
        (
            "a symbol out of the workspace",
            "Replace function `f` in `../outside/target.py`:\n```python\ndef f(): ...\n```\n",
            "out of the workspace",
        ),
        (
            "the rules of .gitignore are changed, then used",
            block(".gitignore", "ignored/\n", "") + block("ignored/y.py", "", "y = 1\n"),
            "it is ignored",
        ),
        ("NUL comes into Python", block("app.py", ONE, "    return '\0'\n"), "it is no Python any more"),
    )
)

AS_PLAIN_FILES = (
    Case(
        "a link by git's mode is a plain file",
        "```diff\ndiff --git a/l.txt b/l.txt\nnew file mode 120000\n--- /dev/null\n+++ b/l.txt\n@@ -0,0 +1 @@\n"
        "+../outside/target.py\n\\ No newline at end of file\n```\n",
        {"l.txt": b"../outside/target.py"},
    ),
    Case(
        "a program by git's mode is a plain file",
        "```diff\ndiff --git a/r.sh b/r.sh\nnew file mode 100755\n--- /dev/null\n+++ b/r.sh\n@@ -0,0 +1 @@\n+x\n```\n",
        {"r.sh": b"x\n"},
    ),
    Case(
        "deleted and made again", patch("*** Delete File: bare.txt\n*** Add File: bare.txt\n+x\n"), {"bare.txt": b"x\n"}
    ),
    Case("text against the reading direction", block("n.txt", "", "a\u202eb\n"), {"n.txt": "a\u202eb\n".encode()}),
)
