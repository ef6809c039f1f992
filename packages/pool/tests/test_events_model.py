"""Whatever happens in whatever order, what the listener is told is a legal story, and adds up to what the pool says.

The machines of `test_async_model` and `test_http2_pool_model`, with a listener. After each rule the events have to be
the beginning of something legal, and the sums of the OpenTelemetry listener those of `stats()`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant

from lamina_pool import OpenTelemetryMetrics, PoolEvent
from pool_async_machine import MachineBase
from pool_journal import Journal, PlainMeter
from test_async_model import PoolMachine
from test_http2_pool_model import SharedPoolMachine

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


class Listening(MachineBase):
    def _options(self) -> dict[str, Any]:
        self.journal, self.meter = Journal(), PlainMeter()
        metrics = OpenTelemetryMetrics(self.meter)

        def listen(event: PoolEvent) -> None:
            self.journal(event)
            metrics(event)

        return {"on_event": listen}

    @invariant()
    def what_was_told_is_legal(self) -> None:
        self._go_on()
        self.journal.check()
        self.meter.check(self.pool, self._under_way)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "journal"):
            self.journal.check_over()
            assert set(self.meter.instruments["http.client.open_connections"].sums.values()) <= {0}
            assert set(self.meter.instruments["http.client.active_requests"].sums.values()) <= {0}


class ListeningPoolMachine(Listening, PoolMachine):
    pass


class ListeningSharedPoolMachine(Listening, SharedPoolMachine):
    pass


RUNS = settings(max_examples=40, stateful_step_count=40, deadline=None) if not IS_LONG else settings()

TestListeningPoolMachine = ListeningPoolMachine.TestCase
TestListeningPoolMachine.settings = RUNS
TestListeningSharedPoolMachine = ListeningSharedPoolMachine.TestCase
TestListeningSharedPoolMachine.settings = RUNS
pytestmark = pytest.mark.timeout(0 if IS_LONG else 120)
