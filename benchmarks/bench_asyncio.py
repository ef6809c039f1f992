"""The clients in tasks of asyncio."""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
from collections import deque
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from bench_blocking import new_handle, new_reqwest
from bench_clients import CHUNK, body_length, slow

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench_clients import AsyncClient, Target


class RawProtocol(asyncio.BufferedProtocol):
    """A connection: one request, one future."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer  # of all of them: what has come is taken out at once
        self.transport: asyncio.Transport
        self._done: asyncio.Future[int] | None = None
        self._head = b""
        self._body: bytearray | None = None
        self._place = memoryview(b"")
        self._missing = -1
        self._length = 0
        self._is_kept = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def exchange(self, request: bytes, *, is_kept: bool) -> asyncio.Future[int]:
        self._done = asyncio.get_running_loop().create_future()
        self._head, self._missing, self._is_kept = b"", -1, is_kept
        self.transport.write(request)
        return self._done

    def get_buffer(self, sizehint: int) -> memoryview:
        # Once the head has come, the body goes where it belongs.
        return self._place if self._missing > 0 and self._is_kept else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._missing < 0:
            self._head += self._buffer[:nbytes]
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            self._length = body_length(self._head[:end])
            first = self._head[end + 4 :]
            self._missing = self._length - len(first)
            if self._is_kept:
                self._body = bytearray(self._length)
                self._body[: len(first)] = first
                self._place = memoryview(self._body)[len(first) :]
        else:
            self._missing -= nbytes
            if self._is_kept:
                self._place = self._place[nbytes:]
        if not self._missing and self._done is not None:
            done, self._done = self._done, None
            if not done.done():
                done.set_result(self._length)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))


class Raw:
    """Protocols, and a stack of those that are idle. What is uploaded goes through the socket."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._request = target.request()
        self._buffer = memoryview(bytearray(CHUNK))
        self._idle: list[RawProtocol] = []
        self._waiting: deque[asyncio.Future[RawProtocol]] = deque()
        self._left = target.connections
        self._context = (target.context() or ssl.create_default_context()) if target.is_tls else None

    async def _open(self) -> RawProtocol:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(
            lambda: RawProtocol(self._buffer), self._target.host, self._target.port, ssl=self._context
        )
        return protocol

    async def _exchange(self, *, is_kept: bool) -> int:
        if self._idle:
            protocol = self._idle.pop()
        elif self._left:
            self._left -= 1
            protocol = await self._open()
        else:
            waiter: asyncio.Future[RawProtocol] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            protocol = await waiter
        length = await protocol.exchange(self._request, is_kept=is_kept)
        if self._waiting:
            self._waiting.popleft().set_result(protocol)
        else:
            self._idle.append(protocol)
        return length

    async def get(self) -> int:
        return await self._exchange(is_kept=True)

    async def download(self) -> int:
        return await self._exchange(is_kept=False)

    async def upload(self, body: bytes) -> int:
        loop = asyncio.get_running_loop()
        with socket.create_connection((self._target.host, self._target.port)) as sock:
            sock.setblocking(False)
            await loop.sock_sendall(sock, self._target.request("POST", f"Content-Length: {len(body)}\r\n"))
            await loop.sock_sendall(sock, body)
            body_length(await loop.sock_recv(sock, 65536))
        return len(body)

    async def hold(self, count: int) -> object:
        held = [await self._open() for _ in range(count)]
        for protocol in held:
            await protocol.exchange(self._request, is_kept=True)
        return held

    async def aclose(self) -> None:
        for protocol in self._idle:
            protocol.transport.close()


class H2Protocol(asyncio.Protocol):
    """A connection with as many streams as there are requests."""

    def __init__(self, target: Target) -> None:
        from bench_h2 import BareH2

        self._bare = BareH2(target)
        self._streams: dict[int, tuple[asyncio.Future[int], list[bytes] | None]] = {}
        self._lengths: dict[int, int] = {}
        self._is_writing = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def exchange(self, *, is_kept: bool) -> asyncio.Future[int]:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stream_id = self._bare.start()
        self._streams[stream_id] = done, ([] if is_kept else None)
        self._lengths[stream_id] = 0
        if not self._is_writing:
            self._is_writing = True
            asyncio.get_running_loop().call_soon(self._write)
        return done

    def _write(self) -> None:
        self._is_writing = False
        self.transport.write(self._bare.to_send())

    def data_received(self, data: bytes) -> None:
        for stream_id, piece in self._bare.feed(data):
            done, kept = self._streams[stream_id]
            if piece is not None:
                self._lengths[stream_id] += len(piece)
                if kept is not None:
                    kept.append(piece)
            else:
                del self._streams[stream_id]
                length = self._lengths.pop(stream_id)
                if not done.done():
                    done.set_result(length if kept is None else len(b"".join(kept)))
        answer = self._bare.to_send()
        if answer:
            self.transport.write(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        for done, _ in self._streams.values():
            if not done.done():
                done.set_exception(exc or ConnectionError("the server closed the connection"))


class H2:
    """One connection of bare h2."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._opening: asyncio.Task[H2Protocol] | None = None

    async def _open(self) -> H2Protocol:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(
            lambda: H2Protocol(self._target), self._target.host, self._target.port
        )
        return protocol

    async def _connection(self) -> H2Protocol:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return self._opening.result() if self._opening.done() else await self._opening

    async def get(self) -> int:
        return await (await self._connection()).exchange(is_kept=True)

    async def download(self) -> int:
        return await (await self._connection()).exchange(is_kept=False)

    async def aclose(self) -> None:
        if self._opening is not None:
            (await self._opening).transport.close()


class Core:
    """lamina, httpcore and httpcore2, which share their words. Also for trio."""

    def __init__(self, target: Target, module: str) -> None:
        self._url = target.url
        self._pool: Any = import_module(module).AsyncConnectionPool(
            ssl_context=target.context(),
            max_connections=target.connections,
            http1=not target.http2,
            http2=target.http2,
        )

    async def get(self) -> int:
        response = await self._pool.request("GET", self._url)
        return len(response.content)

    async def download(self) -> int:
        length = 0
        async with self._pool.stream("GET", self._url) as response:
            async for chunk in response.aiter_stream():
                length += len(chunk)
        return length

    async def upload(self, body: bytes) -> int:
        response = await self._pool.request("POST", self._url, content=body)
        assert response.status == 200
        return len(body)

    async def hold(self, count: int) -> object:
        async with AsyncExitStack() as stack:
            held = [
                await stack.enter_async_context(self._pool.stream("GET", self._url)) for _ in range(count)
            ]
            for response in held:
                await response.aread()
        return self._pool

    async def aclose(self) -> None:
        await self._pool.aclose()


class AioHttp:
    def __init__(self, target: Target) -> None:
        aiohttp = import_module("aiohttp")
        self._url = target.url
        context = target.context()
        self._session: Any = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=target.connections, ssl=True if context is None else context
            ),
            timeout=aiohttp.ClientTimeout(),
        )

    async def get(self) -> int:
        async with self._session.get(self._url) as response:
            return len(await response.read())

    async def download(self) -> int:
        length = 0
        async with self._session.get(self._url) as response:
            async for chunk in response.content.iter_any():
                length += len(chunk)
        return length

    async def upload(self, body: bytes) -> int:
        async with self._session.post(self._url, data=body) as response:
            await response.read()
            assert response.status == 200
        return len(body)

    async def hold(self, count: int) -> object:
        await at_once(self._session.get, self._url, count)
        return self._session

    async def aclose(self) -> None:
        await self._session.close()


class PyCurl:
    """curl's "multi" interface, which tells what to wait for; the event loop waits."""

    def __init__(self, target: Target) -> None:
        self._curl = pycurl = import_module("pycurl")
        self._loop = asyncio.get_running_loop()
        self._target = target
        self._idle: list[Any] = []
        self._running: dict[Any, asyncio.Future[None]] = {}
        self._watched: dict[int, int] = {}
        self._timer: asyncio.Handle | None = None
        self._multi: Any = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, target.connections)
        self._multi.setopt(pycurl.M_MAXCONNECTS, target.connections)
        if target.http2:
            self._multi.setopt(pycurl.M_PIPELINING, 2)  # CURLPIPE_MULTIPLEX

    def _watch(self, event: int, fd: int, multi: object, data: object) -> None:
        pycurl = self._curl
        wanted = 0 if event == pycurl.POLL_REMOVE else event
        known = self._watched.get(fd, 0)
        if wanted & pycurl.POLL_IN:
            self._loop.add_reader(fd, self._act, fd, pycurl.CSELECT_IN)
        elif known & pycurl.POLL_IN:
            self._loop.remove_reader(fd)
        if wanted & pycurl.POLL_OUT:
            self._loop.add_writer(fd, self._act, fd, pycurl.CSELECT_OUT)
        elif known & pycurl.POLL_OUT:
            self._loop.remove_writer(fd)
        self._watched[fd] = wanted

    def _set_timer(self, milliseconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds == 0:
            self._timer = self._loop.call_soon(self._act, self._curl.SOCKET_TIMEOUT, 0)
        elif milliseconds > 0:
            self._timer = self._loop.call_later(milliseconds / 1000, self._act, self._curl.SOCKET_TIMEOUT, 0)

    def _act(self, fd: int, mask: int) -> None:
        self._multi.socket_action(fd, mask)
        left = 1
        while left:
            left, done, failed = self._multi.info_read()
            for handle in done:
                self._end(handle, None)
            for handle, code, message in failed:
                self._end(handle, OSError(code, message))

    def _end(self, handle: Any, error: Exception | None) -> None:
        self._multi.remove_handle(handle)
        future = self._running.pop(handle)
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    async def _perform(self, option: int, sink: object, body: bytes | None = None) -> None:
        pycurl = self._curl
        handle = self._idle.pop() if self._idle else new_handle(self._target)
        if self._target.http2:
            handle.setopt(pycurl.PIPEWAIT, 1)
        handle.setopt(option, sink)
        if body is not None:
            handle.setopt(pycurl.POST, 1)
            handle.setopt(pycurl.POSTFIELDSIZE_LARGE, len(body))
            handle.setopt(pycurl.READDATA, io.BytesIO(body))
            handle.setopt(pycurl.UPLOAD_BUFFERSIZE, 2 * 2**20)
            handle.setopt(pycurl.HTTPHEADER, ["Expect:"])
        await self._run(handle)
        self._idle.append(handle)

    def _run(self, handle: Any) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._running[handle] = future
        self._multi.add_handle(handle)
        return future

    async def get(self) -> int:
        body = io.BytesIO()
        await self._perform(self._curl.WRITEDATA, body)
        return len(body.getvalue())

    async def download(self) -> int:
        length = 0

        def take(data: bytes) -> None:
            nonlocal length
            length += len(data)

        await self._perform(self._curl.WRITEFUNCTION, take)
        return length

    async def upload(self, body: bytes) -> int:
        await self._perform(self._curl.WRITEFUNCTION, len, body)
        return len(body)

    async def hold(self, count: int) -> object:
        # What is paused keeps its connection from the others.
        is_open = False

        def take(data: bytes) -> int:
            return len(data) if is_open else int(self._curl.WRITEFUNC_PAUSE)

        handles = [new_handle(self._target) for _ in range(count)]
        futures = []
        for handle in handles:
            handle.setopt(self._curl.WRITEFUNCTION, take)
            futures.append(self._run(handle))
            await asyncio.sleep(0)
        await asyncio.sleep(1.0)
        is_open = True
        for handle in handles:
            handle.pause(self._curl.PAUSE_CONT)
        self._act(self._curl.SOCKET_TIMEOUT, 0)
        await asyncio.gather(*futures)
        for handle in handles:
            handle.close()
        return self._multi

    async def aclose(self) -> None:
        for handle in self._idle:
            handle.close()
        self._multi.close()


class PyReqwest:
    def __init__(self, target: Target) -> None:
        self._url = target.url
        self._client = new_reqwest(import_module("pyreqwest.client").ClientBuilder(), target)

    async def get(self) -> int:
        response = await self._client.get(self._url).build().send()
        return len(await response.bytes())

    async def download(self) -> int:
        length = 0
        async with self._client.get(self._url).build_streamed() as response:
            reader = response.body_reader
            while (chunk := await reader.read_chunk()) is not None:
                length += len(chunk)
        return length

    async def upload(self, body: bytes) -> int:
        response = await self._client.post(self._url).body_bytes(body).build().send()
        await response.bytes()
        assert response.status == 200
        return len(body)

    async def hold(self, count: int) -> object:
        await at_once(lambda url: self._client.get(url).build().send(), self._url, count)
        return self._client

    async def aclose(self) -> None:
        await self._client.close()


async def at_once(get: Callable[[str], Any], url: str, count: int) -> None:
    """For clients whose connections are free as soon as the body has come, read or not: slow answers to so many."""
    await asyncio.gather(*(get(slow(url)) for _ in range(count)))


def open_client(name: str, target: Target) -> AsyncClient:
    if name in {"lamina", "httpcore", "httpcore2"}:
        return Core(target, name)
    kinds: dict[str, Callable[[Target], AsyncClient]] = {
        "raw": Raw,
        "h2": H2,
        "aiohttp": AioHttp,
        "pycurl": PyCurl,
        "pyreqwest": PyReqwest,
    }
    return kinds[name](target)
