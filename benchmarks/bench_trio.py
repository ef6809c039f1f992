"""The clients in tasks of trio."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from bench_asyncio import Core
from bench_clients import CHUNK, body_length

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench_clients import AsyncClient, Target


async def connect(target: Target) -> trio.socket.SocketType:
    sock = trio.socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await sock.connect((target.host, target.port))
    return sock


async def send_all(sock: trio.socket.SocketType, data: bytes) -> None:
    sent = await sock.send(data)
    while sent < len(data):
        sent += await sock.send(data[sent:])


class Raw:
    """Trio's sockets, and a stack of those that are idle. There is one for each task."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._request = target.request()
        self._idle: list[trio.socket.SocketType] = []

    async def get(self) -> int:
        body: list[bytes] = []
        await self._exchange(body.append)
        return len(b"".join(body))

    async def download(self) -> int:
        return await self._exchange(len)

    async def _exchange(self, take: Callable[[bytes], object]) -> int:
        sock = self._idle.pop() if self._idle else await connect(self._target)
        await send_all(sock, self._request)
        data = await sock.recv(65536)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += await sock.recv(65536)
        length = body_length(data[:end])
        data = data[end + 4 :]
        missing = length
        while True:
            take(data)
            missing -= len(data)
            if not missing:
                break
            data = await sock.recv(CHUNK)
        self._idle.append(sock)
        return length

    async def aclose(self) -> None:
        for sock in self._idle:
            sock.close()


class H2:
    """A socket and h2, for one request after the other."""

    def __init__(self, target: Target) -> None:
        self._target = target
        from bench_h2 import BareH2

        self._bare = BareH2(target)
        self._sock: trio.socket.SocketType | None = None

    async def _receive(self, take: Callable[[bytes], object]) -> int:
        if self._sock is None:
            self._sock = await connect(self._target)
        sock = self._sock
        self._bare.start()
        await send_all(sock, self._bare.to_send())
        length = 0
        while True:
            found = self._bare.feed(await sock.recv(CHUNK))
            answer = self._bare.to_send()
            if answer:
                await send_all(sock, answer)
            for _, data in found:
                if data is None:
                    return length
                take(data)
                length += len(data)

    async def get(self) -> int:
        chunks: list[bytes] = []
        await self._receive(chunks.append)
        return len(b"".join(chunks))

    async def download(self) -> int:
        return await self._receive(len)

    async def aclose(self) -> None:
        if self._sock is not None:
            self._sock.close()


def open_client(name: str, target: Target) -> AsyncClient:
    if name in {"lamina", "httpcore", "httpcore2"}:
        return Core(target, name)
    kinds: dict[str, Callable[[Target], AsyncClient]] = {"raw": Raw, "h2": H2}
    return kinds[name](target)
