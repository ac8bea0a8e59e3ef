"""The enriched query (SPEC CODE-2): what was found, after the user's own words, byte-identical for the same input."""

from __future__ import annotations

import re
from collections.abc import Sequence

from turnout.code.provider import CodeContext, Reference

SHOWN_REFERENCES, SHOWN_ISSUES, SHOWN_DEFINITIONS = 10, 5, 5
_SECRET = re.compile(
    r"(?i)((?:api[_-]?key|secret|token|passw(?:or)?d|credential|private[_-]?key)[\w\"']*\s*[:=]\s*)[\"']?[^\s\"',;]{6,}"
    r"|\b(?:sk-|ghp_|xox[bp]-|AKIA)[A-Za-z0-9_-]{10,}"
)


def build_enriched_query(query: str, context: CodeContext) -> str:
    """The query with sections for what was found; unchanged when nothing was.

    Args:
        query: the user's words.
        context: what a provider found.
    """
    sections = [
        _section("Type Information", context.type_information),
        _section("Definition", _places(context.definitions[:SHOWN_DEFINITIONS])),
        _section(f"References ({len(context.references)} found)", _places(context.references[:SHOWN_REFERENCES])),
        _section(
            f"Current Issues ({len(context.issues)})",
            "\n".join(f"- Line {issue.line}: {issue.message}" for issue in context.issues[:SHOWN_ISSUES]),
        ),
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
    return _SECRET.sub(lambda match: f"{match[1] or ''}[redacted]", text)
