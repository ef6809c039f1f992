"""Draws the pictures of `docs/how-to/limit-and-observe.md`: the events of a pool, as a person would rather see them.

    python tools/pool_pictures.py            # writes docs/images/*.svg
    python tools/pool_pictures.py --check    # fails if they are not what it would write

What is drawn has happened: a program sends requests to servers in memory, and `on_event` tells what the pool does. Time
is virtual, so every run draws the same.
"""

from __future__ import annotations

import argparse
import asyncio
import selectors
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lamina
import lamina_pool
from lamina_interfaces import AsyncNetworkBackend, TimingSpan
from lamina_mock import AsyncScriptedBackend, MockResponse, MockServer, RuntimeClock, Script, TLSFacts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from lamina_mock import MockRequest
    from lamina_pool import PoolEvent

IMAGES = Path(__file__).parent.parent / "docs" / "images"

WIDTH = 800
LEFT = 70.0
"""Where the scale of time begins, in pixels."""
RIGHT = 730.0
"""Where it ends."""


# --- what happens ------------------------------------------------------------------------------------------


class _Jumping(selectors.DefaultSelector):
    """Waits for nobody: time jumps to whatever comes next."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and nothing will come"
            self.now += timeout
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def record(program: Callable[[Callable[[PoolEvent], object]], Awaitable[None]]) -> list[PoolEvent]:
    """Run a program that gives its pool the listener, and return what the pool has told."""
    events: list[PoolEvent] = []

    async def main() -> None:
        await program(events.append)

    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        runner.run(main())
    return events


class _SlowNames(AsyncNetworkBackend):
    """Looks up names, as a mock does not: it takes its time, and says so."""

    def __init__(self, backend: AsyncNetworkBackend, seconds: float) -> None:
        self._backend = backend
        self._seconds = seconds

    async def connect_tcp(self, host: str, port: int, *arguments: Any, **options: Any) -> Any:
        clock = asyncio.get_running_loop().time
        start = clock()
        await asyncio.sleep(self._seconds)
        span = TimingSpan("dns", start, clock())
        return _Named(await self._backend.connect_tcp(host, port, *arguments, **options), span)


class _Named:
    """A stream that knows of its name's look-up."""

    def __init__(self, stream: Any, span: TimingSpan) -> None:
        self._stream = stream
        self._span = span

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def start_tls(self, *arguments: Any, **options: Any) -> _Named:
        await self._stream.start_tls(*arguments, **options)
        return self

    def get_extra_info(self, info: str) -> Any:
        value = self._stream.get_extra_info(info)
        return (self._span, *value) if info == "timings" else value


async def one_request(listener: Callable[[PoolEvent], object]) -> None:
    """A request that has to wait for its turn, and for all there is to wait for, through a proxy."""
    first = Script("another request").expect_request("GET", "http://www.example.com/")
    first.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", after=0.045)
    tunnel = Script("the request").slow_connect(0.012).expect_request("CONNECT", "www.example.org:443")
    tunnel.reply(b"HTTP/1.1 200 OK\r\n\r\n", after=0.021).tls(delay=0.027).expect_request("POST", "/")
    tunnel.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n", after=0.048)
    tunnel.reply(b"x" * 400, after=0.004, pieces=4, every=0.006)

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.005)
            yield b"data"

    with AsyncScriptedBackend([first, tunnel], clock=RuntimeClock()) as backend:
        async with (
            lamina.AsyncConnectionPool(
                proxy=lamina.Proxy("http://proxy.example.net:3128"),
                network_backend=_SlowNames(backend, 0.009),
                max_connections=1,
                on_event=listener,
            ) as pool,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(pool.request("GET", "http://www.example.com/"))
            await asyncio.sleep(0.016)
            await pool.request("POST", "https://www.example.org/", content=upload())


async def busy_pool(listener: Callable[[PoolEvent], object]) -> None:
    """A burst of requests, more than there are connections; then a few; then nothing for a while."""
    tls = TLSFacts(delay=0.05)

    def handler(request: MockRequest) -> MockResponse:
        return MockResponse(content=b"ok", delay=float(request.target.removeprefix("/")))

    server = MockServer(handler, connect_delay=0.04, tls=tls, clock=RuntimeClock())
    # When each request comes, how long its answer takes, and which server it asks.
    burst = [(0.02 * n, 0.11 + 0.06 * (n * 5 % 4), "api") for n in range(14)]
    others = [(0.66, 0.15, "www"), (0.90, 0.20, "api"), (0.95, 0.13, "www"), (1.55, 0.21, "api")]
    async with lamina.AsyncConnectionPool(
        network_backend=server.async_backend, max_connections=4, keepalive_expiry=0.4, on_event=listener
    ) as pool:

        async def send(at: float, seconds: float, host: str) -> None:
            await asyncio.sleep(at)
            await pool.request("GET", f"https://{host}.example.org/{seconds:.2f}")

        async with asyncio.TaskGroup() as group:
            for each in (*burst, *others):
                group.create_task(send(*each))
            await asyncio.sleep(1.4)
            pool.reap()
        await asyncio.sleep(0.1)


# --- drawing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """From seconds to pixels.

    Attributes:
        start: seconds, at the left end.
        seconds: from there to the right end.
    """

    start: float
    seconds: float

    def x(self, at: float) -> float:
        return LEFT + (at - self.start) / self.seconds * (RIGHT - LEFT)

    def grid(self, step_ms: int, bottom: float) -> list[str]:
        """Lines, and beneath them the milliseconds."""
        marks = range(0, round(self.seconds * 1000) + 1, step_ms)
        places = [(mark, self.x(self.start + mark / 1000)) for mark in marks]
        lines = [f'<path class="grid" d="M{x:.1f} 8V{bottom:.0f}"/>' for _, x in places]
        texts = [text(f"{mark} ms" if mark == 0 else str(mark), x, bottom + 20, "note") for mark, x in places]
        return ['<g class="line">', *lines, "</g>", *texts]

    def bar(self, kind: str, start: float, end: float, y: float, height: float) -> str:
        """From one moment to another; never so short that nobody sees it."""
        width = max(self.x(end) - self.x(start), 1.5)
        return (
            f'<rect class="{kind}" x="{self.x(start):.1f}" y="{y:.0f}" width="{width:.1f}" '
            f'height="{height:.0f}" rx="{min(3.0, height / 2):.0f}"/>'
        )


def text(content: str, x: float, y: float, kind: str, anchor: str = "") -> str:
    style = f' style="text-anchor:{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}"{style}>{content}</text>'


def svg(name: str, height: float, title: str, description: str, lines: Iterable[str]) -> str:
    opening = (
        f'<svg class="drawing" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-text">'
    )
    names = [f'<title id="{name}-title">{title}</title>', f'<desc id="{name}-text">{description}</desc>']
    return "\n".join([opening, *names, *lines, "</svg>", ""])


STEPS: dict[type[PoolEvent], tuple[str, str]] = {
    lamina_pool.NameResolved: ("dns", "bar"),
    lamina_pool.TCPConnected: ("tcp", "bar"),
    lamina_pool.ProxyConnected: ("proxy", "bar"),
    lamina_pool.TLSEstablished: ("tls", "bar"),
    lamina_pool.RequestSent: ("send", "bar"),
    lamina_pool.ResponseStarted: ("wait", "bar wait"),
    lamina_pool.BodyReceived: ("body", "bar"),
}
"""Events that tell how long a step took, each with the step's name and the look of its bar."""


def waterfall(events: Sequence[PoolEvent]) -> str:
    """The last request that began, step by step."""
    request = max(event.request_id for event in events if isinstance(event, lamina_pool.RequestStarted))
    own = [event for event in events if getattr(event, "request_id", None) == request]
    rows: list[tuple[str, str, float, float]] = []
    for event in own:
        if isinstance(event, lamina_pool.RequestQueued):
            acquired = next(each for each in own if isinstance(each, lamina_pool.ConnectionAcquired))
            rows.append(("queue", "bar wait", event.at, event.at + acquired.queued))
        elif type(event) in STEPS:
            step, kind = STEPS[type(event)]
            duration: float = event.duration  # type: ignore[attr-defined] # all of them have one
            rows.append((step, kind, event.at - duration, event.at))
    start, end = own[0].at, own[-1].at
    scale = Scale(start, end - start)
    bottom = 12.0 + 32.0 * len(rows)
    lines = scale.grid(50, bottom)
    for number, (step, kind, begin, finish) in enumerate(rows):
        y = 16.0 + 32.0 * number
        lines += [
            text(step, 58, y + 14, "name small", "end"),
            scale.bar(kind, begin, finish, y, 20),
            text(f"{(finish - begin) * 1000:.1f} ms", 795, y + 14, "note", "end"),
        ]
    told = ", ".join(f"{step} {(finish - begin) * 1000:.0f}" for step, _, begin, finish in rows)
    return svg(
        "observed-request",
        bottom + 28,
        "One request, from the queue to the end of its body",
        f"Bars on one scale of time, in milliseconds: {told}; {(end - start) * 1000:.0f} in all.",
        lines,
    )


@dataclass
class Lane:
    """The life of one connection, in seconds.

    Attributes:
        host: what it leads to.
        began: when connecting began.
        opened: when it was open.
        uses: from when to when it carried a request.
        closed: when it was closed.
    """

    host: str
    began: float
    opened: float
    uses: list[tuple[float, float]]
    closed: float = 0.0


def lanes_of(events: Sequence[PoolEvent]) -> dict[int, Lane]:
    """The connections by their ids, in the order in which they were opened."""
    lanes: dict[int, Lane] = {}
    for event in events:
        if isinstance(event, lamina_pool.ConnectionOpened):
            host = event.origin.host.decode().partition(".")[0]
            lanes[event.connection_id] = Lane(host, event.at - event.duration, event.at, [])
        elif isinstance(event, lamina_pool.ConnectionReleased):
            lanes[event.connection_id].uses.append((event.at - event.duration, event.at))
        elif isinstance(event, lamina_pool.ConnectionClosed):
            lanes[event.connection_id].closed = event.at
    return lanes


def queue_of(events: Sequence[PoolEvent]) -> list[tuple[float, int]]:
    """How many requests waited, from which moment on."""
    waiting: set[int] = set()
    lengths: list[tuple[float, int]] = []
    for event in sorted(events, key=lambda event: event.at):
        if isinstance(event, lamina_pool.RequestQueued):
            waiting.add(event.request_id)
        elif isinstance(event, (lamina_pool.ConnectionAcquired, lamina_pool.RequestEnded)):
            waiting.discard(event.request_id)
        lengths.append((event.at, len(waiting)))
    return lengths


def pool_over_time(events: Sequence[PoolEvent]) -> str:
    """The connections as lanes, and under them how many requests wait."""
    lanes = lanes_of(events)
    queue = queue_of(events)
    start, end = min(event.at for event in events), max(event.at for event in events)
    scale = Scale(start, end - start)
    longest = max(length for _, length in queue)
    top_of_queue = 30.0 + 26.0 * len(lanes)
    unit = 9.0
    base = top_of_queue + unit * longest
    lines = scale.grid(200, base)
    for number, lane in enumerate(lanes.values()):
        y = 14.0 + 26.0 * number
        lines += [
            text(f"#{number + 1}", 58, y + 13, "name small", "end"),
            scale.bar("bar idle", lane.opened, lane.closed, y + 7, 4),
            scale.bar("bar connecting", lane.began, lane.opened, y + 3, 12),
            *(scale.bar("bar", begin, finish, y, 18) for begin, finish in lane.uses),
            text(f"{lane.host}, {len(lane.uses)}", 795, y + 13, "note", "end"),
        ]
    path = [f"M{LEFT:.1f} {base:.0f}"]
    for at, length in queue:
        path.append(f"H{scale.x(at):.1f}V{base - unit * length:.0f}")
    lines += [
        text("queue", 58, base - 4, "name small", "end"),
        f'<path class="queue" d="{"".join(path)}H{RIGHT:.1f}V{base:.0f}Z"/>',
        text(f"at most {longest}", 795, top_of_queue + 10, "note", "end"),
    ]
    # What the bars mean.
    y = base + 36
    for x, kind, height, meaning in (
        (LEFT, "bar connecting", 12, "connecting"),
        (LEFT + 150, "bar", 18, "carries a request"),
        (LEFT + 330, "bar idle", 4, "idle"),
        (LEFT + 440, "queue", 14, "requests that wait"),
    ):
        lines += [
            f'<rect class="{kind}" x="{x:.0f}" y="{y + 9 - height / 2:.0f}" width="28" height="{height}" rx="2"/>',
            text(meaning, x + 36, y + 13, "note start"),
        ]
    requests = sum(len(lane.uses) for lane in lanes.values())
    return svg(
        "observed-pool",
        y + 30,
        "A pool of four connections over time",
        f"Lanes of time, one for each of the {len(lanes)} connections that were opened: connecting, then carrying "
        f"requests, {requests} in all, and idle between them, until it is closed. Beneath them the length of the "
        f"queue: it grows to {longest} in the first burst of requests, and is empty later.",
        lines,
    )


PICTURES: dict[str, tuple[Callable[[Callable[[PoolEvent], object]], Awaitable[None]], Any]] = {
    "observed-request.svg": (one_request, waterfall),
    "observed-pool.svg": (busy_pool, pool_over_time),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw what a pool's events tell.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a picture has changed")
    is_check = parser.parse_args().check
    changed = []
    for name, (program, draw) in PICTURES.items():
        drawn = draw(record(program))
        file = IMAGES / name
        if not file.is_file() or file.read_text("utf-8") != drawn:
            changed.append(name)
            if not is_check:
                file.write_text(drawn, "utf-8")
    if changed and is_check:
        print(f"not what tools/pool_pictures.py draws: {', '.join(changed)}", file=sys.stderr)
    return bool(changed) if is_check else 0


if __name__ == "__main__":
    sys.exit(main())
