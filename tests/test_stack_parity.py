"""What `docs/migrating-from-httpcore.md` says of httpcore 1.0 and lamina, held against both.

The tables of that page are the ones that count. What can be read off the two libraries (names, signatures, trace
events) is compared row by row; each row of the table of differences is shown here by a function of its name.
Whoever changes either has to change the other: a failure prints the table as it should be.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

import lamina
from stack_h2_peer import H2Connection, H2Server
from stack_helpers import FaultServer, read_head, response
from stack_proxies import FakeProxy, Origin

# Whose types are not those of lamina's that go to the same places.
httpcore: Any = import_module("httpcore")

LIBRARIES: list[Any] = [httpcore, lamina]
PAGE = Path(__file__).parent.parent / "docs" / "migrating-from-httpcore.md"

Url = str
Run = Callable[[Any, Any, dict[str, Any]], None]


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of the page."""
    section = PAGE.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def assert_table(heading: str, rows: list[list[str]]) -> None:
    expected = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    assert table(heading) == rows, f"the table should be:\n{expected}"


class Difference(NamedTuple):
    """A row of the table of differences."""

    id: str
    names: list[str]


def differences() -> list[Difference]:
    return [
        Difference(row[0].strip("`"), re.findall(r"`([^`]+)`", row[1]))
        for row in table("Where it differs on purpose")
    ]


def differing(name: str) -> str:
    """What the other tables say of something that is the same, or has its rows in the table of differences."""
    ids = [f"`{row.id}`" for row in differences() if name in row.names]
    return f"see {', '.join(ids)}" if ids else "the same"


# --- names, members, signatures ----------------------------------------------------------------------------


class Seen(NamedTuple):
    """What differs in the members of a name, and what lamina adds to it."""

    missing: list[str]
    added: list[str]


def members(kind: type) -> set[str]:
    """The names of its public attributes and methods, with those of its parents in the library."""
    parents = [
        each for each in kind.__mro__ if each.__module__.partition(".")[0] not in ("builtins", "typing")
    ]
    return {name for each in parents for name in vars(each) if not name.startswith("_")}


def parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def compare_signatures(where: str, old: Any, new: Any) -> Seen:
    """Every parameter at its place, with its kind and default. A default that was none is an addition."""
    missing, added = [], []
    ours = parameters(new)
    for index, theirs in enumerate(parameters(old)):
        own = ours[index] if index < len(ours) else None
        if own is None or (own.name, own.kind) != (theirs.name, theirs.kind):
            missing.append(f"{where}({theirs.name})")
        elif theirs.default is inspect.Parameter.empty and own.default is not inspect.Parameter.empty:
            added.append(f"{where}({own.name}={own.default})")
        elif own.default != theirs.default:
            missing.append(f"{where}({theirs})")
    for own in ours[len(parameters(old)) :]:
        can_be_left_out = own.default is not inspect.Parameter.empty
        (added if can_be_left_out else missing).append(f"{own.name}=")
    return Seen(missing, added)


def compare(name: str) -> Seen:
    """A name of httpcore, and the same in lamina."""
    old, new = getattr(httpcore, name), getattr(lamina, name)
    if name == "SOCKET_OPTION":
        return Seen([], [])
    if not inspect.isclass(old):
        return compare_signatures(name, old, new)
    if issubclass(old, Exception):
        mine = {each.__name__ for each in new.__mro__}
        theirs = {each.__name__ for each in old.__mro__}
        unsaid = {"LaminaError", "OSError"}  # the root of all, and the parent of two builtins that are named
        return Seen(sorted(theirs - mine), [f"{each}" for each in sorted(mine - theirs - unsaid)])
    missing, added = compare_signatures(name, old, new)
    missing += [f"{name}.{member}" for member in sorted(members(old) - members(new))]
    added += sorted(f"{member}" for member in members(new) - members(old) - data_of(old))
    for member in sorted(members(old) & members(new)):
        if callable(getattr(old, member)):
            seen = compare_signatures(f"{name}.{member}", getattr(old, member), getattr(new, member))
            missing += seen.missing
            added += [each.removeprefix(f"{name}.") for each in seen.added]
    return Seen(missing, added)


def data_of(kind: type) -> set[str]:
    """The attributes that the constructor sets, which no class of httpcore declares."""
    source = inspect.getsource(kind.__init__) if inspect.isfunction(kind.__init__) else ""  # type: ignore[misc] # of a class
    return set(re.findall(r"self\.([a-z]\w*)\b", source))


def test_every_name_is_there_and_what_the_table_says_of_it_is_true() -> None:
    rows = []
    for name in sorted(httpcore.__all__):
        assert name in lamina.__all__
        seen, verdict = compare(name), differing(name)
        assert not seen.missing or verdict != "the same", (name, seen.missing)
        rows.append([f"`{name}`", verdict, ", ".join(f"`{each}`" for each in seen.added)])
    assert_table("Name by name", rows)


@pytest.mark.parametrize("name", [each for each in httpcore.__all__ if each.endswith(("Error", "Timeout"))])
def test_an_exception_has_the_parents_that_it_has_in_httpcore(name: str) -> None:
    parents = [each.__name__ for each in getattr(httpcore, name).__mro__ if each.__module__ == "httpcore"]
    assert set(parents) <= {each.__name__ for each in getattr(lamina, name).__mro__}
    assert issubclass(getattr(lamina, name), lamina.LaminaError)


# --- models: arguments that are refused, and how things are shown ----------------------------------------------------


REFUSED: dict[str, Callable[[Any], object]] = {
    "url of another type": lambda library: library.URL(1),
    "method of another type": lambda library: library.Request(1, "http://a.test/"),
    "method that is not ASCII": lambda library: library.Request("G\xc9T", "http://a.test/"),
    "request's url of another type": lambda library: library.Request("GET", 1),
    "headers of another type": lambda library: library.Request("GET", "http://a.test/", headers=1),
    "header name of another type": lambda library: library.Request(
        "GET", "http://a.test/", headers=[(1, b"")]
    ),
    "header value that is not ASCII": lambda library: library.Request(
        "GET", "http://a.test/", headers={"a": "\xe9"}
    ),
    "response's headers of another type": lambda library: library.Response(200, headers=1),
    "content not yet read": lambda library: library.Response(200, content=iter([b""])).content,
    "proxy's url of another type": lambda library: library.Proxy(1),
    "proxy's headers of another type": lambda library: library.Proxy("http://a.test", headers=1),
    "user that is not ASCII": lambda library: library.Proxy("http://a.test", auth=("\xfc", "p")),
    "proxy_url of another type": lambda library: library.HTTPProxy(1),
    "proxy_auth of another type": lambda library: library.HTTPProxy("http://a.test", proxy_auth=(1, 2)),
    "proxy_headers of another type": lambda library: library.HTTPProxy("http://a.test", proxy_headers=1),
    "pool's method of another type": lambda library: library.ConnectionPool().request(1, "http://a.test/"),
    "no scheme": lambda library: library.ConnectionPool().request("GET", "a.test"),
    "unknown scheme": lambda library: library.ConnectionPool().request("GET", "foo://a.test/"),
    "wrong origin": lambda library: library.HTTPConnection(library.URL("https://a.test/").origin).request(
        "GET", "http://a.test/"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words(name: str) -> None:
    caught = []
    for library in LIBRARIES:
        with pytest.raises(Exception) as error:  # noqa: PT011 - which one is compared
            REFUSED[name](library)
        caught.append(error.value)
    theirs, ours = caught
    message = ours.message if isinstance(ours, lamina.LaminaError) else str(ours)
    assert message == str(theirs)
    # lamina's has the same class, by its name, or is a class of its own below it.
    assert type(theirs).__name__ in {each.__name__ for each in type(ours).__mro__}
    assert isinstance(ours, lamina.LaminaError)


def origin_of(library: Any, url: Url = "https://a.test/") -> Any:
    return library.URL(url).origin


def connection(library: Any, **options: Any) -> Any:
    return library.HTTPConnection(origin_of(library), **options)


def over(library: Any, name: str) -> list[str]:
    """What a connection over a stream says of itself."""
    made = getattr(library, name)(origin_of(library), library.MockStream([b""]))
    shown = [repr(made), made.info(), *answers(made)]
    made.close()
    return shown


def answers(made: Any) -> list[str]:
    questions = ("is_available", "has_expired", "is_idle", "is_closed")
    return [name for name in questions if getattr(made, name)()]


SHOWN: dict[str, Callable[[Any], object]] = {
    "URL": lambda library: library.URL("http://a.test:80/x?y#z"),
    "URL with a user": lambda library: library.URL(b"https://u:p@a.test:8/"),
    "URL in capitals": lambda library: library.URL("HTTP://A.Test/"),
    "URL of its parts": lambda library: library.URL(scheme="http", host="h", port=8, target="*"),
    "URL's bytes": lambda library: bytes(library.URL("http://a.test:80/")),
    "URL's host": lambda library: library.URL("http://[::1]:8/").host,
    "empty URL": lambda library: library.URL(""),
    "origin": lambda library: str(library.URL("http://a.test").origin),
    "origin of a proxy": lambda library: str(library.URL("socks5://a.test").origin),
    "Request": lambda library: library.Request("GET", "http://a.test/"),
    "Request's target": lambda library: (
        library.Request("GET", "http://a.test/", extensions={"target": b"*"}).url
    ),
    "Request's headers": lambda library: library.Request("GET", "http://a.test/", headers={"A": "b"}).headers,
    "no content": lambda library: library.Request("GET", "http://a.test/").stream,
    "content": lambda library: library.Request("GET", "http://a.test/", content=b"ab").stream,
    "Response": lambda library: library.Response(200),
    "Response's content": lambda library: library.Response(200, content=b"x").read(),
    "Proxy's headers": lambda library: (
        library.Proxy("http://a.test", auth=("u", "p"), headers={"A": "b"}).headers
    ),
    "ConnectionPool": lambda library: library.ConnectionPool(),
    "AsyncConnectionPool": lambda library: library.AsyncConnectionPool(),
    "HTTPProxy": lambda library: library.HTTPProxy("http://a.test"),
    "SOCKSProxy": lambda library: library.SOCKSProxy("socks5://a.test"),
    "HTTPConnection": connection,
    "HTTP11Connection": lambda library: over(library, "HTTP11Connection"),
    "HTTP2Connection": lambda library: over(library, "HTTP2Connection"),
    "created": lambda library: library.ConnectionPool().create_connection(origin_of(library)),
    "what is asked of one to HTTP/1.1": lambda library: answers(connection(library)),
    "what is asked of one to either": lambda library: answers(connection(library, http2=True)),
    "what is asked of one to HTTP/2": lambda library: answers(connection(library, http1=False, http2=True)),
}


@pytest.mark.parametrize("name", SHOWN)
def test_things_are_shown_alike(name: str) -> None:
    theirs, ours = [repr(SHOWN[name](library)) for library in LIBRARIES]
    assert ours == theirs


# --- one request through both ------------------------------------------------------------------------------


class Stage(NamedTuple):
    """Servers on loopback.

    Attributes:
        http, https, h2c, h2: each answers with the target.
        proxy, refusing_proxy, socks_proxy: each leads to any of them; or refuses to.
        silent, hanging_up, cut_off, upgrading: each answers in its way, or does not.
        unix: the path of a socket.
        closed: a port where nobody listens.
        context: trusts them.
    """

    http: Url
    https: Url
    h2c: Url
    h2: Url
    proxy: Url
    refusing_proxy: Url
    socks_proxy: Url
    silent: Url
    hanging_up: Url
    cut_off: Url
    upgrading: Url
    unix: str
    closed: int
    authority: trustme.CA

    def context(self) -> ssl.SSLContext:
        """One that trusts them; a new one for each pool, since httpcore changes what it is given."""
        made = ssl.create_default_context()
        self.authority.configure_trust(made)
        made.set_alpn_protocols(["h2", "http/1.1"])
        return made


def refuse(sock: socket.socket) -> None:
    read_head(sock)
    sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")


def serve_silently(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def hang_up(sock: socket.socket) -> None:
    sock.recv(65536)


def cut_off(sock: socket.socket) -> None:
    read_head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")


def upgrade(sock: socket.socket) -> None:
    read_head(sock)
    sock.sendall(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhi")
    serve_silently(sock)


def read_upload(sock: socket.socket) -> None:
    """A server that answers a chunked upload, or a request without a body."""
    while True:
        data = b""
        while b"\r\n\r\n" not in data:
            data += receive(sock)
        while b"chunked" in data.lower() and not data.endswith(b"0\r\n\r\n"):
            data += receive(sock)
        sock.sendall(response(data.split(b" ", 2)[1]))


def receive(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise EOFError
    return data


@contextmanager
def unix_server(path: str) -> Iterator[None]:
    """Answers like the others, on a unix socket."""

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, suppress(OSError, EOFError):
                read_upload(sock)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=accept)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(20)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")

    def context(*protocols: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(made)
        made.set_alpn_protocols(list(protocols))
        return made

    def serve(peer: H2Connection) -> None:
        while True:
            asked = peer.request()
            peer.finish(asked)
            peer.respond(asked)

    servers: list[FaultServer] = []
    path = str(tmp_path_factory.mktemp("unix") / "socket")

    def start(behave: Callable[[socket.socket], None], **options: Any) -> Url:
        servers.append(FaultServer(behave, **options))
        return servers[-1].url

    def start_h2(**options: Any) -> Url:
        servers.append(H2Server(serve, **options))
        return servers[-1].url

    with unix_server(path), socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        try:
            yield Stage(
                http=start(read_upload),
                https=start(Origin(), context=context("http/1.1")),
                h2c=start_h2(),
                h2=start_h2(context=context("h2")),
                proxy=start(FakeProxy()),
                refusing_proxy=start(refuse),
                socks_proxy=start(FakeProxy(is_socks=True, auth=(b"user", b"secret"))).replace(
                    "http:", "socks5h:"
                ),
                silent=start(serve_silently),
                hanging_up=start(hang_up),
                cut_off=start(cut_off),
                upgrading=start(upgrade),
                unix=path,
                closed=closed.getsockname()[1],
                authority=authority,
            )
        finally:
            for server in servers:
                server.stop()


class Scene(NamedTuple):
    """What is done through both libraries.

    Attributes:
        make: a pool or a connection.
        run: what is sent.
    """

    make: Callable[[Any, Stage], Any]
    run: Callable[[Any, Any, Stage, dict[str, Any]], None]


def pool(**options: Any) -> Callable[[Any, Stage], Any]:
    return lambda library, stage: library.ConnectionPool(**options)


def secure(**options: Any) -> Callable[[Any, Stage], Any]:
    return lambda library, stage: library.ConnectionPool(ssl_context=stage.context(), **options)


def through(proxy: str, **auth: Any) -> Callable[[Any, Stage], Any]:
    return lambda library, stage: library.ConnectionPool(
        ssl_context=stage.context(), proxy=library.Proxy(getattr(stage, proxy), **auth)
    )


def get(place: str, times: int = 2) -> Callable[[Any, Any, Stage, dict[str, Any]], None]:
    def run(library: Any, client: Any, stage: Stage, extensions: dict[str, Any]) -> None:
        for _ in range(times):
            client.request("GET", f"{getattr(stage, place)}/x", extensions=extensions)

    return run


def post(library: Any, client: Any, stage: Stage, extensions: dict[str, Any]) -> None:
    client.request("POST", f"{stage.http}/x", content=iter([b"ab", b"cd"]), extensions=extensions)


def post_to_h2(library: Any, client: Any, stage: Stage, extensions: dict[str, Any]) -> None:
    client.request("POST", f"{stage.h2c}/x", content=b"abcd", extensions=extensions)


def time_out(library: Any, client: Any, stage: Stage, extensions: dict[str, Any]) -> None:
    client.request("GET", stage.silent, extensions={**extensions, "timeout": {"read": 0.05}})


def dial_in_vain(library: Any, client: Any, stage: Stage, extensions: dict[str, Any]) -> None:
    client.request("GET", f"http://127.0.0.1:{stage.closed}/", extensions=extensions)


def leave_early(place: str) -> Callable[[Any, Any, Stage, dict[str, Any]], None]:
    def run(library: Any, client: Any, stage: Stage, extensions: dict[str, Any]) -> None:
        with client.stream("GET", f"{getattr(stage, place)}/{'x' * 2000}", extensions=extensions):
            pass

    return run


def switch(library: Any, client: Any, stage: Stage, extensions: dict[str, Any]) -> None:
    headers = {"Upgrade": "x", "Connection": "upgrade"}
    with client.stream("GET", stage.upgrading, headers=headers, extensions=extensions) as answer:
        assert answer.extensions["network_stream"].read(2) == b"hi"


def given(name: str, place: str) -> Callable[[Any, Stage], Any]:
    def make(library: Any, stage: Stage) -> Any:
        url = library.URL(getattr(stage, place))
        stream = library.SyncBackend().connect_tcp("127.0.0.1", url.port)
        return getattr(library, name)(url.origin, stream)

    return make


CREDENTIALS: dict[str, Any] = {"auth": ("user", "secret")}
PRIOR: dict[str, Any] = {"http1": False, "http2": True}

SCENES = {
    "http": Scene(pool(), get("http")),
    "https": Scene(secure(), get("https")),
    "upload": Scene(pool(), post),
    "h2c": Scene(pool(**PRIOR), get("h2c")),
    "h2": Scene(secure(http2=True), get("h2")),
    "upload over h2": Scene(pool(**PRIOR), post_to_h2),
    "time-out": Scene(pool(), time_out),
    "no answer": Scene(pool(), get("hanging_up")),
    "half an answer": Scene(pool(), get("cut_off")),
    "retries": Scene(pool(retries=2), dial_in_vain),
    "left early": Scene(pool(), leave_early("http")),
    "left early over h2": Scene(pool(**PRIOR), leave_early("h2c")),
    "upgrade": Scene(pool(), switch),
    "unix socket": Scene(lambda library, stage: library.ConnectionPool(uds=stage.unix), get("http")),
    "forward proxy": Scene(through("proxy", **CREDENTIALS), get("http")),
    "tunnel": Scene(through("proxy", **CREDENTIALS), get("https")),
    "tunnel refused": Scene(through("refusing_proxy"), get("https")),
    "socks": Scene(through("socks_proxy", **CREDENTIALS), get("https")),
    "HTTPProxy": Scene(
        lambda library, stage: library.HTTPProxy(stage.proxy, ssl_context=stage.context()), get("https")
    ),
    "SOCKSProxy": Scene(
        lambda library, stage: library.SOCKSProxy(stage.socks_proxy, ("user", "secret"), stage.context()),
        get("https"),
    ),
    "HTTPConnection": Scene(
        lambda library, stage: library.HTTPConnection(origin_of(library, stage.http)), get("http")
    ),
    "HTTP11Connection": Scene(given("HTTP11Connection", "http"), get("http")),
    "HTTP2Connection": Scene(given("HTTP2Connection", "h2c"), get("h2c")),
}
"""A scene ends with the first error; in both libraries it has to be of the same class."""


class Event(NamedTuple):
    """What a trace callback was told.

    Attributes:
        name: of the event.
        told: the values, brought into a form in which those of two libraries can be compared.
    """

    name: str
    told: dict[str, str]


def form(key: str, value: object) -> str:
    if key == "timeout":
        return "None" if value is None else "seconds"
    if isinstance(value, BaseException | lamina.Request | httpcore.Request):
        return type(value).__name__
    if hasattr(value, "read") and hasattr(value, "write"):
        return "stream"
    return repr(value) if isinstance(value, str | int | bytes | tuple | list | None) else type(value).__name__


def record(library: Any, scene: Scene, stage: Stage) -> tuple[list[Event], str]:
    """The events of a scene, and the class of the error that has ended it."""
    events: list[Event] = []

    def trace(name: str, info: dict[str, Any]) -> None:
        events.append(Event(name, {key: form(key, value) for key, value in info.items()}))

    outcome = ""
    with scene.make(library, stage) as client:
        try:
            scene.run(library, client, stage, {"trace": trace, "timeout": {"connect": 20.0, "read": 20.0}})
        except Exception as error:  # noqa: BLE001 - its class is what is asked for
            outcome = type(error).__name__
    return events, outcome


def without_differences(events: list[Event]) -> list[Event]:
    """What of them the table of differences says nothing of, key by key."""
    named = {name for row in differences() for name in row.names}
    kept = []
    for event in events:
        step = event.name.rpartition(".")[0]
        if step in named:
            continue
        kept.append(
            Event(
                event.name, {key: told for key, told in event.told.items() if f"{step}[{key}]" not in named}
            )
        )
    return kept


@pytest.mark.parametrize("name", SCENES)
def test_a_request_is_told_of_in_the_same_events(name: str, stage: Stage) -> None:
    (theirs, their_outcome), (ours, our_outcome) = [record(each, SCENES[name], stage) for each in LIBRARIES]
    assert our_outcome == their_outcome
    assert without_differences(ours) == without_differences(theirs)
    assert len(ours) >= 8


@pytest.mark.parametrize("name", ["http", "h2", "no answer", "tunnel", "socks"])
@pytest.mark.parametrize("is_async_callback", [False, True])
def test_an_async_pool_tells_the_same(name: str, is_async_callback: bool, stage: Stage) -> None:
    """And takes both kinds of callback, where httpcore takes one in each world."""
    events: list[str] = []

    def plain(name: str, info: dict[str, Any]) -> None:
        events.append(name)

    async def awaited(name: str, info: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        events.append(name)

    async def main() -> None:
        options: dict[str, Any] = {"ssl_context": stage.context(), "http2": name == "h2"}
        if name in ("tunnel", "socks"):
            url = stage.proxy if name == "tunnel" else stage.socks_proxy
            options["proxy"] = lamina.Proxy(url, auth=("user", "secret"))
        place = {"tunnel": "https", "socks": "https", "no answer": "hanging_up"}.get(name, name)
        extensions = {"trace": awaited if is_async_callback else plain}
        async with lamina.AsyncConnectionPool(**options) as client:
            with suppress(lamina.RemoteProtocolError):
                for _ in range(2):
                    await client.request("GET", f"{getattr(stage, place)}/x", extensions=extensions)

    asyncio.run(main())
    told, _ = record(lamina, SCENES[name], stage)
    assert events == [event.name for event in told]


def test_every_event_is_in_the_table(stage: Stage) -> None:
    found: dict[str, list[str]] = {}
    for library in LIBRARIES:
        for scene in SCENES.values():
            for event in record(library, scene, stage)[0]:
                step, _, part = event.name.rpartition(".")
                keys = found.setdefault(step, [])
                if part == "started":
                    keys.extend(key for key in event.told if key not in keys)
    rows = []
    for step, keys in sorted(found.items()):
        ids = [differing(each) for each in (step, *(f"{step}[{key}]" for key in keys))]
        verdicts = [each for each in dict.fromkeys(ids) if each != "the same"] or ["the same"]
        rows.append([f"`{step}`", ", ".join(f"`{key}`" for key in keys), "; ".join(verdicts)])
    assert_table("Trace events", rows)


@pytest.mark.parametrize("name", ["http", "h2"])
def test_the_extensions_of_a_response_are_in_the_table(name: str, stage: Stage) -> None:
    found = []
    for library in LIBRARIES:
        with SCENES[name].make(library, stage) as client:
            found.append(client.request("GET", f"{getattr(stage, name)}/x").extensions)
    theirs, ours = found
    assert set(theirs) <= set(ours)
    for key in ("http_version", "reason_phrase", "stream_id"):
        assert theirs.get(key) == ours.get(key)
    rows = {row[0].strip("`"): row for row in table("Extensions") if row[1] == "response"}
    assert {key for key, row in rows.items() if row[2] == "the same"} >= set(theirs)
    assert {key for key, row in rows.items() if row[2] == "added"} == set(ours) - set(theirs)


def test_the_extensions_of_a_request_are_in_the_table() -> None:
    rows = [row[0].strip("`") for row in table("Extensions") if row[1] == "request"]
    assert rows == ["timeout", "trace", "sni_hostname", "target"]


@pytest.mark.parametrize("library", LIBRARIES, ids=["httpcore", "lamina"])
def test_a_pool_and_a_connection_are_shown_alike_at_work(library: Any, stage: Stage) -> None:
    origin = str(library.URL(stage.http).origin)
    with library.ConnectionPool() as client, library.HTTPConnection(library.URL(stage.http).origin) as lone:
        with client.stream("GET", stage.http) as answer, lone.stream("GET", stage.http) as lone_answer:
            assert repr(client) == (
                "<ConnectionPool [Requests: 1 active, 0 queued | Connections: 1 active, 0 idle]>"
            )
            assert client.connections[0].info() == f"{origin!r}, HTTP/1.1, ACTIVE, Request Count: 1"
            assert repr(lone) == f"<HTTPConnection [{origin!r}, HTTP/1.1, ACTIVE, Request Count: 1]>"
            with pytest.raises(library.ConnectionNotAvailable):
                lone.request("GET", stage.http)
            answer.read()
            lone_answer.read()
        assert (
            repr(client) == "<ConnectionPool [Requests: 0 active, 0 queued | Connections: 0 active, 1 idle]>"
        )
        assert client.connections[0].info() == f"{origin!r}, HTTP/1.1, IDLE, Request Count: 1"
        lone.request("GET", stage.http)


def test_an_upgrade_finds_a_connection_that_speaks_http2_not_available(stage: Stage) -> None:
    origin = origin_of(lamina, stage.h2)
    with lamina.HTTPConnection(origin, stage.context(), http2=True) as client:
        assert client.request("GET", f"{stage.h2}/x").extensions["http_version"] == b"HTTP/2"
        with pytest.raises(lamina.ConnectionNotAvailable):
            client.request("GET", f"{stage.h2}/x", headers={"Upgrade": "x"})
        assert client.request("GET", f"{stage.h2}/y").content == b"/y"


@pytest.mark.parametrize("name", ["http", "h2", "tunnel", "socks"])
def test_the_log_says_at_debug_what_the_trace_says_and_no_secret(
    name: str, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="lamina"):
        events, _ = record(lamina, SCENES[name], stage)
    told = [
        f"{each.name.removeprefix('lamina.')}.{each.getMessage().split(' ')[0]}" for each in caplog.records
    ]
    assert told == [event.name for event in events]
    assert "secret" not in caplog.text
    assert "dXNlcjpzZWNyZXQ=" not in caplog.text  # the two in base64


# --- the differences ---------------------------------------------------------------------------------------

SHOW: dict[str, Callable[[Stage], None]] = {}


def shows(function: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """It shows the row of the table of differences that has its name."""
    SHOW[function.__name__.replace("_", "-")] = function
    return function


def outcomes(call: Callable[[Any], object]) -> tuple[object, object]:
    """What comes of it in httpcore, and in lamina: what is returned, or the class of the error."""
    found: list[object] = []
    for library in LIBRARIES:
        try:
            found.append(call(library))
        except Exception as error:  # noqa: BLE001 - its class is what is asked for
            found.append(type(error))
    return found[0], found[1]


@shows
def pool_connections(stage: Stage) -> None:
    for library, can_send in zip(LIBRARIES, (True, False), strict=True):
        with library.ConnectionPool() as client:
            client.request("GET", stage.http)
            assert hasattr(client.connections[0], "handle_request") is can_send


@shows
def create_connection(stage: Stage) -> None:
    for library, is_asked in zip(LIBRARIES, (True, False), strict=True):
        asked = []

        class Pool(library.ConnectionPool):  # type: ignore[misc, name-defined] # of either library
            def create_connection(self, origin: Any) -> Any:
                asked.append(origin)  # noqa: B023 - used up before the next one
                return super().create_connection(origin)

        with Pool() as client:
            client.request("GET", stage.http)
            assert bool(asked) is is_asked
            client.create_connection(origin_of(library)).close()


@shows
def closed_pool(stage: Stage) -> None:
    def use_again(library: Any) -> object:
        with library.ConnectionPool() as client:
            client.close()
            return client.request("GET", stage.http).status

    assert outcomes(use_again) == (200, lamina.PoolClosed)


@shows
def stale_connection(stage: Stage) -> None:
    def answer_twice(library: Any) -> object:
        asked: list[bytes] = []

        def serve(sock: socket.socket) -> None:
            while len(asked) != 1:
                asked.append(read_head(sock))
                sock.sendall(response(b"ok"))
            asked.append(read_head(sock))  # and close without an answer

        server = FaultServer(serve)
        try:
            with library.ConnectionPool() as client:
                client.request("GET", server.url)
                return client.request("GET", server.url).content
        finally:
            server.stop()

    assert outcomes(answer_twice) == (httpcore.RemoteProtocolError, b"ok")


@shows
def ssl_context(stage: Stage) -> None:
    for library, version in zip(LIBRARIES, (b"HTTP/2", b"HTTP/1.1"), strict=True):
        context = ssl.create_default_context()
        stage.authority.configure_trust(context)
        context.set_alpn_protocols(["http/1.1"])
        server = stage.h2 if library is httpcore else stage.https
        with library.ConnectionPool(ssl_context=context, http2=True) as client:
            assert client.request("GET", f"{server}/x").extensions["http_version"] == version


@shows
def one_connect_budget(stage: Stage) -> None:
    def second_timeout(library: Any) -> bool:
        told: dict[str, Any] = {}
        extensions = {"trace": told.setdefault, "timeout": {"connect": 20.0}}
        with library.ConnectionPool(ssl_context=stage.context()) as client:
            client.request("GET", stage.https, extensions=extensions)
        return bool(told["connection.start_tls.started"]["timeout"] == 20.0)

    assert outcomes(second_timeout) == (True, False)


@shows
def proxy_options(stage: Stage) -> None:
    def attempts(library: Any) -> int:
        tried = []
        extensions = {"trace": lambda name, info: tried.append(name)}
        proxy = library.Proxy(f"http://127.0.0.1:{stage.closed}")
        with library.ConnectionPool(proxy=proxy, retries=1) as client, suppress(library.ConnectError):
            client.request("GET", stage.http, extensions=extensions)
        return tried.count("connection.connect_tcp.started")

    assert outcomes(attempts) == (1, 2)


@shows
def socks5_resolves(stage: Stage) -> None:
    for library, is_told_the_name in zip(LIBRARIES, (True, False), strict=True):
        behave = FakeProxy(is_socks=True)
        server = FaultServer(behave)
        try:
            proxy = library.Proxy(server.url.replace("http:", "socks5:"))
            with library.ConnectionPool(proxy=proxy) as client:
                client.request("GET", stage.http.replace("127.0.0.1", "localhost"))
            assert (behave.asked[0].target.rpartition(":")[0] == "localhost") is is_told_the_name
        finally:
            server.stop()


@shows
def proxy_scheme(stage: Stage) -> None:
    assert outcomes(lambda library: bool(library.SOCKSProxy("http://127.0.0.1:1"))) == (
        True,
        lamina.UnsupportedProtocol,
    )
    call = {"proxy_ssl_context": ssl.create_default_context()}
    assert outcomes(lambda library: library.HTTPProxy("http://127.0.0.1:1", **call)) == (
        RuntimeError,
        lamina.ArgumentValueError,
    )


@shows
def secrets(stage: Stage) -> None:
    for library, is_told in zip(LIBRARIES, (True, False), strict=True):
        told: list[Any] = []
        extensions = {"trace": lambda name, info: told.append(info)}  # noqa: B023 - used up before the next one
        for scene in ("tunnel", "socks"):
            with SCENES[scene].make(library, stage) as client:
                client.request("GET", stage.https, extensions=extensions)
        auths = [info["auth"] for info in told if "auth" in info]
        headers = [info["request"].headers for info in told if "request" in info]
        assert ((b"user", b"secret") in auths) is is_told
        assert any((b"Proxy-Authorization", b"Basic dXNlcjpzZWNyZXQ=") in each for each in headers) is is_told


@shows
def http2_events(stage: Stage) -> None:
    for library, is_told in zip(LIBRARIES, (True, False), strict=True):
        events, _ = record(library, SCENES["h2"], stage)
        assert ("http2.receive_remote_settings.complete" in [event.name for event in events]) is is_told
        started = next(event for event in events if event.name == "http2.send_request_headers.started")
        assert ("stream_id" in started.told) is is_told


@shows
def socks_options(stage: Stage) -> None:
    for library, is_told in zip(LIBRARIES, (False, True), strict=True):
        events, _ = record(library, SCENES["socks"], stage)
        assert ("local_address" in events[0].told) is is_told


@shows
def log(stage: Stage) -> None:
    for library, names in zip(LIBRARIES, ("httpcore", "lamina"), strict=True):
        kept: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = kept.append  # type: ignore[method-assign, assignment] # all that it is for
        logger = logging.getLogger(names)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            with library.ConnectionPool() as client:
                client.request("GET", stage.http)
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
        assert {record.name for record in kept} == {f"{names}.connection", f"{names}.http11"}
        assert ("close.complete" in [record.getMessage() for record in kept]) is (library is httpcore)


@shows
def arguments(stage: Stage) -> None:
    for make in (
        lambda library: library.ConnectionPool(max_connections=0),
        lambda library: library.ConnectionPool(http1=False),
        lambda library: library.Request("GET", "http://a.test/", content="text"),
        lambda library: library.Response("200"),
        lambda library: library.ConnectionPool(network_backend=library.SyncBackend),
    ):
        theirs, ours = outcomes(make)
        assert not isinstance(theirs, type), theirs
        assert ours in (lamina.ArgumentValueError, lamina.ArgumentTypeError)

    def misspelt(library: Any) -> object:
        with library.ConnectionPool() as client:
            return client.request("GET", stage.http, extensions={"timeout": {"raed": 1.0}}).status

    assert outcomes(misspelt) == (200, lamina.ArgumentValueError)


@shows
def urls(stage: Stage) -> None:
    assert outcomes(lambda library: library.URL("http://m\xfcnchen.test/").host) == (
        TypeError,
        b"xn--mnchen-3ya.test",
    )
    assert outcomes(lambda library: library.URL("http://a.test/ b").target) == (b"/ b", lamina.InvalidURL)
    assert outcomes(lambda library: library.URL("foo://a.test/").origin) == (
        KeyError,
        lamina.UnsupportedProtocol,
    )
    assert outcomes(lambda library: str(library.URL("http://[::1]/").origin)) == (
        "http://::1:80",
        "http://[::1]:80",
    )
    assert outcomes(lambda library: library.Proxy("http://u:p@a.test").auth) == (None, (b"u", b"p"))
    for library, is_told in zip(LIBRARIES, (False, True), strict=True):
        behave = FakeProxy()
        server = FaultServer(behave)
        try:
            with library.HTTPProxy(server.url.replace("http://", "http://u:p@")) as client:
                client.request("GET", stage.http)
            assert (b"Proxy-Authorization: Basic dTpw\r\n" in behave.asked[0].head) is is_told
        finally:
            server.stop()


@shows
def illegal_requests(stage: Stage) -> None:
    for library, sends, error in (
        # Of the one or the other kind: whether a part of the request comes after the server has hung up.
        (httpcore, 1, (httpcore.RemoteProtocolError, httpcore.NetworkError)),
        (lamina, 0, lamina.LocalProtocolError),
    ):
        server = FaultServer(hang_up)
        try:
            with library.ConnectionPool(http1=False, http2=True) as client, pytest.raises(error):
                client.request("GET", server.url, headers={"X": "a\r\nY: b"})
            assert server.accepted == sends
        finally:
            server.stop()

    def framed_twice(library: Any) -> object:
        headers = {"Content-Length": "2", "Transfer-Encoding": "chunked"}
        with library.ConnectionPool() as client:
            return client.request("POST", stage.http, headers=headers, content=b"ab").status

    assert outcomes(framed_twice) == (200, lamina.LocalProtocolError)


@shows
def illegal_responses(stage: Stage) -> None:
    def answered(library: Any, answer: bytes, method: str = "GET") -> object:
        """What comes of the second of two requests."""

        def serve(sock: socket.socket) -> None:
            with suppress(EOFError):
                while True:
                    read_head(sock)
                    sock.sendall(answer)

        server = FaultServer(serve)
        try:
            with library.ConnectionPool() as client:
                client.request(method, server.url)
                return client.request(method, server.url).status
        finally:
            server.stop()

    many = response(b"ok", "X: y\r\n" * 300)
    assert outcomes(lambda library: answered(library, many)) == (200, lamina.RemoteProtocolError)
    with_body = response(b"ok")
    assert outcomes(lambda library: answered(library, with_body, "HEAD")) == (
        httpcore.RemoteProtocolError,
        200,
    )


@shows
def early_close(stage: Stage) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(response(b"ok"))
        serve_silently(sock)

    server = FaultServer(serve)
    try:
        for library, kept in zip(LIBRARIES, (0, 1), strict=True):
            with library.ConnectionPool() as client:
                with client.stream("GET", server.url):
                    pass
                assert len(client.connections) == kept
    finally:
        server.stop()


@shows
def messages(stage: Stage) -> None:
    def refused(library: Any) -> tuple[bool, bool]:
        url = f"http://127.0.0.1:{stage.closed}/"
        try:
            library.request("GET", url)
        except library.ConnectError as error:
            return str(library.ConnectError()) != "", url.strip("/") in str(error)
        return False, False

    assert outcomes(refused) == ((False, False), (True, True))


@shows
def lone_connections(stage: Stage) -> None:
    def expired(library: Any) -> object:
        made = library.HTTPConnection(origin_of(library, stage.http), keepalive_expiry=0.0)
        with made as client:
            client.request("GET", stage.http)
            return client.request("GET", stage.http).status

    assert outcomes(expired) == (200, lamina.ConnectionNotAvailable)

    def reopened(library: Any) -> object:
        client = library.HTTPConnection(origin_of(library, stage.http))
        client.close()
        try:
            return client.request("GET", stage.http).status
        finally:
            client.close()

    assert outcomes(reopened) == (200, lamina.ConnectionNotAvailable)


@shows
def class_constants(stage: Stage) -> None:
    for name in ("HTTP11Connection", "HTTP2Connection"):
        theirs, ours = [getattr(library, name) for library in LIBRARIES]
        assert hasattr(theirs, "READ_NUM_BYTES")
        assert not hasattr(ours, "READ_NUM_BYTES")


def test_each_difference_has_a_row_and_a_proof() -> None:
    assert sorted(row.id for row in differences()) == sorted(SHOW)
    rows = table("Where it differs on purpose")
    assert all(len(row) == 5 and all(row) for row in rows), rows


@pytest.mark.parametrize("name", SHOW)
def test_a_difference_is_as_the_table_says(name: str, stage: Stage) -> None:
    SHOW[name](stage)
