"""The clients in threads."""

from __future__ import annotations

import io
import socket
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench_clients import CHUNK, WINDOW, body_length

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable

    from bench_clients import BlockingClient, Target


class Raw:
    """A socket, and as little besides as there can be."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._request = target.request()
        self._buffer = memoryview(bytearray(CHUNK))
        sock = socket.create_connection((target.host, target.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.is_tls:
            import ssl

            context = target.context() or ssl.create_default_context()
            sock = context.wrap_socket(sock, server_hostname=target.host)
        self._sock = sock

    def _start(self) -> tuple[int, bytes]:
        self._sock.sendall(self._request)
        data = self._sock.recv(65536)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._sock.recv(65536)
        return body_length(data[:end]), data[end + 4 :]

    def get(self) -> int:
        length, first = self._start()
        if len(first) == length:
            return length
        body = bytearray(length)
        body[: len(first)] = first
        rest = memoryview(body)[len(first) :]
        while rest:
            rest = rest[self._take(rest) :]
        return len(body)

    def download(self) -> int:
        length, first = self._start()
        missing = length - len(first)
        while missing:
            missing -= self._take(self._buffer[:missing])
        return length

    def _take(self, buffer: memoryview) -> int:
        taken = self._sock.recv_into(buffer)
        if not taken:
            raise ConnectionError("the server closed the connection")
        return taken

    def worker(self) -> Raw:
        return Raw(self._target)

    def hold(self, count: int) -> object:
        held = [socket.create_connection((self._target.host, self._target.port)) for _ in range(count)]
        for sock in held:
            sock.sendall(self._request)
            sock.recv(65536)
        return held

    def close(self) -> None:
        self._sock.close()


class H2:
    """A socket and h2."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._sock = socket.create_connection((target.host, target.port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        from bench_h2 import BareH2

        self._bare = BareH2(target)

    def _receive(self, take: Callable[[bytes], object]) -> int:
        self._bare.start()
        self._sock.sendall(self._bare.to_send())
        length = 0
        while True:
            found = self._bare.feed(self._sock.recv(CHUNK))
            answer = self._bare.to_send()
            if answer:
                self._sock.sendall(answer)
            for _, data in found:
                if data is None:
                    return length
                take(data)
                length += len(data)

    def get(self) -> int:
        chunks: list[bytes] = []
        self._receive(chunks.append)
        return len(b"".join(chunks))

    def download(self) -> int:
        return self._receive(len)

    def worker(self) -> H2:
        return H2(self._target)

    def close(self) -> None:
        self._sock.close()


class Core:
    """lamina, httpcore and httpcore2, which share their words."""

    def __init__(self, target: Target, module: str) -> None:
        self._url = target.url
        self._pool: Any = import_module(module).ConnectionPool(
            ssl_context=target.context(),
            max_connections=target.connections,
            http1=not target.http2,
            http2=target.http2,
        )

    def get(self) -> int:
        return len(self._pool.request("GET", self._url).content)

    def download(self) -> int:
        with self._pool.stream("GET", self._url) as response:
            return sum(map(len, response.iter_stream()))

    def worker(self) -> Core:
        return self

    def hold(self, count: int) -> object:
        with ExitStack() as stack:
            for response in [stack.enter_context(self._pool.stream("GET", self._url)) for _ in range(count)]:
                response.read()
        return self._pool

    def close(self) -> None:
        self._pool.close()


class StandardLibrary:
    """`http.client`, which has a connection and no pool: one for each thread."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._buffer = memoryview(bytearray(CHUNK))
        self._connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        import http.client

        host, port = self._target.host, self._target.port
        if self._target.is_tls:
            return http.client.HTTPSConnection(host, port, context=self._target.context())
        return http.client.HTTPConnection(host, port)

    def get(self) -> int:
        self._connection.request("GET", self._target.path)
        return len(self._connection.getresponse().read())

    def download(self) -> int:
        self._connection.request("GET", self._target.path)
        response = self._connection.getresponse()
        length = 0
        while taken := response.readinto(self._buffer):
            length += taken
        return length

    def worker(self) -> StandardLibrary:
        return StandardLibrary(self._target)

    def hold(self, count: int) -> object:
        held = [self._connect() for _ in range(count)]
        for connection in held:
            connection.request("GET", self._target.path)
            connection.getresponse().read()
        return held

    def close(self) -> None:
        self._connection.close()


class Urllib3:
    def __init__(self, target: Target) -> None:
        self._url = target.url
        urllib3 = import_module("urllib3")
        self._pool: Any = urllib3.PoolManager(
            maxsize=target.connections, block=True, ssl_context=target.context()
        )

    def get(self) -> int:
        return len(self._pool.request("GET", self._url).data)

    def download(self) -> int:
        response = self._pool.request("GET", self._url, preload_content=False)
        length = sum(map(len, response.stream(CHUNK)))
        response.release_conn()
        return length

    def worker(self) -> Urllib3:
        return self

    def hold(self, count: int) -> object:
        held = [self._pool.request("GET", self._url, preload_content=False) for _ in range(count)]
        for response in held:
            response.read()
            response.release_conn()
        return self._pool

    def close(self) -> None:
        self._pool.clear()


class PyCurl:
    """A handle, with a connection of its own, for each thread."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._handle = new_handle(target)

    def get(self) -> int:
        body = io.BytesIO()
        self._handle.setopt(import_module("pycurl").WRITEDATA, body)
        self._handle.perform()
        return len(body.getvalue())

    def download(self) -> int:
        length = 0

        def take(data: bytes) -> None:
            nonlocal length
            length += len(data)

        self._handle.setopt(import_module("pycurl").WRITEFUNCTION, take)
        self._handle.perform()
        return length

    def worker(self) -> PyCurl:
        return PyCurl(self._target)

    def hold(self, count: int) -> object:
        held = [PyCurl(self._target) for _ in range(count)]
        for each in held:
            each.get()
        return held

    def close(self) -> None:
        self._handle.close()


def new_handle(target: Target) -> Any:
    """An easy handle of curl for one thing after the other."""
    pycurl = import_module("pycurl")
    handle = pycurl.Curl()
    handle.setopt(pycurl.URL, target.url)
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.FAILONERROR, 1)
    handle.setopt(pycurl.BUFFERSIZE, CHUNK)
    if target.is_tls:
        # It has no certificates of its own; its documentation says to take certifi's.
        handle.setopt(pycurl.CAINFO, target.authority or import_module("certifi").where())
    if target.http2:
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE)
    return handle


class PyReqwest:
    def __init__(self, target: Target) -> None:
        self._url = target.url
        self._client = new_reqwest(import_module("pyreqwest.client").SyncClientBuilder(), target)

    def get(self) -> int:
        return len(self._client.get(self._url).build().send().bytes())

    def download(self) -> int:
        length = 0
        with self._client.get(self._url).build_streamed() as response:
            reader = response.body_reader
            while (chunk := reader.read_chunk()) is not None:
                length += len(chunk)
        return length

    def worker(self) -> PyReqwest:
        return self

    def close(self) -> None:
        self._client.close()


def new_reqwest(builder: Any, target: Target) -> Any:
    """A client of pyreqwest, from its blocking or async builder."""
    if target.authority is not None and target.is_tls:
        with open(target.authority, "rb") as file:
            builder = builder.add_root_certificate_pem(file.read())
    if target.http2:
        # The windows that its documentation says to choose; as bare h2 has them.
        builder = (
            builder.http2_prior_knowledge()
            .http2_initial_stream_window_size(WINDOW)
            .http2_initial_connection_window_size(WINDOW)
        )
    else:
        # What limits it is the number of requests; over HTTP/2 they share a connection.
        builder = builder.max_connections(target.connections)
    return builder.build()


def open_client(name: str, target: Target) -> BlockingClient:
    if name in {"lamina", "httpcore", "httpcore2"}:
        return Core(target, name)
    kinds: dict[str, Callable[[Target], BlockingClient]] = {
        "raw": Raw,
        "h2": H2,
        "http.client": StandardLibrary,
        "urllib3": Urllib3,
        "pycurl": PyCurl,
        "pyreqwest": PyReqwest,
    }
    return kinds[name](target)
