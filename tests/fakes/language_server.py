"""A language server that fails on purpose: ``python language_server.py WHAT [FILE]``.

It speaks the framing and the life cycle of LSP, and knows one definition, ``total`` in the first line. It leaves out
everything else that servers do: real ones are in tests/code/test_lsp.py. ``FILE`` collects what it was told, a JSON
value a line. WHAT says what goes wrong at the first hover: nothing (``ok``), or one of the names below; ``slow`` takes
its time to start until ``FILE.go`` exists.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

WHAT = sys.argv[1]
LOG = Path(sys.argv[2]) if len(sys.argv) > 2 else None
OUT = sys.stdout.buffer
PLACE = {"start": {"line": 0, "character": 4}, "end": {"line": 0, "character": 9}}
CAN = {
    "hoverProvider": True,
    "definitionProvider": True,
    "referencesProvider": {},
    "renameProvider": True,
    "documentSymbolProvider": True,
    "workspaceSymbolProvider": False,
}


def send(message: dict[str, object], length: int = 0) -> None:
    body = json.dumps({"jsonrpc": "2.0", **message}).encode()
    OUT.write(b"Content-Length: %d\r\n\r\n" % (length or len(body)) + body)
    OUT.flush()


def receive() -> dict[str, object]:
    length = 0
    while (line := sys.stdin.buffer.readline()) not in (b"\r\n", b""):
        length = int(line.split(b":")[1])
    if not length:
        raise SystemExit(0)
    message: dict[str, object] = json.loads(sys.stdin.buffer.read(length))
    if LOG is not None:
        with LOG.open("a") as log:
            log.write(json.dumps(message) + "\n")
    return message


def hover(number: object, uri: str) -> None:
    good = {"id": number, "result": {"contents": {"kind": "plaintext", "value": "int"}}}
    if WHAT == "crash":
        sys.stderr.write("panicked at /secret/place\n")
        raise SystemExit(3)
    if WHAT == "hang":
        time.sleep(3600)
    if WHAT == "silent":  # this one question is never answered
        return
    if WHAT == "garbage":
        OUT.write(b"Traceback (most recent call last):\nboom\n")
    elif WHAT == "binary":
        OUT.write(b"Content-Length: 8\r\n\r\n\xff\xfe\x00{]]]]")
    elif WHAT == "short":
        send(good, length=3)
    elif WHAT == "long":
        send(good, length=33_000_000)
    elif WHAT == "endless":
        OUT.write(b"Content-Length: 30000000\r\n\r\n")
        while True:
            OUT.write(b" " * 65_536)
            OUT.flush()
    elif WHAT == "wrong type":
        send({"id": number, "result": {"contents": 7}})
    elif WHAT == "refused":
        send({"id": number, "error": {"code": -32603, "message": "internal error in /secret/place"}})
    elif WHAT == "unknown":
        send({"id": number, "error": {"code": -32601, "message": "Method Not Found"}})
    elif WHAT == "writes":
        edit = {"changes": {uri: [{"range": PLACE, "newText": "gone"}]}}
        send({"id": "w", "method": "workspace/applyEdit", "params": {"edit": edit}})
        send({"id": "c", "method": "workspace/configuration", "params": {"items": [{"section": "x.y"}, {}]}})
        send({"id": "u", "method": "window/unheardOf", "params": {}})
        for _ in range(3):
            receive()
        send(good)
    else:
        send(good)
    OUT.flush()


def main() -> None:
    while True:
        message = receive()
        number, method = message.get("id"), message.get("method")
        params: dict[str, dict[str, str]] = message.get("params") or {}  # type: ignore[assignment]
        if method == "initialize":
            while WHAT == "slow" and LOG is not None and not LOG.with_suffix(".go").exists():
                time.sleep(0.01)
            encoding = {"positionEncoding": "utf-8"} if WHAT == "utf-8" else {}
            send({"id": number, "result": {"capabilities": {**CAN, **encoding}}})
        elif method == "textDocument/hover":
            hover(number, params["textDocument"]["uri"])
        elif method == "textDocument/rename":
            outside = {"changes": {"file:///etc/hosts": [{"range": PLACE, "newText": "gone"}]}}
            moved = {"documentChanges": [{"kind": "rename", "oldUri": "file:///a", "newUri": "file:///b"}]}
            send({"id": number, "result": moved if WHAT == "moves" else outside})
        elif method == "textDocument/documentSymbol":
            send({"id": number, "result": [{"name": "total", "kind": 12, "range": PLACE, "selectionRange": PLACE}]})
        elif method == "textDocument/definition":
            send({"id": number, "result": {"uri": params["textDocument"]["uri"], "range": PLACE}})
        elif method == "shutdown":
            send({"id": number, "result": None})
        elif method == "exit":
            raise SystemExit(0)
        elif number is not None:
            send({"id": number, "result": None})


if __name__ == "__main__":
    main()
