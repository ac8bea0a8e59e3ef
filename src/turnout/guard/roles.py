"""What each role may do at the gateway, on one page: roles to abilities, abilities to paths.

A path that is not in the table leads nowhere, and whoever is let in may be told so; a test compares it with the routes
that are served, so that a new one has its place here.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Role: TypeAlias = Literal["user", "operator", "auditor", "admin"]
# look: see what there is. ask: use models. watch: see how all of it runs. grant: mint tokens that may no more than
# oneself, and revoke those. audit: see whom others have let in. manage: revoke tokens of others.
Ability: TypeAlias = Literal["look", "ask", "watch", "grant", "audit", "manage"]

ROLES: dict[Role, frozenset[Ability]] = {
    "user": frozenset({"look", "ask", "grant"}),
    "operator": frozenset({"look", "ask", "grant", "watch"}),
    "auditor": frozenset({"look", "grant", "watch", "audit"}),
    "admin": frozenset({"look", "ask", "grant", "watch", "audit", "manage"}),
}

# A path that ends with a slash stands for all below it.
ROUTES: dict[Ability, tuple[str, ...]] = {
    "ask": (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v1/responses/",
        "/v1/feedback",
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/api/embeddings",
        "/api/show",
    ),
    "look": ("/", "/v1/models", "/v1/models/", "/api/tags", "/api/ps", "/api/version"),
    "watch": ("/metrics",),
    "grant": ("/v1/tokens", "/v1/tokens/"),
}

_EXACT: dict[str, Ability] = {path: ability for ability, paths in ROUTES.items() for path in paths}
_BELOW = tuple((path, ability) for path, ability in _EXACT.items() if path.endswith("/") and path != "/")


def ability_for(path: str) -> Ability:
    """What somebody must be able to do to use a path."""
    found = _EXACT.get(path)
    if found is not None:
        return found
    return next((ability for below, ability in _BELOW if path.startswith(below)), "look")


def may(role: Role, ability: Ability) -> bool:
    """Whether the role has the ability."""
    return ability in ROLES[role]


def covers(role: Role, other: Role) -> bool:
    """Whether ``role`` may all that ``other`` may, and so may grant it."""
    return ROLES[role] >= ROLES[other]
