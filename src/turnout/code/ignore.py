"""What ``.gitignore`` keeps out of a repository. Read by us: a program that is asked could run what its own
configuration says, and may not be there."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path, PurePosixPath

from turnout.files import read_file

_FILE, _EXCLUDE = ".gitignore", ".git/info/exclude"
_MOST_RULES = 2000


def ignored(root: Path, path: PurePosixPath) -> str:
    """Which rule ignores a path, as ``FILE line N``, or "". The last rule that fits decides, the nearest file last.

    Args:
        root: the workspace.
        path: relative to it, with ``/``; it need not exist.
    """
    # What is in an ignored folder cannot be taken back in, so each folder is judged first.
    for end in range(1, len(path.parts) + 1):
        part, is_folder = PurePosixPath(*path.parts[:end]), end < len(path.parts)
        verdict = ""
        files = [(PurePosixPath(), root / _EXCLUDE), (PurePosixPath(), root / _FILE)]
        files += [(PurePosixPath(*path.parts[:n]), root.joinpath(*path.parts[:n], _FILE)) for n in range(1, end)]
        for folder, file in files:
            below = part.relative_to(folder).as_posix()
            for number, takes_back, only_folders, pattern in _rules(_text(file)):
                if (is_folder or not only_folders) and pattern.fullmatch(below):
                    verdict = "" if takes_back else f"{file.relative_to(root).as_posix()} line {number}"
        if verdict:
            return verdict
    return ""


def _text(file: Path) -> str:
    try:
        return read_file(file).decode("utf-8", "replace")
    except OSError:
        return ""


@lru_cache(maxsize=64)
def _rules(text: str) -> tuple[tuple[int, bool, bool, re.Pattern[str]], ...]:
    found = []
    for number, line in enumerate(text.split("\n")[:_MOST_RULES], 1):
        rule = line.removesuffix("\r")
        rule = re.sub(r"(?<!\\) +$", "", rule)
        if not rule or rule.startswith("#"):
            continue
        takes_back = rule.startswith("!")
        rule = rule[1:] if takes_back else rule
        only_folders = rule.endswith("/")
        rule = rule.rstrip("/") if only_folders else rule
        if not rule:
            continue
        anywhere = "/" not in rule
        expression = ("(?:.*/)?" if anywhere else "") + _expression(rule.removeprefix("/"))
        try:
            found.append((number, takes_back, only_folders, re.compile(expression, re.DOTALL)))
        except re.error:
            continue  # a class of characters that is none: git has it fit nothing, too
    return tuple(found)


def _expression(rule: str) -> str:
    """A glob as git reads it.

    The first fit of what stands between two wildcards is as good as any later one, and is not given up again: else a
    rule with many of them would be tried for years.
    """
    out: list[str] = []
    at, star, folders = 0, -1, -1  # where the last wildcard of this name, and of folders, is in ``out``
    while at < len(rule):
        if rule.startswith("**/", at) and (at == 0 or rule[at - 1] == "/"):
            if folders >= 0:
                out[folders] = "(?>(?:[^/]+/)*?"
                out.append(")")
            star, folders = -1, len(out)
            out.append("(?:[^/]+/)*")
            at += 3
        elif rule[at:] == "**" and at and rule[at - 1] == "/":
            out.append(".+")
            at += 2
        elif rule[at] == "*":
            if star >= 0:
                out[star] = "(?>[^/]*?"
                out.append(")")
            star = len(out)
            out.append("[^/]*")
            at = re.compile(r"\**").match(rule, at).end()  # type: ignore[union-attr]
        elif rule[at] == "?":
            out.append("[^/]")
            at += 1
        elif rule[at] == "[" and (end := rule.find("]", at + 2)) > 0:
            inner = rule[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            out.append(f"(?!/)[{'^' + inner[1:] if inner[0] in '!^' else inner}]")
            at = end + 1
        else:
            at += rule[at] == "\\" and at + 1 < len(rule)
            out.append(re.escape(rule[at]))
            star = -1 if rule[at] == "/" else star
            at += 1
    return "".join(out)
