"""What the peer of a stream does, as data: a rule says it in advance, and a peer performs it.

A peer waits for nobody but the client: what is to happen after something that the client does stands behind an
`Expect`. After the last act it holds still, neither reading nor ending its side, until the rule is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Say:
    """Send these bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Expect:
    """Receive these bytes; others are an error that the rule reports."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Collect:
    """Receive everything, until the client ends its side."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Neither speak nor read from here on; for what would mean nothing with a peer that cannot hold still."""


@dataclass(frozen=True, slots=True)
class End:
    """End this side in an orderly way: within TLS with its closing message."""


@dataclass(frozen=True, slots=True)
class CutOff:
    """End this side of the TCP connection, without TLS's closing message."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection."""


@dataclass(frozen=True, slots=True)
class Secure:
    """Perform a TLS handshake as the server, with the kit's certificate; the acts that follow are within.

    Attributes:
        protocols: what it chooses from by ALPN, best first.
        answered: whether it answers at all; if not, nothing comes after it.
    """

    protocols: tuple[str, ...] = ()
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse the connection. Stands alone."""


@dataclass(frozen=True, slots=True)
class Ignore:
    """Leave the attempt to connect unanswered. Stands alone."""


Act: TypeAlias = "Say | Expect | Collect | Hold | End | CutOff | Reset | Secure | Refuse | Ignore"
"""One thing that a peer does."""
