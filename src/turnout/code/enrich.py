"""The enriched query (SPEC CODE-2): what was found, after the user's own words, byte-identical for the same input."""

from __future__ import annotations

import re
from collections.abc import Sequence

from turnout.code.excerpt import MAX_LINE
from turnout.code.provider import CodeContext, Excerpt, Reference

SHOWN_REFERENCES, SHOWN_ISSUES, SHOWN_DEFINITIONS = 10, 5, 5
SHOWN_CHARS = 160  # of a reference's line
# What gives a secret away: its name and a quoted or shell-like value, the issuer's prefix, or a login in a URL. Code
# that merely speaks of tokens and keys (``max_tokens = min(a, b)``) stays readable. Every repetition that may end in
# vain has a limit, since a megabyte of "token" would else be tried from each of its words to its end.
_NAMED = r"(?:api[_-]?key|access[_-]?key|private[_-]?key|secret|token|passw(?:or)?d|pwd|credential)"
_SECRETS = (
    re.compile(
        rf"(?i)({_NAMED}[\w-]{{0,60}}[\"']?\s*(?::|=|=>|:=)\s*[rbf]?(\"{{3}}|'{{3}}|[\"'`]))(?:(?!\2)[^\n]){{6,}}"
    ),
    re.compile(
        r"(\b[A-Z0-9_]{0,60}(?:KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)[A-Z0-9_]{0,60}=)(?![\w.]+\()[^\s\"'(=]{6,}"
    ),
    re.compile(
        rf"(?i)({_NAMED}[\w-]{{0,60}}\s*:\s*)(?=[^\s\"']{{0,600}}\d)[^\s\"'()\[\],;]{{8,600}}(?=\s*$)", re.MULTILINE
    ),
    re.compile(r"(?i)(\bbearer\s+)[\w.~+/-]{16,}"),
    re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"'`]?basic\s+)[\w+/=-]{8,}"),
    re.compile(r"(?i)([;\"']\s*(?:password|pwd)\s*=\s*)[^;\s\"'()]{4,200}(?=[;\"'])"),
    re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]+:)[^\s/@]+(?=@)"),
    re.compile(
        r"()\b(?:sk-[\w-]{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|hf_\w{16,}|xox[abprs]-[\w-]{10,}"
        r"|npm_\w{16,}|pypi-[\w-]{16,}|[rs]k_live_\w{16,}"
        r"|A[KS]IA[A-Z0-9]{12,}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)"
    ),
)
# A private key goes on for many lines: only what holds its beginning shows that the rest is one.
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----)(?=.{0,300}?[A-Za-z0-9+/=]{24})((?:(?!-----END).)*)", re.DOTALL
)


def build_enriched_query(query: str, context: CodeContext, style: str = "openai") -> str:
    """The query with sections for what was found; unchanged when nothing was.

    Args:
        query: the user's words.
        context: what a provider found.
        style: how a section is written: ``openai``, ``anthropic`` or ``qwen`` (``agents.<agent>.context_format``).
    """
    write = _STYLES[style]
    sections = [
        ("Type Information", context.type_information),
        (f"References ({len(context.references)} found)", _places(context.references[:SHOWN_REFERENCES])),
        (
            f"Current Issues ({len(context.issues)})",
            "\n".join(f"- Line {issue.line}: {issue.message}" for issue in context.issues[:SHOWN_ISSUES]),
        ),
        ("Code", "\n\n".join(map(_shown, context.excerpts))),
        ("Definition", _definitions(context)),
        ("Outline", context.outline),
    ]
    found = [write(title, without_secrets(body)) for title, body in sections if body]
    return "\n\n".join((query, *found)) if found else query


def _under_heading(title: str, body: str) -> str:
    return f"## {title}\n{body}"


def _in_element(title: str, body: str) -> str:
    name = title.partition(" (")[0].lower().replace(" ", "_")
    return f"<{name}>\n{body}\n</{name}>"


def _in_fence(title: str, body: str) -> str:
    fence = max(("```", *(f"{run}`" for run in re.findall(r"`{3,}", body))), key=len)
    return f"## {title}\n{fence}\n{body}\n{fence}"


_STYLES = {"openai": _under_heading, "anthropic": _in_element, "qwen": _in_fence}


def _definitions(context: CodeContext) -> str:
    places = _places(context.definitions[:SHOWN_DEFINITIONS])
    return "\n\n".join((*([places] if places else ()), *map(_shown, context.bodies)))


def _places(places: Sequence[Reference]) -> str:
    return "\n".join(place_line(place) for place in places)


def place_line(place: Reference) -> str:
    """One place as it is shown."""
    text = place.text.strip()[:SHOWN_CHARS]
    within = f" in {place.within}" if place.within else ""
    return f"- {place.path}:{place.line}{within}" + (f": {text}" if text else "")


def _shown(excerpt: Excerpt) -> str:
    head = f"{excerpt.path}, lines {excerpt.first} to {excerpt.last} of {excerpt.total}"
    head += f" (line {excerpt.marked} is marked):" if excerpt.marked else ":"
    width = len(str(excerpt.last))
    rows = (
        f"{'>' if number == excerpt.marked else ' '} {number:>{width}} | {_cut(line)}"
        for number, line in enumerate(excerpt.lines, excerpt.first)
    )
    return "\n".join((head, *rows))


def _cut(line: str) -> str:
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}…"


def without_secrets(text: str) -> str:
    """``text`` with what looks like a secret's value replaced; it keeps its number of lines."""
    text = without_private_keys(text)
    for pattern in _SECRETS:
        text = pattern.sub(r"\1[redacted]", text)
    return text


def without_private_keys(text: str) -> str:
    """``text`` without the bodies of private keys; it keeps its number of lines."""
    if "PRIVATE KEY" not in text:
        return text
    return _PRIVATE_KEY.sub(lambda match: f"{match[1]}[redacted]" + "\n" * match[2].count("\n"), text)
