"""Fixtures for tests of the whole stack; what they are made of is in `stack_helpers`."""

from __future__ import annotations

from stack_helpers import certificates as certificates
from stack_helpers import fault_server as fault_server
from stack_helpers import nginx as nginx
from stack_helpers import nginx_runner as nginx_runner
from stack_helpers import no_socket_left as no_socket_left
from stack_helpers import pool as pool
