"""The blocking pool as its users meet it: arguments, dialling, time limits, errors."""

from __future__ import annotations

import inspect
import pickle
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectError,
    ConnectTimeout,
    Deadline,
    DeadlineExceeded,
    LaminaError,
    Limit,
    LocalProtocolError,
    NetworkBackend,
    NetworkBackendInterface,
    NetworkStreamInterface,
    PoolClosed,
    PoolTimeout,
    ReadTimeout,
    RemoteProtocolError,
    ThreadRuntime,
    UnsupportedProtocol,
    WriteError,
    close_deadline,
    open_deadline,
)
from lamina_pool import ConnectionPool, Origin, PooledConnection, PoolStats, Proxy, Request
from lamina_pool._checks import check_request
from pool_loopback import (
    MemoryBackend,
    MemoryStream,
    Worker,
    request_for,
    response,
    target_of,
    until,
    wait_on,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

URL = "http://example.com/"


class Ambient:
    """What `lamina_timeouts.timeout` is, without being installed."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def __enter__(self) -> Deadline:
        self.deadline = open_deadline(self._seconds, time.monotonic)
        return self.deadline

    def __exit__(self, *exc_info: object) -> None:
        close_deadline(self.deadline)


def silent(stream: MemoryStream, head: bytes, body: bytes) -> None:
    """A server that never answers."""


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


# --- signatures and arguments ------------------------------------------------------------------------------

NO_DEFAULT = inspect.Parameter.empty

# httpcore 1.0, `help(httpcore.ConnectionPool)`: name and default of each parameter, in order.
HTTPCORE_SIGNATURES: dict[str, list[tuple[str, Any]]] = {
    "__init__": [
        ("self", NO_DEFAULT),
        ("ssl_context", None),
        ("proxy", None),
        ("max_connections", 10),
        ("max_keepalive_connections", None),
        ("keepalive_expiry", None),
        ("http1", True),
        ("http2", False),
        ("retries", 0),
        ("local_address", None),
        ("uds", None),
        ("network_backend", None),
        ("socket_options", None),
    ],
    "request": [
        ("self", NO_DEFAULT),
        ("method", NO_DEFAULT),
        ("url", NO_DEFAULT),
        ("headers", None),
        ("content", None),
        ("extensions", None),
    ],
    "stream": [
        ("self", NO_DEFAULT),
        ("method", NO_DEFAULT),
        ("url", NO_DEFAULT),
        ("headers", None),
        ("content", None),
        ("extensions", None),
    ],
    "handle_request": [("self", NO_DEFAULT), ("request", NO_DEFAULT)],
    "close": [("self", NO_DEFAULT)],
}
HTTPCORE_KEYWORD_ONLY = {"headers", "content", "extensions"}


@pytest.mark.parametrize("name", HTTPCORE_SIGNATURES)
def test_has_the_signatures_of_httpcore(name: str) -> None:
    parameters = list(inspect.signature(getattr(ConnectionPool, name)).parameters.values())
    expected = HTTPCORE_SIGNATURES[name]
    assert [(p.name, p.default) for p in parameters[: len(expected)]] == expected
    for parameter in parameters[: len(expected)]:
        keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert keyword_only == (parameter.name in HTTPCORE_KEYWORD_ONLY)
    for ours in parameters[len(expected) :]:
        assert ours.kind is inspect.Parameter.KEYWORD_ONLY
        assert ours.default is not NO_DEFAULT


def test_is_what_httpcore_clients_look_at() -> None:
    assert isinstance(inspect.getattr_static(ConnectionPool, "connections"), property)
    assert hasattr(ConnectionPool, "__enter__")
    assert hasattr(ConnectionPool, "__exit__")
    assert ConnectionPool.__module__ == "lamina_pool"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"max_connections": 0}, ArgumentValueError, "max_connections"),
        ({"max_connections": -1}, ArgumentValueError, "max_connections"),
        ({"max_connections": 1.5}, ArgumentTypeError, "max_connections"),
        ({"max_connections": True}, ArgumentTypeError, "max_connections"),
        ({"max_connections": "10"}, ArgumentTypeError, "max_connections"),
        ({"max_connections_per_origin": 0}, ArgumentValueError, "max_connections_per_origin"),
        ({"max_keepalive_connections": -1}, ArgumentValueError, "max_keepalive_connections"),
        ({"keepalive_expiry": -0.1}, ArgumentValueError, "keepalive_expiry"),
        ({"keepalive_expiry": float("nan")}, ArgumentValueError, "keepalive_expiry"),
        ({"keepalive_expiry": "5"}, ArgumentTypeError, "keepalive_expiry"),
        ({"max_connection_age": -1}, ArgumentValueError, "max_connection_age"),
        ({"age_jitter": 1.1}, ArgumentValueError, "age_jitter"),
        ({"age_jitter": float("nan")}, ArgumentValueError, "age_jitter"),
        ({"retries": -1}, ArgumentValueError, "retries"),
        ({"retries": 1.0}, ArgumentTypeError, "retries"),
        ({"retries": None}, ArgumentTypeError, "retries"),
        ({"http1": False}, ArgumentValueError, "http1 or http2"),
        ({"http2": True, "http2_ping_interval": -1}, ArgumentValueError, "http2_ping_interval"),
        ({"http2": True, "http2_ping_timeout": "1"}, ArgumentTypeError, "http2_ping_timeout"),
        ({"proxy": "http://proxy.example"}, ArgumentTypeError, "must be a Proxy, not str"),
        (
            {"proxy": Proxy("socks4://proxy.example:1080")},
            UnsupportedProtocol,
            "socks5 or socks5h, not 'socks4'",
        ),
        ({"uds": "/run/x", "local_address": "127.0.0.1"}, ArgumentValueError, "uds"),
    ],
)
def test_refuses_arguments_that_make_no_sense(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        ConnectionPool(**arguments)
    assert isinstance(caught.value, LaminaError)


def test_http2_without_h2_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina_pool._settings.has_h2", lambda: False)
    ConnectionPool().close()
    with pytest.raises(UnsupportedProtocol, match=r"pip install 'lamina-pool\[http2\]'"):
        ConnectionPool(http2=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_connections": None, "max_keepalive_connections": None, "keepalive_expiry": None},
        {"max_keepalive_connections": 0, "keepalive_expiry": 0, "max_connection_age": 0},
        {"keepalive_expiry": float("inf"), "age_jitter": 0},
    ],
)
def test_accepts_the_ends_of_each_range(backend: MemoryBackend, arguments: dict[str, Any]) -> None:
    with ConnectionPool(network_backend=backend, **arguments) as pool:
        assert pool.request("GET", URL).content == b"/"
        assert pool.request("GET", URL).content == b"/"
    assert backend.live == 0


@pytest.mark.parametrize("timeout", [{"connect": -1}, {"pool": float("nan")}, {"read": "1"}, {"conect": 1}])
def test_bad_timeouts_are_refused_before_anything_is_opened_J08(
    backend: MemoryBackend, timeout: dict[str, Any]
) -> None:
    with (
        ConnectionPool(network_backend=backend) as pool,
        pytest.raises((ArgumentValueError, ArgumentTypeError)),
    ):
        pool.request("GET", URL, extensions={"timeout": timeout})
    assert backend.calls == []


def test_what_cannot_be_sent_opens_no_connection_J01(backend: MemoryBackend) -> None:
    with ConnectionPool(network_backend=backend) as pool:
        for arguments in (("GE T", URL), ("GET", "http:///"), ("GET", "ftp://example.com/")):
            with pytest.raises(LaminaError):
                pool.request(*arguments)
        with pytest.raises(LaminaError):
            pool.request("GET", URL, headers=[("X", "a\r\nb")])
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)
    assert backend.calls == []


# --- what it shows of itself -------------------------------------------------------------------------------


def test_repr_and_stats_tell_each_state() -> None:
    gate = threading.Event()
    entered = threading.Event()
    backend = MemoryBackend()

    def slow(limit: Limit) -> None:
        entered.set()
        assert gate.wait(10)

    backend.on_connect = slow
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        assert repr(pool) == "<ConnectionPool [Requests: 0 active, 0 queued | Connections: 0 active, 0 idle]>"
        assert pool.connections == []

        first = Worker(pool.handle_request, request_for(URL))
        assert entered.wait(10)
        assert pool.stats() == PoolStats(connections=1, active=0, idle=0, connecting=1, queued=0, requests=0)
        assert repr(pool) == "<ConnectionPool [Requests: 1 active, 0 queued | Connections: 1 active, 0 idle]>"
        assert repr(pool.connections) == "[<PooledConnection [CONNECTING]>]"

        second = Worker(pool.request, "GET", URL)
        until(lambda: pool.stats().queued == 1)
        assert repr(pool) == "<ConnectionPool [Requests: 1 active, 1 queued | Connections: 1 active, 0 idle]>"

        gate.set()
        held = first.result()
        assert pool.stats() == PoolStats(connections=1, active=1, idle=0, connecting=0, queued=1, requests=1)
        assert [c.info() for c in pool.connections] == [
            "'http://example.com:80', HTTP/1.1, ACTIVE, Request Count: 1"
        ]
        held.read()
        second.result()
        assert pool.stats() == PoolStats(connections=1, active=0, idle=1, connecting=0, queued=0, requests=0)
        assert repr(pool) == "<ConnectionPool [Requests: 0 active, 0 queued | Connections: 0 active, 1 idle]>"
        (connection,) = pool.connections
        assert connection == PooledConnection(Origin(b"http", b"example.com", 80), "HTTP/1.1", "IDLE", 2)
        assert (connection.is_idle(), connection.is_available(), connection.is_closed()) == (
            True,
            True,
            False,
        )
    assert pool.connections == []
    assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


# --- what is asked of the backend --------------------------------------------------------------------------


def test_host_port_and_options_are_passed_on(backend: MemoryBackend) -> None:
    options = [(1, 2, 3)]
    with ConnectionPool(network_backend=backend, local_address="127.0.0.9", socket_options=options) as pool:
        pool.request("GET", "http://example.com:8080/")
    assert backend.calls == [("connect_tcp", "example.com", 8080, None, "127.0.0.9", ((1, 2, 3),))]


def test_socket_options_may_be_an_iterator(backend: MemoryBackend) -> None:
    with ConnectionPool(network_backend=backend, socket_options=iter([(1, 2, 3)])) as pool:
        pool.request("GET", "http://a.example/")
        pool.request("GET", "http://b.example/")
    assert [call[-1] for call in backend.calls] == [((1, 2, 3),), ((1, 2, 3),)]


def test_a_unix_socket_takes_the_place_of_host_and_port(backend: MemoryBackend) -> None:
    with ConnectionPool(network_backend=backend, uds="/run/x.sock", socket_options=[(1, 2, 3)]) as pool:
        got = pool.request("GET", "http://example.com:8080/", extensions={"timeout": {"connect": None}})
        pool.request("GET", "http://example.com:8080/")
    assert backend.calls == [("connect_unix_socket", "/run/x.sock", None, ((1, 2, 3),))]
    assert got.content == b"/"
    assert b"example.com:8080" in backend.streams[0].requests[0]


def test_an_interface_of_the_second_dialect_is_a_backend_too() -> None:
    class Stream(NetworkStreamInterface):
        def __init__(self) -> None:
            self.incoming = b""

        def read(self, max_bytes: int | None = None) -> bytes:
            data, self.incoming = self.incoming, b""
            return data

        def write(self, data: Any) -> None:
            self.incoming += response(target_of(bytes(data)))

        def close(self) -> None:
            pass

    class Backend(NetworkBackendInterface):
        def connect(self, host: str, port: int) -> Stream:
            return Stream()

    with ConnectionPool(network_backend=Backend()) as pool:
        assert pool.request("GET", "http://example.com/token").content == b"/token"


def test_the_connection_key_holds_the_name_of_the_certificate_C03(backend: MemoryBackend) -> None:
    with ConnectionPool(network_backend=backend, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as pool:
        for name in (None, "a.example", "b.example", "a.example", None):
            extensions = {} if name is None else {"sni_hostname": name}
            pool.request("GET", "https://192.0.2.1/", extensions=extensions)
    assert [stream.tls for stream in backend.streams] == [["192.0.2.1"], ["a.example"], ["b.example"]]
    assert [len(stream.requests) for stream in backend.streams] == [2, 2, 1]


def test_what_one_request_needs_of_its_connection_is_not_needed_by_the_next() -> None:
    url = "https://a.example/"
    upgrade = Request("GET", url, headers={"Host": "a.example", "Connection": "upgrade", "Upgrade": "x"})
    plain, named = request_for(url), request_for(url, extensions={"sni_hostname": "b.example"})
    connect = request_for(url, "CONNECT", extensions={"target": b"c.example:443"})
    both = ("h2", "http/1.1")
    table = [
        (plain, None, both),
        (upgrade, None, both[1:]),
        (plain, None, both),
        (named, "b.example", both),
        (connect, None, both[1:]),
        (plain, None, both),
        (request_for("http://a.example/"), None, both[1:]),
        (plain, None, both),
    ]
    for rows in (table, table[1:], table[3:], table[::-1]):
        with ConnectionPool(http2=True) as pool:
            for request, hostname, protocols in rows:
                key, _ = pool._pool._route(request, check_request(request, blocking=True))
                assert key == (request.url.origin, hostname, protocols, "direct")


def test_origins_do_not_share_connections(backend: MemoryBackend) -> None:
    urls = ["http://a.example/", "http://b.example/", "http://a.example:81/", "http://A.example:80/"]
    with ConnectionPool(network_backend=backend) as pool:
        for url in urls:
            pool.request("GET", url)
    assert [call[1:3] for call in backend.calls] == [("a.example", 80), ("b.example", 80), ("a.example", 81)]


def test_a_body_that_was_not_announced_is_an_error_and_is_closed(backend: MemoryBackend) -> None:
    closed = threading.Event()

    def pieces() -> Iterator[bytes]:
        try:
            yield b"body"
        finally:
            closed.set()

    with ConnectionPool(network_backend=backend) as pool:
        with pytest.raises(LocalProtocolError):
            pool.handle_request(request_for(URL, "POST", content=pieces()))
        assert closed.is_set()
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


# --- retries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConnectError, ConnectTimeout])
def test_a_failed_attempt_is_repeated_with_growing_pauses(
    backend: MemoryBackend, error: type[LaminaError]
) -> None:
    left = 4

    def refuse(limit: Limit) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error("refused")

    backend.on_connect = refuse
    with ConnectionPool(network_backend=backend, retries=4) as pool:
        assert pool.request("GET", URL).content == b"/"
    assert backend.sleeps == [0.0, 0.5, 1.0, 2.0]
    assert len(backend.calls) == 5


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_last_failure_is_told_and_the_place_is_free_D05(backend: MemoryBackend, retries: int) -> None:
    def refuse(limit: Limit) -> None:
        raise ConnectError(f"refused {len(backend.calls)}", phase="connect", errno=111)

    backend.on_connect = refuse
    with ConnectionPool(network_backend=backend, retries=retries, max_connections=1) as pool:
        for _ in range(3):
            backend.calls.clear()
            with pytest.raises(ConnectError, match=f"refused {retries + 1}.*http://example.com:80") as caught:
                pool.request("GET", URL)
            assert caught.value.errno == 111
            assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


def test_a_handshake_that_failed_is_repeated_on_a_new_connection(backend: MemoryBackend) -> None:
    def refuse_first(stream: MemoryStream, limit: Limit) -> None:
        if stream.number == 0:
            raise ConnectError("bad handshake", phase="tls")

    backend.on_start_tls = refuse_first
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with ConnectionPool(network_backend=backend, retries=1, ssl_context=context) as pool:
        pool.request("GET", "https://example.com/")
        assert backend.streams[0].is_closed
        assert backend.live == 1


def test_nothing_but_connecting_is_retried_by_retries(backend: MemoryBackend) -> None:
    def cut(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed_eof()

    backend.answer = cut
    with ConnectionPool(network_backend=backend, retries=3) as pool, pytest.raises(RemoteProtocolError):
        pool.request("GET", URL)
    assert len(backend.streams) == 1


# --- a second chance on a stale connection -----------------------------------------------------------------


def test_a_dead_idle_connection_is_replaced_unseen_A05(backend: MemoryBackend) -> None:
    with ConnectionPool(network_backend=backend) as pool:
        pool.request("GET", URL)
        backend.streams[0].feed_eof()
        assert pool.request("POST", URL, content=b"x").status == 200
    assert len(backend.streams) == 2


def test_a_body_that_can_be_read_once_survives_a_dead_idle_connection(backend: MemoryBackend) -> None:
    with ConnectionPool(network_backend=backend) as pool:
        pool.request("GET", URL)
        backend.streams[0].feed_eof()
        pool.request(
            "POST", URL, content=(piece for piece in (b"one", b"two")), headers={"Content-Length": "6"}
        )
    assert backend.streams[1].requests[0].endswith(b"\r\n\r\nonetwo")


@pytest.mark.parametrize("headers", [{"Content-Length": "6"}, {}])
def test_a_body_that_was_begun_and_can_be_read_once_is_not_sent_again(
    backend: MemoryBackend, headers: dict[str, str]
) -> None:
    """The first write fails: no byte has been sent, but pieces of the body are gone."""
    with ConnectionPool(network_backend=backend) as pool:
        pool.request("GET", URL)
        stale = backend.streams[0]
        stale.get_extra_info = lambda info: False  # type: ignore[method-assign] # the peer's reset is on its way
        stale.break_off()
        with pytest.raises((WriteError, RemoteProtocolError)):
            pool.request("PUT", URL, content=(piece for piece in (b"one", b"two")), headers=headers)
        assert pool.stats().active == 0
    assert [stream.requests[1:] for stream in backend.streams] == [[]]


def test_the_iterator_of_a_body_is_closed_whatever_happens_G06(backend: MemoryBackend) -> None:
    closed: list[str] = []

    def body(name: str, fail: bool) -> Any:
        try:
            yield b"some"
            if fail:
                raise KeyError(name)
            yield b"more"
        finally:
            closed.append(name)

    with ConnectionPool(network_backend=backend) as pool:
        pool.request("POST", URL, content=body("a", False))
        with pytest.raises(KeyError, match="b"):
            pool.request("POST", URL, content=body("b", True))
        backend.answer = lambda stream, head, body: stream.feed_eof()
        with pytest.raises(LaminaError):
            pool.request("POST", URL, content=body("c", False))
        assert closed == ["a", "b", "c"]
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


# --- time limits -------------------------------------------------------------------------------------------


def test_each_operation_gets_its_timeout() -> None:
    seen: dict[str, Any] = {}

    class Stream(MemoryStream):
        def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
            seen["read"] = timeout
            return super().read(max_bytes, timeout)

        def write(self, buffer: Any, timeout: float | None = None) -> None:
            seen["write"] = timeout
            super().write(buffer, timeout)

    class Backend(MemoryBackend):
        def connect_tcp(
            self, host: str, port: int, timeout: float | None = None, *rest: Any, **more: Any
        ) -> Stream:
            seen["connect"] = timeout
            return Stream(self, 0)

    with ConnectionPool(network_backend=Backend()) as pool:
        timeout = {"connect": 11, "read": 12, "write": 13, "pool": 14}
        pool.request("GET", URL, extensions={"timeout": timeout})
    assert seen["connect"] == pytest.approx(11, abs=1)
    assert (seen["read"], seen["write"]) == (12, 13)


def test_connecting_and_the_handshake_share_one_budget(backend: MemoryBackend, clock: Clock) -> None:
    backend.on_connect = lambda limit: clock.advance(3.0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with clock.pool(network_backend=backend, ssl_context=context) as pool:
        pool.request("GET", "https://example.com/", extensions={"timeout": {"connect": 5.0}})
        assert [call[-1] if call[0] == "start_tls" else call[3] for call in backend.calls] == [5.0, 2.0]
        backend.calls.clear()
        with pytest.raises(ConnectTimeout, match=r"phase tls.*3\.000 s of 2 s") as caught:
            pool.request("GET", "https://other.example/", extensions={"timeout": {"connect": 2.0}})
        assert caught.value.origin == "https://other.example:443"
        assert len(backend.calls) == 1
        assert backend.live == 1


def test_a_connect_timeout_tells_the_budget_and_not_what_was_left_of_it(
    backend: MemoryBackend, clock: Clock
) -> None:
    def hang(stream: MemoryStream, limit: Limit) -> None:
        clock.advance(1.0)
        raise ConnectTimeout("slow", phase="tls", elapsed=1.0, limit=1.0)

    backend.on_connect = lambda limit: clock.advance(3.0)
    backend.on_start_tls = hang
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with clock.pool(network_backend=backend, ssl_context=context) as pool:
        with pytest.raises(ConnectTimeout) as caught:
            pool.request("GET", "https://example.com/", extensions={"timeout": {"connect": 4}})
        assert (caught.value.phase, caught.value.elapsed, caught.value.limit) == ("tls", 4.0, 4.0)
        with pytest.raises(ConnectTimeout) as caught:
            pool.request("GET", "https://example.com/")
        assert (caught.value.elapsed, caught.value.limit) == (1.0, 1.0), "there was no budget"


def test_each_attempt_to_connect_has_the_budget_anew(backend: MemoryBackend, clock: Clock) -> None:
    def slow(limit: Limit) -> None:
        clock.advance(3.0)
        if len(backend.calls) < 3:
            raise ConnectTimeout("slow")

    backend.on_connect = slow
    with clock.pool(network_backend=backend, retries=2) as pool:
        pool.request("GET", URL, extensions={"timeout": {"connect": 4.0}})
    assert [call[3] for call in backend.calls] == [4.0, 4.0, 4.0]


class Clock:
    """Time that stands still until a test lets it pass."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pools: list[ConnectionPool] = []

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def pool(self, **arguments: Any) -> ConnectionPool:
        pool = ConnectionPool(**arguments)
        inner, runtime = pool._pool, ThreadRuntime()
        runtime.now = staticmethod(lambda: self.now)  # the one thing that is virtual
        inner._runtime = inner._dialler._runtime = runtime
        inner._now = inner._dialler._now = runtime.now
        return pool


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_full_pool_is_waited_for_until_the_pool_timeout(backend: MemoryBackend) -> None:
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        with pool.stream("GET", URL) as held:
            start = time.monotonic()
            with pytest.raises(PoolTimeout) as caught:
                pool.request("GET", URL, extensions={"timeout": {"pool": 0.05}})
            assert 0.04 < time.monotonic() - start < 2.0
            held.read()
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert (error.phase, error.origin, error.limit) == ("pool", "http://example.com:80", 0.05)
        assert error.elapsed is not None
        assert error.stats == PoolStats(1, 1, 0, 0, 1, 1)
        assert "http://example.com:80: 1 active, 0 connecting, 0 idle, 1 requests queued" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert pool.request("GET", URL).status == 200
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


def test_a_pool_timeout_of_zero_takes_what_is_free_and_waits_for_nothing(backend: MemoryBackend) -> None:
    now = {"timeout": {"pool": 0}}
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        assert pool.request("GET", URL, extensions=now).status == 200
        assert pool.request("GET", URL, extensions=now).status == 200
        with pool.stream("GET", URL), pytest.raises(PoolTimeout):
            pool.request("GET", URL, extensions=now)


def test_time_spent_waiting_counts_when_the_connection_turns_out_to_be_dead(
    backend: MemoryBackend, clock: Clock
) -> None:
    """The budget does not begin anew with the replacement."""
    limits: list[float | None] = []
    with clock.pool(network_backend=backend, max_connections=2, max_connections_per_origin=2) as pool:
        core = pool._pool
        ask, replace = core._ask, core._replace

        def first(claim: Any, limit: Limit) -> None:
            ask(claim, limit)
            limits.append(limit.remaining())
            clock.advance(3.0)

        async def second(claim: Any, request: Any, timeouts: Any, limit: Limit, *, fresh: bool) -> Any:
            connection = await replace(claim, request, timeouts, limit, fresh=fresh)
            limits.append(limit.remaining())
            return connection

        pool.request("GET", URL)
        backend.streams[0].feed_eof()
        core._ask = first  # type: ignore[method-assign]
        core._replace = second  # type: ignore[method-assign]
        pool.request("GET", URL, extensions={"timeout": {"pool": 10.0}})
    assert limits == [10.0, 7.0]


@pytest.mark.parametrize("phase", ["pool", "connect", "tls", "write", "read", "body", "retry"])
def test_an_ambient_deadline_ends_every_phase_F01(phase: str) -> None:
    backend = MemoryBackend()
    full = threading.Condition()

    def stall(limit: Limit) -> None:
        with full:
            while True:
                wait_on(full, limit)

    def only_head(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12")

    def no_write(self: MemoryStream, buffer: Any, timeout: float | None = None) -> None:
        stall(Limit(timeout, time.monotonic, "write"))

    def sleep(seconds: float) -> None:
        stall(Limit(None, time.monotonic, "connect"))

    def refuse(limit: Limit) -> None:
        raise ConnectError("refused")

    if phase == "connect":
        backend.on_connect = stall
    elif phase == "tls":
        backend.on_start_tls = lambda stream, limit: stall(limit)
    elif phase == "read":
        backend.answer = silent
    elif phase == "body":
        backend.answer = only_head
    elif phase == "retry":
        backend.on_connect = refuse
        backend.on_sleep = sleep
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    url = "https://example.com/" if phase == "tls" else URL
    with ConnectionPool(network_backend=backend, max_connections=1, ssl_context=context, retries=3) as pool:
        held = pool.handle_request(request_for(URL)) if phase == "pool" else None
        with pytest.MonkeyPatch.context() as patch:
            if phase == "write":
                patch.setattr(MemoryStream, "write", no_write)
            start = time.monotonic()
            with Ambient(0.1) as deadline, pytest.raises(DeadlineExceeded) as caught:
                pool.request("GET", url)
            assert 0.09 < time.monotonic() - start < 4.0  # the phase's own limit is five seconds
        expected = {"body": "read", "retry": "connect"}.get(phase, phase)
        assert caught.value.phase == expected
        assert caught.value.origin == (
            "https://example.com:443" if phase == "tls" else "http://example.com:80"
        )
        assert caught.value.deadline is deadline
        if held is not None:
            held.close()
        assert pool.stats() == PoolStats(*(1, 0, 1, 0, 0, 0) if phase == "pool" else (0, 0, 0, 0, 0, 0))
    assert backend.live == 0


@pytest.mark.parametrize("seconds", [0.0, -0.0])
def test_a_deadline_that_has_passed_allows_no_io_F02(backend: MemoryBackend, seconds: float) -> None:
    with ConnectionPool(network_backend=backend) as pool:
        with Ambient(seconds), pytest.raises(DeadlineExceeded) as caught:
            pool.request("GET", URL)
        assert (caught.value.phase, backend.calls) == ("pool", [])
        pool.request("GET", URL)
        with Ambient(60), Ambient(seconds), pytest.raises(DeadlineExceeded):
            pool.request("GET", URL)
        assert len(backend.streams[0].requests) == 1
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


def test_the_smaller_of_timeout_and_deadline_counts_F02(backend: MemoryBackend) -> None:
    backend.answer = silent
    with ConnectionPool(network_backend=backend) as pool:
        with Ambient(60), pytest.raises(ReadTimeout):
            pool.request("GET", URL, extensions={"timeout": {"read": 0.02}})
        with Ambient(0.02), pytest.raises(DeadlineExceeded):
            pool.request("GET", URL, extensions={"timeout": {"read": 60}})


def test_a_deadline_brought_forward_by_another_thread_ends_the_wait_for_a_connection(
    backend: MemoryBackend,
) -> None:
    opened: list[Deadline] = []

    def wait() -> None:
        with Ambient(None) as deadline:
            opened.append(deadline)
            pool.request("GET", URL)

    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        with pool.stream("GET", URL):
            waiting = Worker(wait)
            until(lambda: pool.stats().queued == 1)
            opened[0].reschedule(0.0)
            outcome = waiting.outcome(3.0)
        assert isinstance(outcome, DeadlineExceeded)
        assert outcome.phase == "pool"


# --- errors ------------------------------------------------------------------------------------------------


def test_errors_name_the_origin_and_keep_their_cause(backend: MemoryBackend) -> None:
    cause = OSError(111, "refused")

    def refuse(limit: Limit) -> None:
        raise ConnectError("no", phase="connect") from cause

    backend.on_connect = refuse
    with ConnectionPool(network_backend=backend) as pool:
        with pytest.raises(ConnectError, match=r"origin http://example\.com:80") as caught:
            pool.request("GET", URL)
        assert caught.value.__cause__ is cause
        backend.on_connect = lambda limit: None
        backend.answer = lambda stream, head, body: stream.feed(b"SSH-2.0-x\r\n")
        with pytest.raises(RemoteProtocolError, match=r"SSH.*origin http://example\.com:80"):
            pool.request("GET", URL)


def test_an_error_in_the_body_names_the_origin(backend: MemoryBackend) -> None:
    def cut(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        stream.feed_eof()

    backend.answer = cut
    with ConnectionPool(network_backend=backend) as pool:
        response = pool.handle_request(request_for(URL))
        pieces = response.iter_stream()
        assert next(pieces) == b"12345"
        with pytest.raises(RemoteProtocolError, match=r"origin http://example\.com:80"):
            next(pieces)
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("where", ["connect", "tls", "write", "read", "readable", "options"])
@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt("mine"), SystemExit("mine")])
def test_what_a_custom_backend_raises_comes_out_as_it_is_G06(where: str, error: BaseException) -> None:
    backend = MemoryBackend()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with ConnectionPool(network_backend=backend, max_connections=1, ssl_context=context) as pool:
        pool.request("GET", URL)
        with pytest.MonkeyPatch.context() as patch:
            url = URL
            if where == "connect":
                url = "http://other.example/"
                patch.setattr(backend, "on_connect", fail)
            elif where == "options":
                url = "http://other.example/"
                patch.setattr(backend, "connect_tcp", fail)
            elif where == "tls":
                url = "https://other.example/"
                patch.setattr(backend, "on_start_tls", fail)
            else:
                name = "get_extra_info" if where == "readable" else where
                patch.setattr(MemoryStream, name, fail)
            if where == "readable" and isinstance(error, Exception):
                # A stream that breaks this contract cannot tell whether it is idle, so another one is used.
                assert pool.request("GET", url).status == 200
                return
            with pytest.raises(type(error)) as caught:
                pool.request("GET", url)
            assert caught.value is error
            assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)
            assert backend.live == 0
        assert pool.request("GET", URL).content == b"/"


TRACE_EVENTS = [
    *(f"connection.connect_tcp.{kind}" for kind in ("started", "complete")),
    *(f"connection.start_tls.{kind}" for kind in ("started", "complete")),
    *(f"http11.send_request_headers.{kind}" for kind in ("started", "complete")),
    *(f"http11.send_request_body.{kind}" for kind in ("started", "complete")),
    *(f"http11.receive_response_headers.{kind}" for kind in ("started", "complete")),
    *(f"http11.receive_response_body.{kind}" for kind in ("started", "complete")),
    *(f"http11.response_closed.{kind}" for kind in ("started", "complete")),
]


def test_the_trace_tells_every_step_in_order(backend: MemoryBackend) -> None:
    events: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with ConnectionPool(network_backend=backend, ssl_context=context) as pool:
        extensions = {"trace": lambda name, info: events.append(name)}
        pool.request("GET", "https://example.com/", extensions=extensions)
    assert events == TRACE_EVENTS


@pytest.mark.parametrize("event", TRACE_EVENTS)
@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt("mine")])
def test_an_exception_in_the_trace_callback_leaves_nothing_behind_G06(
    event: str, error: BaseException
) -> None:
    backend = MemoryBackend()

    def trace(name: str, info: dict[str, Any]) -> None:
        if name == event:
            raise error

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with ConnectionPool(network_backend=backend, max_connections=1, ssl_context=context) as pool:
        with pytest.raises(type(error)) as caught:
            pool.request("GET", "https://example.com/", extensions={"trace": trace})
        assert caught.value is error
        stats = pool.stats()
        assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0)
        assert backend.live == stats.connections
        assert pool.request("GET", "https://example.com/x").content == b"/x"


def test_a_stream_whose_close_raises_costs_no_place_G06() -> None:
    class Rude(MemoryStream):
        def close(self) -> None:
            super().close()
            raise RuntimeError("close is not to raise")

        def __del__(self) -> None:
            pass

    class Backend(MemoryBackend):
        def _open(self, timeout: float | None) -> MemoryStream:
            return Rude(self, 0)

    backend = Backend(silent)
    pool = ConnectionPool(network_backend=backend, max_connections=1)
    for _ in range(3):
        with pytest.raises(ReadTimeout):
            pool.request("GET", URL, extensions={"timeout": {"read": 0.001}})
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)
    backend.answer = lambda stream, head, body: stream.feed(response(b""))
    pool.request("GET", URL)
    pool.close()
    assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


def test_a_backend_that_lacks_a_method_is_told_of() -> None:
    with ConnectionPool(network_backend=NetworkBackend()) as pool:
        with pytest.raises(NotImplementedError):
            pool.request("GET", URL)
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


def test_a_closed_pool_is_told_of_by_its_name(backend: MemoryBackend) -> None:
    pool = ConnectionPool(network_backend=backend)
    pool.close()
    with pytest.raises(PoolClosed, match=r"closed.*phase pool.*origin http://example\.com:80"):
        pool.request("GET", URL)
    assert backend.calls == []
