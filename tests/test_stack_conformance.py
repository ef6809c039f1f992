"""Every backend, ours, the mocks and the documents', keeps the contract; the report says where one does not."""

from __future__ import annotations

import pytest

from stack_conformance import CHECKS
from stack_helpers import assert_no_sockets_since, open_sockets

OURS = ("SyncBackend", "AsyncioBackend", "AnyIOBackend", "TrioBackend", "AutoBackend")
"""Backends to which every rule applies."""


@pytest.mark.parametrize("name", CHECKS)
def test_a_backend_keeps_its_contract(name: str) -> None:
    before = open_sockets()
    report = CHECKS[name]()
    report.raise_for_failures()
    assert report.passed
    assert_no_sockets_since(before)
    if name.partition(" on ")[0] in OURS:
        left_out = [result.detail for result in report.not_applicable]
        assert [reason for reason in left_out if "only Linux" not in reason] == []
