"""What to do when no server can answer: what the catalog saw, as the keys and addresses that the user can change."""

from __future__ import annotations

from collections.abc import Sequence

from turnout.config import RouterConfig, section_of
from turnout.errors import ModelBlockedError
from turnout.fleet.catalog import LEADS_ELSEWHERE, Catalog, EndpointStatus
from turnout.types import Candidate, Health

START_ONE = "start a server such as llama-server or Ollama, or `turnout config init` and name yours"
BUNDLED = "`embedded.fallback: true` uses the bundled demonstration model"
ALL_MODELS = "`turnout models`, or GET /v1/models, lists all"
_MOST = 3


def few_of(names: Sequence[str], most: int = 8) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def usable(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that are what was recorded, or need not be.

    Raises:
        ModelBlockedError: there are some, and none is.
    """
    able = tuple(candidate for candidate in found if not candidate.verdict.barred)
    if found and not able:
        raise blocked(found)
    return able


def blocked(found: Sequence[Candidate]) -> ModelBlockedError:
    """Why none of these models may serve."""
    said = "; ".join(f"{c.label}: {c.verdict.barred}" for c in found[:_MOST])
    more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
    changed = any(c.verdict.state == "mismatch" for c in found)
    first = "find out who changed it; if that is what should be there, " if changed else ""
    hint = f"{first}`turnout models lock{' --replace' * changed}` records it"
    return ModelBlockedError(f"blocked: {said}{more}", hint=hint)


def what_to_check(catalog: Catalog, config: RouterConfig) -> str:
    """One line for a catalog that serves nothing: what to check of the servers that are configured or that answered,
    else how to get one."""
    found = [advice for status in catalog.endpoints if (advice := _advice(status, config))]
    if not found:
        return START_ONE
    more = len(found) - _MOST
    return "; ".join((*found[:_MOST], *((f"and {more} more",) if more > 0 else ())))


def how_to_use(status: EndpointStatus, config: RouterConfig) -> str:
    """What to add to the configuration to use a front end that was only found, "" for all other servers."""
    endpoint = status.endpoint
    if endpoint.configured or not status.unused.endswith(LEADS_ELSEWHERE):
        return ""
    given = config.services.get(endpoint.kind)
    if given is not None and given.endpoint:
        return ""  # its section is another one's
    section = f"services.{endpoint.kind}"
    told = f"to use {endpoint.url}, name it in {section}.endpoint"
    if status.health is Health.NEEDS_KEY:
        return f"{told}, and {'correct' if endpoint.key else 'give'} its key in {section}.key"
    return f"{told}: its key alone does not do it" if endpoint.key else told


def _advice(status: EndpointStatus, config: RouterConfig) -> str:
    endpoint = status.endpoint
    section = _section(status, config)
    if endpoint.embedded or not section:
        return ""
    if endpoint.configured and config.discovery.inventory and section.startswith("services."):
        if endpoint.name not in config.services:
            return f"look at {endpoint.url}, or correct {endpoint.name} in the inventory"
    if status.unused:
        return how_to_use(status, config)
    match status.health:
        case Health.NEEDS_KEY:
            return f"{'correct' if endpoint.key else 'set'} {section}.key: {endpoint.url} refuses without the right one"
        case Health.LOADING:
            return f"wait until {endpoint.url} has loaded its model"
        case Health.ONLINE:
            return f"load a model at {endpoint.url}: it offers none"
        case Health.DEGRADED:
            return f"look at the server at {endpoint.url}, or correct {section}.endpoint"
        case _ if endpoint.configured:
            trusted = (
                " with a certificate that is trusted (security.ca_file)" if endpoint.url.startswith("https") else ""
            )
            return f"see that a server runs at {endpoint.url}{trusted}, or correct {section}.endpoint"
    return ""


def _section(status: EndpointStatus, config: RouterConfig) -> str:
    """The key path of the section that is about this endpoint, or ""."""
    endpoint = status.endpoint
    if endpoint.configured:
        return section_of(config, endpoint.name)
    return f"services.{endpoint.kind}" if endpoint.kind else ""
