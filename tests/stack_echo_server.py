"""A server that answers each request with its target, in a process of its own, written for speed.

Run as `python stack_echo_server.py CLOSE_PERCENT`. It prints its port, and on a line from standard input what it has
counted since: connections in all, live now, most at once, requests.

Of a hundred connections that have just answered it closes CLOSE_PERCENT, without having said so.
"""

from __future__ import annotations

import random
import selectors
import socket
import sys
from typing import Any


def main() -> None:
    percent = float(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print(listener.getsockname()[1], flush=True)
    buffers: dict[socket.socket, bytes] = {}
    accepted = peak = requests = 0
    chance = random.Random(1).random

    def end(sock: socket.socket) -> None:
        selector.unregister(sock)
        del buffers[sock]
        sock.close()

    while True:
        for key, _ in selector.select():
            sock: Any = key.fileobj
            if sock is listener:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                buffers[client] = b""
                selector.register(client, selectors.EVENT_READ)
                accepted += 1
                peak = max(peak, len(buffers))
            elif sock is sys.stdin:
                if not sys.stdin.readline():
                    return
                print(accepted, len(buffers), peak, requests, flush=True)
            else:
                try:
                    data = sock.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    end(sock)
                    continue
                data = buffers[sock] + data
                if not data.endswith(b"\r\n\r\n"):
                    buffers[sock] = data
                    continue
                buffers[sock] = b""
                requests += 1
                target = data.split(b" ", 2)[1]
                try:
                    sock.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(target), target))
                except OSError:
                    end(sock)
                    continue
                if chance() * 100 < percent:
                    end(sock)


if __name__ == "__main__":
    main()
