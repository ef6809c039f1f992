"""Rules about backends: connecting, and sleeping.

Names that do not exist are left aside: asking for one may ask a server somewhere, and the kit stays on this machine.
"""

from __future__ import annotations

import math
import socket
import sys
from typing import Any

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    UnsupportedProtocol,
)

from . import _worlds
from ._acts import End, Expect, Ignore, Refuse, Say
from ._case import Case, Stream, describe_outcome, expect
from ._peers import NotApplicable
from ._rules import rule

SEVERAL = 10
"""Connections at once."""


UNANSWERED = (
    "no address answered within `timeout`; "
    '`phase` is `"dns"` or `"connect"`, and `attempts` tells the addresses tried. No socket is left.'
)


async def _connect(case: Case, **options: Any) -> Stream:
    return await case.opened(case.backend.connect_tcp, case.place.host, case.place.port, **options)


async def _talk(case: Case, **options: Any) -> None:
    """Connect to a peer that answers, and hear the answer."""
    stream = await _connect(case, **options)
    await case.place.greet(stream)
    await stream.write(b"ping", case.long)
    await case.gets(stream, b"pong")
    await stream.aclose()


# --- TCP ---------------------------------------------------------------------------------------------------


@rule("NetworkBackend.connect_tcp", "The connected stream, the caller's to close.")
async def connect_tcp_connects(case: Case) -> None:
    case.serve(Expect(b"ping"), Say(b"pong"), End())
    await _talk(case, timeout=case.long)
    await _talk(case)


@rule(
    "NetworkBackend.connect_tcp", "a name or an IP address (IPv6 without brackets, a zone as `fe80::1%eth0`)."
)
async def connect_tcp_takes_a_name(case: Case) -> None:
    place = case.serve(Expect(b"ping"), Say(b"pong"), End())
    if case.peer.has_addresses:
        place.host = "localhost"
    await _talk(case, timeout=case.long)


@rule("NetworkBackend", "Safe to use from several threads at once.")
async def several_connect_at_once(case: Case) -> None:
    case.serve(Expect(b"ping"), Say(b"pong"), End())

    async def talk() -> None:
        await _talk(case, timeout=case.long)

    jobs = [case.start(talk) for _ in range(SEVERAL)]
    for job in jobs:
        outcome = await case.outcome(job, f"one of {SEVERAL} connections made at once")
        if isinstance(outcome, Exception):
            raise outcome


@rule(
    "NetworkBackend.connect_tcp",
    "the name is unknown, or no address could be connected to. As for `ConnectTimeout`.",
)
async def a_refused_connection_is_a_connect_error(case: Case) -> None:
    case.serve(Refuse())
    await case.raises(
        ConnectError,
        by=lambda: _connect(case, timeout=case.long),
        what="connecting to a port that nobody listens on",
    )


@rule(
    "NetworkBackend.connect_tcp",
    UNANSWERED,
)
async def an_unanswered_connection_times_out(case: Case) -> None:
    case.serve(Ignore())
    await case.raises(
        ConnectTimeout,
        by=lambda: _connect(case, timeout=case.short),
        what="connecting to a port that does not answer",
    )
    await _nothing_left(case, "a connection that timed out")


@rule(
    "NetworkBackend.connect_tcp",
    UNANSWERED,
)
async def a_connect_timeout_tells_what_was_tried(case: Case) -> None:
    place = case.serve(Ignore())
    if not case.peer.has_addresses:
        raise NotApplicable("addresses mean nothing here")
    error = await case.raises(
        ConnectTimeout,
        by=lambda: _connect(case, timeout=case.short),
        what="connecting to a port that does not answer",
    )
    expect(error.phase in ("dns", "connect"), f"the error's phase is {error.phase!r}")
    tried = [attempt.address for attempt in error.attempts]
    expect(tried == [f"{place.host}:{place.port}"], f"the error's attempts name {tried}")


@rule("NetworkBackend.connect_tcp", "the ambient deadline passed. As for `ConnectTimeout`.")
async def connecting_obeys_the_deadline(case: Case) -> None:
    case.serve(Ignore())
    await case.raises(
        DeadlineExceeded,
        by=case.within,
        given=(case.short, lambda: _connect(case, timeout=case.long)),
        what="connecting to a port that does not answer, under a deadline,",
    )
    await _nothing_left(case, "a connection that met a deadline")


@rule(
    "NetworkBackend.connect_tcp",
    UNANSWERED,
)
async def connecting_without_time_connects_nothing(case: Case) -> None:
    place = case.serve(Say(b"x"), End())
    await case.raises(ConnectTimeout, by=lambda: _connect(case, timeout=0.0), what="connect_tcp(timeout=0)")
    # Whoever connects after it is accepted after it.
    stream = await _connect(case, timeout=case.long)
    await place.greet(stream)
    await case.gets(stream, b"x")
    expect(len(place.clients) <= 1, "connect_tcp(timeout=0) has made a connection nevertheless")


@rule("NetworkBackend.connect_tcp", "an argument makes no sense. Nothing was tried.")
async def a_senseless_timeout_is_refused(case: Case) -> None:
    place = case.serve(Say(b"x"), End())
    for timeout in (-1.0, math.nan, "soon"):
        await case.raises(
            ArgumentValueError,
            ArgumentTypeError,
            by=lambda timeout=timeout: _connect(case, timeout=timeout),
            what=f"connect_tcp(timeout={timeout!r})",
        )
    expect(not place.clients, "a connection was made nevertheless")


@rule("NetworkBackend.connect_tcp", "1 to 65535.")
async def a_senseless_port_is_refused(case: Case) -> None:
    case.serve(End())
    if not case.peer.has_addresses:
        raise NotApplicable("ports mean nothing here")
    for port in (0, -1, 65536):
        case.place.port = port
        await case.raises(
            ArgumentValueError,
            ArgumentTypeError,
            by=lambda: _connect(case, timeout=case.long),
            what=f"connect_tcp to port {port}",
        )


@rule("NetworkBackend.connect_tcp", "our own IP address to connect from.")
async def local_address_is_where_it_comes_from(case: Case) -> None:
    place = case.serve(Say(b"x"), End())
    if not case.peer.has_addresses:
        raise NotApplicable("addresses mean nothing here")
    # Elsewhere there is one address of loopback, which it comes from anyway.
    address = "127.0.0.9" if sys.platform == "linux" else "127.0.0.1"
    stream = await _dial(case, local_address=address)
    await case.gets(stream, b"x")
    expect(place.clients[0][0] == address, f"the peer sees {place.clients[0][0]}")


@rule("NetworkBackend.connect_tcp", "set before connecting, in order, each as `socket.setsockopt` takes it.")
async def socket_options_are_set(case: Case) -> None:
    case.serve(Say(b"x"), End())
    if not case.peer.has_addresses:
        raise NotApplicable("there is no socket")
    stream = await _dial(case, socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)])
    sock = stream.info("socket")
    if not hasattr(sock, "getsockopt"):
        raise NotApplicable("the stream does not tell its socket")
    expect(
        bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)), "the socket does not have the option"
    )


async def _dial(case: Case, **options: Any) -> Stream:
    try:
        return await _connect(case, timeout=case.long, **options)
    except ArgumentValueError as error:
        raise NotApplicable(f"refused: {error}") from None


@rule("AsyncNetworkBackend.connect_tcp", "a cancelled call leaves no socket.", where="async")
async def a_cancelled_connection_leaves_nothing(case: Case) -> None:
    case.serve(Ignore())
    job = case.start(lambda: _connect(case))
    await case.pause()
    job.cancel()
    outcome = await case.outcome(job, "a cancelled connect_tcp")
    expect(
        isinstance(outcome, _worlds.Cancelled),
        f"a cancelled connect_tcp ended with {describe_outcome(outcome)}",
    )
    await _nothing_left(case, "a connection that was cancelled")


async def _nothing_left(case: Case, what: str) -> None:
    place = case.place
    # Both ends are in this process, so that nothing but the backend is late.
    await case.until(
        lambda: not getattr(place, "pending", 0), f"{what} has left a socket that still connects"
    )


# --- unix sockets ------------------------------------------------------------------------------------------


@rule("NetworkBackend.connect_unix_socket", "Connect to a unix domain socket.")
async def connect_unix_socket_connects(case: Case) -> None:
    place = case.serve(Expect(b"ping"), Say(b"pong"), End(), unix=True)
    stream = await _connect_unix(case, place.path)
    await place.greet(stream)
    await stream.write(b"ping", case.long)
    await case.gets(stream, b"pong")


@rule(
    "NetworkBackend.connect_unix_socket",
    "ConnectTimeout, DeadlineExceeded, ConnectError, ArgumentValueError, ArgumentTypeError: as for `connect_tcp`.",
)
async def a_missing_unix_socket_is_a_connect_error(case: Case) -> None:
    place = case.serve(Refuse(), unix=True)
    await case.raises(
        ConnectError,
        by=_connect_unix,
        given=(case, place.path),
        what="connecting to a path where no socket is",
    )


async def _connect_unix(case: Case, path: str) -> Stream:
    try:
        return await case.opened(case.backend.connect_unix_socket, path, timeout=case.long)
    except (NotImplementedError, UnsupportedProtocol):
        raise NotApplicable("connect_unix_socket is not implemented") from None


# --- sleeping ----------------------------------------------------------------------------------------------


async def _sleep(case: Case, seconds: Any) -> None:
    pause = case.backend.sleep(seconds)
    if case.is_async:
        await pause


@rule("NetworkBackend.sleep", "Wait; between two attempts to connect, for instance.")
async def sleep_waits(case: Case) -> None:
    if not case.peer.has_time:
        raise NotApplicable("nothing takes time here")
    start = case.now()
    await _sleep(case, case.short)
    took = case.now() - start
    expect(took >= case.short / 2, f"sleep({case.short:g}) returned after {took:.3f} s")


@rule("NetworkBackend.sleep", "the ambient deadline passed first.")
async def sleep_obeys_the_deadline(case: Case) -> None:
    if not case.peer.has_time:
        raise NotApplicable("nothing takes time here")
    await case.raises(
        DeadlineExceeded,
        by=case.within,
        given=(case.short, _sleep, case, case.long),
        what="a longer sleep under a deadline",
    )


@rule("NetworkBackend.sleep", "`seconds` is negative, NaN or no number.")
async def a_senseless_sleep_is_refused(case: Case) -> None:
    for seconds in (-1.0, math.nan, "long"):
        await case.raises(
            ArgumentValueError,
            ArgumentTypeError,
            by=_sleep,
            given=(case, seconds),
            what=f"sleep({seconds!r})",
        )
