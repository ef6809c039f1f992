"""A stand-in for the APIs of openai and anthropic: just enough of them for their SDKs. Hypercorn serves it.

What the model is called decides what it does: `busy` refuses the first attempt of each request with 429, `silent`
never answers, `stuck` stops within a streamed answer, and any other one says `WORDS`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

WORDS = ["Hello", ", ", "world", "!"]
FILLING = b"\xfe"
"""What uploads are made of, so that their bytes can be told from those around them."""


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """An application as ASGI has it."""
    if scope["type"] == "lifespan":
        return
    headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
    body = await whole_body(receive)
    if "multipart/form-data" in headers.get("content-type", ""):
        await answer(send, 200, json.dumps(file(body.count(FILLING))).encode())
        return
    asked = json.loads(body)
    if asked["model"] == "busy" and headers["x-stainless-retry-count"] == "0":
        await answer(send, 429, b'{"error": {"message": "later"}}', [(b"retry-after-ms", b"10")])
    elif asked["model"] == "silent":
        await disconnected(receive)
    else:
        is_chat = scope["path"].endswith("/chat/completions")
        if asked.get("stream"):
            events = chat_events() if is_chat else message_events()
            await begin_stream(send)
            if asked["model"] == "stuck":
                await send_event(send, next(events))
                await disconnected(receive)
                return
            for event in events:
                await send_event(send, event)
            await send({"type": "http.response.body", "body": b""})
        else:
            await answer(send, 200, json.dumps(chat() if is_chat else message()).encode())


async def whole_body(receive: Receive) -> bytes:
    body = b""
    more = True
    while more:
        received = await receive()
        body += received.get("body", b"")
        more = received.get("more_body", False)
    return body


async def answer(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    both = [(b"content-type", b"application/json"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": both})
    await send({"type": "http.response.body", "body": body})


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def begin_stream(send: Send) -> None:
    """Of server-sent events, each of which goes out in a piece of its own."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_event(send: Send, event: str) -> None:
    await send({"type": "http.response.body", "body": event.encode(), "more_body": True})


# --- what openai says --------------------------------------------------------------------------------------------


def chat(choice: dict[str, Any] | None = None, kind: str = "chat.completion") -> dict[str, Any]:
    if choice is None:
        text = "".join(WORDS)
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-1",
        "object": kind,
        "created": 1,
        "model": "any",
        "choices": [{"index": 0, **choice}],
    }


def chat_events() -> Iterator[str]:
    for word in WORDS:
        choice = {"delta": {"role": "assistant", "content": word}, "finish_reason": None}
        yield f"data: {json.dumps(chat(choice, 'chat.completion.chunk'))}\n\n"
    yield "data: [DONE]\n\n"


def file(size: int) -> dict[str, Any]:
    """The description of a file that was uploaded, in the words of both."""
    return {
        "id": "file-1",
        "filename": "f",
        "created_at": 1,
        "object": "file",
        "bytes": size,
        "purpose": "assistants",
        "status": "processed",
        "type": "file",
        "size_bytes": size,
        "mime_type": "text/plain",
    }


# --- what anthropic says -----------------------------------------------------------------------------------------


def message(text: str | None = "".join(WORDS)) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "any",
        "content": [] if text is None else [{"type": "text", "text": text}],
        "stop_reason": None if text is None else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def message_events() -> Iterator[str]:
    def event(kind: str, **fields: Any) -> str:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"

    yield event("message_start", message=message(None))
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for word in WORDS:
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    yield event("content_block_stop", index=0)
    yield event(
        "message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage={"output_tokens": 4},
    )
    yield event("message_stop")
