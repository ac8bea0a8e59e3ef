"""The enriched query (SPEC CODE-2): what was found, after the user's own words, byte-identical for the same input."""

from __future__ import annotations

import re
from collections.abc import Sequence

from turnout.code.provider import CodeContext, Reference

SHOWN_REFERENCES, SHOWN_ISSUES, SHOWN_DEFINITIONS = 10, 5, 5
# What gives a secret away: its name and a quoted or shell-like value, the issuer's prefix, or a login in a URL. Code
# that merely speaks of tokens and keys (``max_tokens = min(a, b)``) stays readable.
_NAMED = r"(?:api[_-]?key|access[_-]?key|private[_-]?key|secret|token|passw(?:or)?d|pwd|credential)"
_SECRETS = (
    re.compile(rf"(?i)({_NAMED}[\w-]*[\"']?\s*(?::|=|=>|:=)\s*[rbf]?([\"']))(?:(?!\2)[^\n]){{6,}}"),
    re.compile(r"(\b[A-Z0-9_]*(?:KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)[A-Z0-9_]*=)(?![\w.]+\()[^\s\"'(=]{6,}"),
    re.compile(rf"(?i)({_NAMED}[\w-]*\s*:\s*)(?=[^\s\"']*\d)[^\s\"'()\[\],;]{{8,}}(?=\s*$)", re.MULTILINE),
    re.compile(r"(?i)(\bbearer\s+)[\w.~+/-]{16,}"),
    re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]+:)[^\s/@]+(?=@)"),
    re.compile(
        r"()\b(?:sk-[\w-]{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|hf_\w{16,}|xox[abprs]-[\w-]{10,}"
        r"|A[KS]IA[A-Z0-9]{12,}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)"
    ),
)


def build_enriched_query(query: str, context: CodeContext) -> str:
    """The query with sections for what was found; unchanged when nothing was.

    Args:
        query: the user's words.
        context: what a provider found.
    """
    sections = [
        _section("Type Information", context.type_information),
        _section(f"References ({len(context.references)} found)", _places(context.references[:SHOWN_REFERENCES])),
        _section(
            f"Current Issues ({len(context.issues)})",
            "\n".join(f"- Line {issue.line}: {issue.message}" for issue in context.issues[:SHOWN_ISSUES]),
        ),
        _section("Definition", _places(context.definitions[:SHOWN_DEFINITIONS])),
        _section("Outline", context.outline),
    ]
    found = [section for section in sections if section]
    return "\n\n".join((query, *found)) if found else query


def _section(title: str, body: str) -> str:
    return f"## {title}\n{without_secrets(body)}" if body else ""


def _places(places: Sequence[Reference]) -> str:
    return "\n".join(f"- {p.path}:{p.line}" + (f": {p.text.strip()[:160]}" if p.text.strip() else "") for p in places)


def without_secrets(text: str) -> str:
    """``text`` with what looks like a secret's value replaced."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1[redacted]", text)
    return text
