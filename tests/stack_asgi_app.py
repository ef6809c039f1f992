"""What hypercorn serves in the tests of the whole stack: the same targets as the configuration of nginx has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

PIECE_SIZE = 64 * 1024


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """An application as ASGI has it."""
    if scope["type"] == "lifespan":
        return
    if scope["type"] == "websocket":
        await converse(scope, receive, send)
        return
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    content = file_content(scope["path"])
    match scope["path"]:
        case "/echo":
            token = scope["query_string"].decode().removeprefix("token=")
            await answer(send, 200, f"{scope['method']} {token}".encode())
        case "/upload":
            await answer(send, 200, b"took %d" % size)
        case _ if content is None:
            await answer(send, 404, b"nothing here\n")
        case "/trailers":
            await answer(send, 200, content, trailers=[(b"x-trailer", b"last")])
        case _:
            await answer(send, 200, b"" if scope["method"] == "HEAD" else content)


async def converse(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """A WebSocket: sends each message back, and closes when asked to with a code."""
    assert (await receive())["type"] == "websocket.connect"
    subprotocol = "echo" if "echo" in scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": subprotocol})
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text is not None and text.startswith("close "):
            code = int(text.removeprefix("close "))
            await send({"type": "websocket.close", "code": code, "reason": "as you wish"})
            return
        await send({"type": "websocket.send", "text": text, "bytes": message.get("bytes")})


def file_content(path: str) -> bytes | None:
    file = Path(os.environ["STACK_ROOT"], path.lstrip("/"))
    return file.read_bytes() if file.is_file() else None


async def answer(
    send: Send, status: int, body: bytes, *, trailers: list[tuple[bytes, bytes]] | None = None
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [], "trailers": bool(trailers)})
    for start in range(0, len(body), PIECE_SIZE):
        piece = body[start : start + PIECE_SIZE]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    if trailers:
        await send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})
