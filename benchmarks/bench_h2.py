"""Bare h2: what every user of it has to write, without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import h2.settings

from bench_clients import WINDOW

if TYPE_CHECKING:
    from bench_clients import Target

GIVEN_UP = (h2.events.StreamReset, h2.events.ConnectionTerminated)


class BareH2:
    """A connection: requests, windows, and what came of them."""

    def __init__(self, target: Target) -> None:
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.connection.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
            },
        )
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(WINDOW)
        self._headers = [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", f"{target.host}:{target.port}".encode()),
            (b":path", target.path.encode()),
        ]

    def start(self) -> int:
        """Begin a request. Returns its stream."""
        stream_id = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream_id, self._headers, end_stream=True)
        return stream_id

    def to_send(self) -> bytes:
        data = self.connection.data_to_send()
        assert data is not None
        return data

    def feed(self, data: bytes) -> list[tuple[int, bytes | None]]:
        """What has come: data of streams, and `None` for the end of one."""
        found: list[tuple[int, bytes | None]] = []
        for event in self.connection.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                assert event.stream_id is not None
                if event.flow_controlled_length:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                found.append((event.stream_id, event.data))
            elif isinstance(event, h2.events.StreamEnded):
                assert event.stream_id is not None
                found.append((event.stream_id, None))
            elif isinstance(event, GIVEN_UP):
                raise ConnectionError(f"the server gave up: {event}")
        return found
