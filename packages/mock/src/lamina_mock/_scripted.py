"""Backends whose connections play scripts, in order or by host, and that say what was left undone."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lamina_interfaces import ArgumentTypeError

from ._failures import ScriptError
from ._scripts import Play, Script
from ._wire import AsyncPeerBackend, Peer, PeerBackend

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ._clock import MockClock

    Address = str | tuple[str, int]
    Scripts = Script | Sequence[Script] | Mapping[Address, Script | Sequence[Script]]


class Programme:
    """Which script is played on which connection. Safe to use from several threads."""

    def __init__(self, scripts: Scripts) -> None:
        self._by_address = isinstance(scripts, Mapping)
        offers = scripts if isinstance(scripts, Mapping) else {"": scripts}
        self._waiting: dict[Address, list[Script]] = {key: _listed(value) for key, value in offers.items()}
        self._lock = threading.Lock()
        self._played = 0
        self.plays: list[Play] = []
        self.failures: list[ScriptError] = []

    def make_peer(self, host: str, port: int) -> Peer:
        """The next script for an address.

        Raises:
            ScriptError: there is none.
        """
        with self._lock:
            keys: list[Address] = [(host, port), host] if self._by_address else [""]
            known = [key for key in keys if key in self._waiting]
            for key in known:
                if self._waiting[key]:
                    play = Play(self._waiting[key].pop(0), self.failures)
                    self.plays.append(play)
                    return play
            where = f"{host}:{port}" if port else host
            if known or not self._by_address:
                names = ", ".join(play.name for play in self.plays) or "there never was any"
                text = f"no script is left for a connection to {where}; played so far: {names}"
            else:
                text = f"no script is for {where}, only for {', '.join(map(_in_words, self._waiting)) or 'nothing'}"
            error = ScriptError(text, phase="connect")
            self.failures.append(error)
            raise error

    def first_failure(self) -> ScriptError | None:
        """What went wrong first. What the client does after it, such as another attempt, tells less."""
        return self.failures[0] if self.failures else None

    def check(self) -> None:
        """See `ScriptedBackend.check`."""
        failure = self.first_failure()
        if failure is not None:
            raise failure
        left = [text for play in self.plays if (text := play.left())]
        for key, scripts in self._waiting.items():
            where = f", for {_in_words(key)}," if key else ""
            left.extend(f"script {script.name!r}{where} was never played" for script in scripts)
        if left:
            raise ScriptError("\n".join(left))

    def __str__(self) -> str:
        waiting = sum(map(len, self._waiting.values()))
        return f"{len(self.plays)} played, {waiting} waiting"


def _listed(scripts: Script | Sequence[Script]) -> list[Script]:
    found = [scripts] if isinstance(scripts, Script) else scripts
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise ArgumentTypeError(
            f"scripts are a Script, a list or a mapping of them, not {type(scripts).__name__}"
        )
    for script in found:
        if not isinstance(script, Script):
            raise ArgumentTypeError(f"a list of scripts holds {type(script).__name__}")
    return list(found)


def _in_words(key: Address) -> str:
    return key if isinstance(key, str) else f"{key[0]}:{key[1]}"


class Checked:
    """A backend that is checked at the end: by `check`, or as a context manager (`with`, in coroutines too)."""

    _programme: Programme

    def check(self) -> None:
        """Raise what went wrong, even if the code under test has swallowed it.

        Raises:
            ScriptError: a connection was not expected, or the client wrote something else than a script expects. Or
                there are leftovers: scripts that were not played, steps that were not reached, replies that were not
                read. A script that has come to a stall without end is not asked.
        """
        self._programme.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None:
            self.check()
            return
        # What the code under test made of it is less telling; leftovers are a matter of course then.
        failure = self._programme.first_failure()
        if failure is not None and failure is not exc and isinstance(exc, Exception):
            raise failure from exc

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self._programme}]>"


class ScriptedBackend(Checked, PeerBackend):
    """A backend whose connections play scripts. Safe to use from several threads.

    Args:
        scripts: one; or a list, of which each connection plays the next; or a mapping from host, or from host and port,
            to one or a list. (For a unix socket the host is its path.)
        clock: as for `PeerBackend`.

    Raises:
        ArgumentTypeError: `scripts` is none of these.
    """

    def __init__(self, scripts: Scripts, *, clock: MockClock | None = None) -> None:
        self._programme = Programme(scripts)
        super().__init__(self._programme.make_peer, clock=clock)


class AsyncScriptedBackend(Checked, AsyncPeerBackend):
    """`ScriptedBackend` for asyncio and trio."""

    def __init__(self, scripts: Scripts, *, clock: MockClock | None = None) -> None:
        self._programme = Programme(scripts)
        super().__init__(self._programme.make_peer, clock=clock)
