"""Every error Turnout raises, in one tree. Lower-level errors are mapped to these at the seams only.

    TurnoutError
    ├── ConfigError            the configuration file or dict is wrong (file, line, key path, nearest key)
    ├── UsageError             the request itself cannot be served as given (empty, binary, far too long)
    ├── NoServiceError         no local LLM server answered (what was probed, what to do next)
    ├── NoSuitableModelError   servers answered, none has a model this request can use
    ├── QueryFailedError       every attempt of the plan failed (carries the attempts)
    ├── NotPermittedError      whoever asks may not have what was asked for (the limits of a key)
    │   └── ModelBlockedError      the model is not the one that was recorded, or is not verified and has to be
    ├── GuardError             a connection that the allow-list does not hold was refused
    ├── AuditError             the audit log cannot be written
    ├── StorageError           a file of ours (session store, data directory) cannot be used
    ├── ArchiveError           a model on its way is not what was signed, or was not exported by Turnout
    ├── EditError              proposed edits cannot be carried out; nothing was changed
    ├── StoppingError          the gateway ends and serves no more
    ├── ListenError            the gateway cannot listen at its address (in use, not permitted)
    ├── EmbeddedError          the bundled model is not installed, not verified, or did not start
    ├── CodeSetupError         Serena or a language server cannot be installed
    ├── BundleError            an offline bundle cannot be made, or is not as it was made
    └── BackendError           one attempt at one server failed; the class decides what is tried next (FB-2)
        ├── EndpointDownError      nothing listens, the name is unknown, the connection was cut before the first byte
        ├── EndpointLoadingError   the server is up and still loading its model
        ├── EndpointBusyError      the server has no room now (carries Retry-After)
        ├── KeyRefusedError        401 or 403: never retried at this endpoint
        ├── UnknownModelError      this server does not have the model
        ├── ModelChangedError      this server has other weights under the name than were recorded
        ├── ContextOverflowError   the prompt exceeds the window (carries both counts where the server tells)
        ├── RequestRefusedError    the server calls the request invalid
        ├── ServerFailedError      5xx that is none of the above
        ├── NonsenseError          the answer is not what the protocol allows
        ├── PhaseTimeoutError      connect, first byte, silence or total limit passed (the phase is named)
        ├── StreamBrokenError      the answer broke off after output had begun: never retried, carries what came
        └── CallerLeftError        whoever asked left meanwhile: never raised, it is in the attempt's record

Every message says what happened, where, and (``hint``) what to do next. ``exit_code`` is the command line's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from turnout.hidden import without_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.types import AttemptRecord

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_NO_SERVICE, EXIT_REFUSED = 0, 1, 2, 3, 4


class TurnoutError(Exception):
    """Base of all errors of Turnout.

    Args:
        message: what happened and where, one line.
        hint: what to do next, one line, or "".
    """

    exit_code = EXIT_FAILED
    code = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = without_secrets(message)
        self.hint = without_secrets(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(TurnoutError):
    """The configuration is wrong.

    Args:
        message: what is wrong.
        file: path of the file, or "" for a dict.
        line: 1-based line in the file, or 0 when unknown.
        key: dotted key path, for example ``services.ollama.timeout``.
        hint: the nearest valid key, or the values that are allowed.
    """

    exit_code = EXIT_USAGE
    code = "config"

    def __init__(self, message: str, *, file: str = "", line: int = 0, key: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file, self.line, self.key = file, line, key

    def __str__(self) -> str:
        place = ":".join(part for part in (self.file, str(self.line) if self.line else "") if part)
        head = ": ".join(part for part in (place, self.key, self.message) if part)
        return f"{head} ({self.hint})" if self.hint else head


class UsageError(TurnoutError):
    """The request cannot be served as given: empty, binary, or longer than any limit."""

    exit_code = EXIT_USAGE
    code = "invalid_request"


class NoServiceError(TurnoutError):
    """No local LLM service is available. ``probed`` holds ``(where, why not)`` pairs."""

    exit_code = EXIT_NO_SERVICE
    code = "no_service"

    def __init__(
        self,
        message: str = "no local LLM service available",
        *,
        hint: str = "",
        probed: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.probed = probed


class NoSuitableModelError(TurnoutError):
    """Servers answered, and none has a model that this request can use.

    Args:
        needed: the capabilities that the request needs and the models lack (``tools``, ``vision``, ``chat``); empty
            when nobody has the model that was asked for.
    """

    code = "no_suitable_model"

    def __init__(self, message: str, *, hint: str = "", needed: frozenset[str] = frozenset()) -> None:
        super().__init__(message, hint=hint)
        self.needed = needed


class QueryFailedError(TurnoutError):
    """Every attempt failed (fallback level 4). ``attempts`` holds each with its error and duration."""

    code = "query_failed"

    def __init__(
        self,
        message: str,
        *,
        attempts: tuple[AttemptRecord, ...] = (),
        cause: BackendError | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.attempts = attempts
        self.cause = cause


class GuardError(TurnoutError):
    """The egress guard refused a destination. Nothing was resolved or dialled.

    Args:
        message: what was refused and why.
        target: the destination as it was written, without credentials.
    """

    exit_code = EXIT_REFUSED
    code = "refused_by_guard"

    def __init__(self, message: str, *, target: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.target = target


class NotPermittedError(TurnoutError):
    """Whoever asks may not have what was asked for: the key has limits."""

    exit_code = EXIT_REFUSED
    code = "not_permitted"


class ModelBlockedError(NotPermittedError):
    """The model is not the one that was recorded, or is not verified and has to be (SPEC SEC-4)."""

    code = "model_blocked"


class AuditError(TurnoutError):
    """The audit log cannot be written, so no query is run."""

    code = "audit_unavailable"


class StorageError(TurnoutError):
    """A file or directory of ours cannot be read or written."""

    code = "storage"


class ArchiveError(TurnoutError):
    """A model's archive is not what was signed, or cannot be made of what is there; nothing was put anywhere."""

    code = "archive"


class EditError(TurnoutError):
    """Proposed edits cannot be carried out, or not be taken back; nothing was changed.

    Args:
        message: which file, and why.
        nearest: the lines of the file that are most like those that were looked for, with their numbers.
    """

    code = "edit"

    def __init__(self, message: str, *, hint: str = "", nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.nearest = nearest


class StoppingError(TurnoutError):
    """The gateway is about to end: it takes no request, and ends those that took longer than it waits."""

    code = "stopping"

    def __init__(self) -> None:
        super().__init__("the gateway is stopping", hint="ask again")


class ListenError(TurnoutError):
    """The gateway cannot listen at its address: the port is in use, or this user may not have it."""

    code = "listen"


class EmbeddedError(TurnoutError):
    """The bundled demonstration model is missing, damaged, or did not start."""

    code = "embedded"


class CodeSetupError(TurnoutError):
    """Serena or a language server cannot be installed, or what was installed is something else."""

    code = "code_setup"


class BundleError(TurnoutError):
    """An offline bundle cannot be made, or one is not as it was made."""

    code = "bundle"


class BackendError(TurnoutError):
    """One attempt at one endpoint failed.

    Args:
        message: what the server said or what happened, one line, already shortened.
        endpoint: the endpoint's name.
        status: HTTP status, or 0 when there was none.
        hint: what to do next; without one, the advice of the class.
    """

    code = "backend"
    http_status = 502
    advice: ClassVar[str] = "`turnout discover` shows the state of each server"  # ``{where}`` is the endpoint

    def __init__(self, message: str, *, endpoint: str = "", status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint or self.advice.format(where=endpoint or "the server"))
        self.endpoint, self.status = endpoint, status

    def saying(self, message: str) -> Self:
        """The same error in other words."""
        other = type(self).__new__(type(self), message)
        other.__dict__.update(self.__dict__)
        other.message = message
        return other


class EndpointDownError(BackendError):
    """Nothing listens there, or the connection was cut before the first byte."""

    code = "endpoint_down"
    advice = "see whether {where} runs and what its log says; `turnout discover` shows what answers"


class EndpointLoadingError(BackendError):
    """The server is up and still loading a model. ``retry_after`` in seconds, 0 when not told."""

    code = "loading"
    advice = "ask again in a moment: {where} answers when its model is loaded"
    http_status = 503

    def __init__(
        self, message: str, *, endpoint: str = "", status: int = 0, hint: str = "", retry_after: float = 0.0
    ) -> None:
        told = f"ask again in {retry_after:g} s" if retry_after else ""
        super().__init__(message, endpoint=endpoint, status=status, hint=hint or told)
        self.retry_after = retry_after


class EndpointBusyError(EndpointLoadingError):
    """The server has no room for this request now. ``retry_after`` in seconds, 0 when not told."""

    code = "busy"
    advice = "ask again later, or add a server; `turnout top` shows which are busy"


class KeyRefusedError(BackendError):
    """The server refused our key (401, 403)."""

    code = "key_refused"
    advice = "set the key of {where} in the configuration"


class UnknownModelError(BackendError):
    """The server does not have the model that was asked for."""

    code = "model_not_found"
    advice = "`turnout models` shows which models each server has"
    http_status = 404


class ModelChangedError(BackendError):
    """The server has other weights under this name than were recorded; nothing that they say is handed on."""

    code = "model_mismatch"
    advice = "`turnout models verify` shows what changed; `turnout models lock --replace` records what is there now"


class ContextOverflowError(BackendError):
    """The prompt exceeds the window.

    Args:
        prompt_tokens: tokens of the prompt as the server counted them, or 0 when it does not tell.
        window: tokens the server has room for, or 0 when it does not tell.
    """

    code = "context_length_exceeded"
    advice = "shorten or compact the conversation"
    http_status = 400

    def __init__(
        self,
        message: str,
        *,
        endpoint: str = "",
        status: int = 0,
        hint: str = "",
        prompt_tokens: int = 0,
        window: int = 0,
    ) -> None:
        super().__init__(message, endpoint=endpoint, status=status, hint=hint)
        self.prompt_tokens, self.window = prompt_tokens, window


class RequestRefusedError(BackendError):
    """The server calls the request invalid; sending it there again cannot help."""

    code = "invalid_request"
    advice = "change the request: {where} would refuse the same again"
    http_status = 400


class ServerFailedError(BackendError):
    """The server failed on its side (5xx)."""

    code = "server_failed"
    advice = "look at the log of {where}"


class NonsenseError(BackendError):
    """The server's answer is not what its protocol allows."""

    code = "nonsense"
    advice = "see whether the address of {where} is that of an LLM server, and its log"


class PhaseTimeoutError(BackendError):
    """A time limit passed. ``phase`` is ``connect``, ``first byte``, ``silence`` or ``total``."""

    code = "timeout"
    http_status = 504
    advice_of_phase: ClassVar[Mapping[str, str]] = {
        "connect": "see whether {where} is overloaded or behind a firewall",
        "first byte": "see whether {where} is overloaded; its `first_byte_timeout` is how long it is waited for",
        "silence": "ask again; if {where} only pauses so long, raise its `timeout`",
        "total": "ask for a shorter answer, or raise the `total_timeout` of {where}",
    }

    def __init__(self, message: str, *, phase: str, endpoint: str = "", hint: str = "") -> None:
        advice = self.advice_of_phase.get(phase, self.advice).format(where=endpoint or "the server")
        super().__init__(message, endpoint=endpoint, hint=hint or advice)
        self.phase = phase


class StreamBrokenError(BackendError):
    """The answer broke off after output had begun.

    Args:
        received: the text that had come. Of bytes that were handed on as they are the client has all, and it is "".
        attempts: every attempt of the request, this one last; empty below the pipeline.
    """

    code = "stream_broken"
    advice = "ask again; the log of {where} may say why"

    def __init__(
        self,
        message: str,
        *,
        endpoint: str = "",
        hint: str = "",
        received: str = "",
        attempts: tuple[AttemptRecord, ...] = (),
    ) -> None:
        super().__init__(message, endpoint=endpoint, hint=hint)
        self.received, self.attempts = received, attempts


class CallerLeftError(BackendError):
    """Whoever asked left before the answer was complete. Only ever in the record of an attempt."""

    code = "cancelled"
