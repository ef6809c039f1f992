"""What a review of HTTP/2 in the pool has found with threads: each test failed before it was mended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import lamina
from lamina_mock import MockResponse, MockServer

PATIENCE_SECONDS = 60.0
"""After which two threads wait for each other for ever."""


def test_two_threads_that_close_responses_in_the_midst_of_steps_do_not_wait_for_each_other_G08() -> None:
    """One in a step of the pool, the other in one of the connection, as finalisers and signal handlers may."""
    server = MockServer(lambda request: MockResponse(content=b"some").stall_after(2), http2=True)
    pool = lamina.ConnectionPool(network_backend=server.backend, http1=False, http2=True)
    with server, pool:
        with (
            pool.stream("GET", "http://example.com/1") as one,
            pool.stream("GET", "http://example.com/2") as other,
        ):
            inner: Any = pool._pool
            (slot,) = inner._scheduler.slots()
            both = threading.Barrier(2)

            def in_step_of_pool() -> None:
                inner._step(close(one))
                inner._settle()

            def in_step_of_connection() -> None:
                slot.connection.step(close(other))

            def close(response: Any) -> Callable[[], tuple[()]]:
                def event() -> tuple[()]:
                    both.wait(PATIENCE_SECONDS)
                    response.close()
                    return ()

                return event

            threads = [
                threading.Thread(target=step, daemon=True)
                for step in (in_step_of_pool, in_step_of_connection)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_SECONDS)
            assert not any(thread.is_alive() for thread in threads)
        stats = inner.stats()
        assert (stats.requests, stats.idle) == (0, 1)
        assert slot.connection.session.open_streams == 0
