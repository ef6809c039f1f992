"""Checks any stream and any backend, blocking or async, against the contracts of `lamina_interfaces`. Needs no pytest.

- `_run`: the functions below; how a rule is run, bounded in time, and tried again.
- `_rules` and `_rules_…`: the rules, each for one sentence of a docstring in `lamina_interfaces`.
- `_case`, `_worlds`: what a rule works with, in threads, asyncio and trio.
- `_acts`, `_peers`, `_certificate`: the other end of the connections. `_mock_peers`: that of lamina_mock's backends.
- `_report`: what was found, as a table.
- `__main__`: the same as a command, `python -m lamina_mock.conformance package.module:factory`.
"""

from __future__ import annotations

from ._acts import Act as Act
from ._acts import Collect as Collect
from ._acts import CutOff as CutOff
from ._acts import End as End
from ._acts import Expect as Expect
from ._acts import Hold as Hold
from ._acts import Ignore as Ignore
from ._acts import Refuse as Refuse
from ._acts import Reset as Reset
from ._acts import Say as Say
from ._acts import Secure as Secure
from ._mock_peers import MemoryPeer as MemoryPeer
from ._mock_peers import ScriptPeer as ScriptPeer
from ._mock_peers import ServerPeer as ServerPeer
from ._peers import ListPeer as ListPeer
from ._peers import LoopbackPeer as LoopbackPeer
from ._peers import NotApplicable as NotApplicable
from ._peers import Peer as Peer
from ._peers import Place as Place
from ._report import ConformanceError as ConformanceError
from ._report import Report as Report
from ._report import Result as Result
from ._report import Verdict as Verdict
from ._rules import RULES as RULES
from ._rules import Rule as Rule
from ._run import check_async_backend as check_async_backend
from ._run import check_async_stream as check_async_stream
from ._run import check_backend as check_backend
from ._run import check_stream as check_stream

__all__ = [
    "RULES",
    "Act",
    "Collect",
    "ConformanceError",
    "CutOff",
    "End",
    "Expect",
    "Hold",
    "Ignore",
    "ListPeer",
    "LoopbackPeer",
    "MemoryPeer",
    "NotApplicable",
    "Peer",
    "Place",
    "Refuse",
    "Report",
    "Reset",
    "Result",
    "Rule",
    "Say",
    "ScriptPeer",
    "Secure",
    "ServerPeer",
    "Verdict",
    "check_async_backend",
    "check_async_stream",
    "check_backend",
    "check_stream",
]

for _name in __all__:
    if callable(_public := globals()[_name]) and _public.__module__.startswith(f"{__name__}._"):
        _public.__module__ = __name__
