"""A body that is wanted as a whole, read straight into its place, over streams that can do that."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pool_helpers
from lamina_interfaces import NetworkStream, ReadError, ReadTimeout, RemoteProtocolError
from lamina_pool import (
    BodyReceived,
    ConnectionPool,
    PoolEvent,
    Request,
    Response,
    ResponseStateError,
    _connection,
)
from lamina_pool._connection import MAX_DIRECT_BYTES, MIN_DIRECT_BYTES, HTTP11Connection
from pool_helpers import (
    EOF,
    HEAD,
    OK,
    RESET,
    Call,
    DirectStream,
    Script,
    ScriptedBackend,
    checked_pool,
    response,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina_interfaces import BytesLike

URL = "http://a.test/"
BODY = bytes(range(256)) * 4096  # 1 MiB
ANSWER = response(BODY)
BODY_AT = len(ANSWER) - len(BODY)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The data in pieces, cut at these places."""
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start < end]


def direct(*steps: Any) -> ScriptedBackend:
    return ScriptedBackend(Script(*steps, direct=True))


def reads(backend: ScriptedBackend) -> list[str]:
    return [call for call in backend.streams[0].log if call.startswith("read")]


def ask(pool: ConnectionPool, method: str = "GET", **extensions: Any) -> Response:
    return pool.handle_request(
        Request(method, URL, headers=[(b"Host", b"a.test")], extensions=dict(extensions))
    )


def test_what_has_not_come_with_the_head_is_read_into_its_place() -> None:
    backend = direct(HEAD, *cut(ANSWER, [BODY_AT + 1000]), HEAD, OK)
    with checked_pool(backend) as pool:
        assert pool.request("GET", URL).content == BODY
        assert reads(backend) == ["read", f"read into {len(BODY) - 1000}"]
        assert pool.request("GET", URL).content == b"ok"  # over the same connection


def test_where_only_the_head_has_come_the_first_piece_is_waited_for_like_any() -> None:
    backend = direct(HEAD, *cut(ANSWER, [BODY_AT, BODY_AT + 5000]), HEAD, OK)
    with checked_pool(backend) as pool:
        assert pool.request("GET", URL).content == BODY
        assert reads(backend) == ["read", "read", f"read into {len(BODY) - 5000}"]
        assert pool.request("GET", URL).content == b"ok"


@given(places=st.lists(st.integers(1, len(ANSWER) - 1), max_size=12))
def test_wherever_it_is_cut(places: list[int]) -> None:
    backend = direct(HEAD, *cut(ANSWER, places), HEAD, OK)
    with checked_pool(backend) as pool:
        assert pool.request("GET", URL).content == BODY
        assert pool.request("GET", URL).content == b"ok"


def test_bytes_behind_the_body_are_never_asked_for_and_keep_the_connection_from_being_used_again() -> None:
    backend = ScriptedBackend(Script(HEAD, *cut(ANSWER, [BODY_AT + 9]), OK, direct=True), [HEAD, OK])
    with checked_pool(backend) as pool:
        assert pool.request("GET", URL).content == BODY
        assert pool.request("GET", URL).content == b"ok"
        assert len(backend.dials) == 2


def test_bytes_behind_the_body_that_came_with_its_end_are_no_part_of_it() -> None:
    backend = ScriptedBackend(Script(HEAD, ANSWER[:70000], ANSWER[70000:] + OK, direct=True), [HEAD, OK])
    with checked_pool(backend) as pool:
        assert pool.request("GET", URL).content == BODY
        assert pool.request("GET", URL).content == b"ok"
        assert len(backend.dials) == 2


@pytest.mark.parametrize(
    ("end", "error"), [(EOF, RemoteProtocolError), (RESET, ReadError)], ids=["ends", "breaks"]
)
@pytest.mark.parametrize("at", [BODY_AT + 1, BODY_AT + 700_000, len(ANSWER) - 1])
def test_a_body_that_is_cut_off_is_an_error(end: object, error: type[Exception], at: int) -> None:
    backend = direct(HEAD, *cut(ANSWER[:at], [BODY_AT]), end)
    with checked_pool(backend) as pool:
        with pytest.raises(error) as raised:
            pool.request("GET", URL)
        assert raised.value.phase == "read"  # type: ignore[attr-defined] # all of ours have one
        assert raised.value.origin == "http://a.test:80"  # type: ignore[attr-defined] # as above
        assert pool.stats().connections == 0


def test_the_read_timeout_holds_for_each_wait() -> None:
    backend = direct(HEAD, ANSWER[: BODY_AT + 100_000])
    with checked_pool(backend) as pool:
        reply = ask(pool, timeout={"read": 3.0})
        with pytest.raises(ReadTimeout):
            reply.read()
        reply.close()
        assert set(backend.streams[0].timeouts[1:]) == {3.0}
        assert pool.stats().connections == 0


def test_whoever_closes_the_response_meanwhile_ends_the_read() -> None:
    waiting = threading.Event()
    backend = direct(HEAD, ANSWER[: BODY_AT + 100_000], Call(waiting.set))
    with checked_pool(backend) as pool:
        reply = ask(pool)

        def close() -> None:
            waiting.wait(10)
            reply.close()

        closer = threading.Thread(target=close)
        closer.start()
        with pytest.raises(ReadError):
            reply.read()
        closer.join()
        assert pool.stats().connections == 0


def test_a_small_rest_is_read_as_it_comes() -> None:
    body = b"x" * (MIN_DIRECT_BYTES - 1)
    answer = response(body)
    backend = direct(HEAD, *cut(answer, [len(answer) - len(body), len(answer) - len(body) + 1]))
    with checked_pool(backend) as pool:
        assert pool.request("GET", URL).content == body
        assert reads(backend) == ["read"] * 3


def test_memory_is_taken_on_the_servers_word_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_DIRECT_BYTES <= 16 * 2**20
    monkeypatch.setattr(_connection, "MAX_DIRECT_BYTES", 100_000)
    backend = direct(HEAD, *cut(ANSWER, [BODY_AT + 10]), HEAD, OK)
    with checked_pool(backend) as pool:
        assert pool.request("GET", URL).content == BODY
        asked = [int(call.split()[-1]) for call in reads(backend) if "into" in call]
        assert max(asked) <= 100_000
        assert pool.request("GET", URL).content == b"ok"


def test_a_response_that_is_read_piece_by_piece_first_gives_the_rest_in_one() -> None:
    backend = direct(HEAD, *cut(ANSWER, [BODY_AT + 1000, BODY_AT + 2000]), HEAD, OK)
    with checked_pool(backend) as pool:
        reply = ask(pool)
        stream: Any = reply.stream
        assert next(stream) == BODY[:1000]
        assert stream.read_whole() == BODY[1000:]
        reply.close()
        assert pool.request("GET", URL).content == b"ok"


@pytest.mark.parametrize(
    "length", [b"Transfer-Encoding: chunked", b"Connection: close"], ids=["chunks", "close"]
)
def test_a_body_of_unknown_length_is_read_in_pieces(length: bytes) -> None:
    is_chunked = b"chunked" in length
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if is_chunked else BODY
    backend = direct(HEAD, b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n", framed, EOF)
    with checked_pool(backend) as pool:
        assert pool.request("GET", URL).content == BODY
        assert not any("into" in call for call in reads(backend))


def test_an_answer_to_head_has_no_body_to_wait_for() -> None:
    backend = direct(HEAD, ANSWER[:BODY_AT], HEAD, OK)
    with checked_pool(backend) as pool:
        assert pool.request("HEAD", URL).content == b""
        assert pool.request("GET", URL).content == b"ok"


def test_a_listener_and_a_trace_are_told_of_all_the_bytes() -> None:
    told: list[str] = []
    sizes: list[int] = []

    def on_event(event: PoolEvent) -> None:
        if isinstance(event, BodyReceived):
            sizes.append(event.size)

    backend = direct(HEAD, *cut(ANSWER, [BODY_AT + 1000]))
    with checked_pool(backend, on_event=on_event) as pool:
        reply = ask(pool, trace=lambda name, info: told.append(name))
        assert reply.read() == BODY
        reply.close()
    assert told.count("http11.receive_response_body.started") == 1
    assert told.count("http11.receive_response_body.complete") == 1
    assert sizes == [len(BODY)]


class Counting(DirectStream):
    """Somebody's own, who knew of `read` only."""

    count = 0

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        data = super().read(max_bytes, timeout)
        self.count += len(data)
        return data


class Wrapper(NetworkStream):
    """The same as a wrapper that passes on what it does not know."""

    def __init__(self, *arguments: Any) -> None:
        self.inner = DirectStream(*arguments)
        self.count = 0

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        data = self.inner.read(max_bytes, timeout)
        self.count += len(data)
        return data

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        self.inner.write(buffer, timeout)

    def close(self) -> None:
        self.inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class WrapperOfDerived(NetworkStream):
    """One that passes on all, around somebody's own class."""

    def __init__(self, *arguments: Any) -> None:
        self.inner = Counting(*arguments)

    def __getattribute__(self, name: str) -> Any:
        inner = object.__getattribute__(self, "__dict__").get("inner")
        return object.__getattribute__(self, name) if inner is None else getattr(inner, name)


class CountingInstance(DirectStream):
    """The same by an attribute of the one instance."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.count = 0
        self.read = self._counted  # type: ignore[method-assign] # which is the point

    def _counted(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        data = DirectStream.read(self, max_bytes, timeout)
        self.count += len(data)
        return data


@pytest.mark.parametrize("kind", [Counting, Wrapper, WrapperOfDerived, CountingInstance])
def test_nobodys_own_read_is_passed_by(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_helpers, "DirectStream", kind)
    backend = direct(HEAD, ANSWER, HEAD, OK)
    with checked_pool(backend) as pool:
        assert pool.request("GET", URL).content == BODY
        stream: Any = backend.streams[0]
        assert stream.count == len(ANSWER)
        assert not any("into" in call for call in reads(backend))
        assert pool.request("GET", URL).content == b"ok"


def test_what_a_custom_stream_has_for_bytes_becomes_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    read = DirectStream.read

    def read_mutable(self: Any, max_bytes: int | None = None, timeout: float | None = None) -> Any:
        return bytearray(read(self, max_bytes, timeout))

    monkeypatch.setattr(pool_helpers.WatchfulStream, "read", read_mutable)
    backend = ScriptedBackend([HEAD, *cut(ANSWER, [BODY_AT])])
    with checked_pool(backend) as pool:
        content = pool.request("GET", URL).content
        assert type(content) is bytes
        assert content == BODY


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_interrupt_while_the_whole_body_is_taken_leaves_nothing_open(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = HTTP11Connection.take_whole

    def struck(self: HTTP11Connection) -> bytes:
        if place == "after":
            take(self)
        raise KeyboardInterrupt

    with checked_pool(direct(HEAD, OK)) as pool:
        reply = ask(pool)
        with monkeypatch.context() as patch:
            patch.setattr(HTTP11Connection, "take_whole", struck)
            with pytest.raises(KeyboardInterrupt):
                reply.read()
        assert pool.stats().connections == 0
        stream: Any = reply.stream
        with pytest.raises(ResponseStateError):
            stream.read_whole()
