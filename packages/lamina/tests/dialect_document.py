"""The examples of the document whose words `lamina.sync` and `lamina.aio` speak: blocking ones and their async twins.

As they stand there, in their order, with their prompts taken away and their indentation put back. They are one session:
later ones use names of earlier ones. What is odd in them is odd in the document.
"""

from __future__ import annotations

BACKEND = (
    """\
net = httpx.NetworkBackend()
net
""",
    """\
net = ahttpx.NetworkBackend()
net
""",
)

CONNECT = (
    """\
net = httpx.NetworkBackend()
stream = net.connect("www.encode.io", 80)
stream
""",
    """\
net = ahttpx.NetworkBackend()
stream = await net.connect("www.encode.io", 80)
stream
""",
)

CONNECT_WITHIN_A_BLOCK = (
    """\
net = httpx.NetworkBackend()
with net.connect("dev.encode.io", 80) as stream:
    ...
stream
""",
    """\
net = ahttpx.NetworkBackend()
async with await net.connect("dev.encode.io", 80) as stream:
    ...
stream
""",
)

CLOSE = (
    """\
net = httpx.NetworkBackend()
stream = net.connect("dev.encode.io", 80)
try:
    ...
finally:
    stream.close()
stream
""",
    """\
net = ahttpx.NetworkBackend()
stream = await net.connect("dev.encode.io", 80)
try:
    ...
finally:
    await stream.close()
stream
""",
)

TIMEOUT = (
    """\
with httpx.Client() as cli:
    with httpx.timeout(3.0):
        res = cli.get('https://www.example.com')
        print(res)
""",
    """\
async with ahttpx.Client() as cli:
    async with ahttpx.timeout(3.0):
        res = await cli.get('https://www.example.com')
        print(res)
""",
)

CANCELLED_TIMEOUT = (
    """\
with httpx.Client() as cli:
    with httpx.timeout(3.0) as t:
        with cli.stream('https://www.example.com') as r:
            t.cancel()
            print(">>>", res)
            for chunk in r.stream:
                print("...", chunk)
""",
    """\
async with ahttpx.Client() as cli:
    async with ahttpx.timeout(3.0) as t:
        async with await cli.stream('https://www.example.com') as r:
            t.cancel()
            print(">>>", res)
            async for chunk in r.stream:
                print("...", chunk)
""",
)

SENDING_REQUESTS = (
    """\
import httpx
import ssl
import truststore

net = httpx.NetworkBackend()
ctx = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
req = b'\\r\\n'.join([
    b'GET / HTTP/1.1',
    b'Host: www.example.com',
    b'User-Agent: python/dev',
    b'Connection: close',
    b'',
    b'',
])

# Use a 10 second overall timeout for the entire request/response.
with httpx.timeout(10.0):
    # Use a 3 second timeout for the initial connection.
    with httpx.timeout(3.0) as t:
        # Open the connection & establish SSL.
        with net.connect("www.example.com", 443) as stream:
            stream.start_tls(ctx, hostname="www.example.com")
            t.cancel()
            # Send the request & read the response.
            stream.write(req)
            buffer = []
            while part := stream.read():
                buffer.append(part)
            resp = b''.join(buffer)
""",
    """\
import ahttpx
import ssl
import truststore

net = ahttpx.NetworkBackend()
ctx = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
req = b'\\r\\n'.join([
    b'GET / HTTP/1.1',
    b'Host: www.example.com',
    b'User-Agent: python/dev',
    b'Connection: close',
    b'',
    b'',
])

# Use a 10 second overall timeout for the entire request/response.
async with ahttpx.timeout(10.0):
    # Use a 3 second timeout for the initial connection.
    async with ahttpx.timeout(3.0) as t:
        # Open the connection & establish SSL.
        async with await net.connect("www.example.com", 443) as stream:
            await stream.start_tls(ctx, hostname="www.example.com")
            t.cancel()
            # Send the request & read the response.
            await stream.write(req)
            buffer = []
            while part := await stream.read():
                buffer.append(part)
            resp = b''.join(buffer)
""",
)

CUSTOM_BACKEND = (
    """\
class RecordingBackend(httpx.NetworkBackendInterface):
    def __init__(self):
        self._backend = NetworkBackend()

    def connect(self, host, port):
        # Delegate creating connections to the default
        # network backend, and return a wrapped stream.
        stream = self._backend.connect(host, port)
        return RecordingStream(stream)


class RecordingStream(httpx.NetworkStreamInterface):
    def __init__(self, stream):
        self._stream = stream

    def read(self, max_bytes: int = None):
        # Print all incoming data to the terminal.
        data = self._stream.read(max_bytes)
        lines = data.decode('ascii', errors='replace').splitlines()
        for line in lines:
            print("<<< ", line)
        return data

    def write(self, data):
        # Print all outgoing data to the terminal.
        lines = data.decode('ascii', errors='replace').splitlines()
        for line in lines:
            print(">>> ", line)
        self._stream.write(data)

    def start_tls(ctx, hostname):
        self._stream.start_tls(ctx, hostname)

    def get_extra_info(key):
        return self._stream.get_extra_info(key)

    def close():
        self._stream.close()
""",
    """\
class RecordingBackend(ahhtpx.NetworkBackendInterface):
    def __init__(self):
        self._backend = NetworkBackend()

    async def connect(self, host, port):
        # Delegate creating connections to the default
        # network backend, and return a wrapped stream.
        stream = await self._backend.connect(host, port)
        return RecordingStream(stream)


class RecordingStream(ahttpx.NetworkStreamInterface):
    def __init__(self, stream):
        self._stream = stream

    async def read(self, max_bytes: int = None):
        # Print all incoming data to the terminal.
        data = await self._stream.read(max_bytes)
        lines = data.decode('ascii', errors='replace').splitlines()
        for line in lines:
            print("<<< ", line)
        return data

    async def write(self, data):
        # Print all outgoing data to the terminal.
        lines = data.decode('ascii', errors='replace').splitlines()
        for line in lines:
            print(">>> ", line)
        await self._stream.write(data)

    async def start_tls(ctx, hostname):
        await self._stream.start_tls(ctx, hostname)

    def get_extra_info(key):
        return self._stream.get_extra_info(key)

    async def close():
        await self._stream.close()
""",
)

CUSTOM_CLIENT = (
    """\
transport = httpx.ConnectionPool(backend=RecordingBackend())
cli = httpx.Client(transport=transport)
cli.get('https://www.example.com')
""",
    """\
transport = ahttpx.ConnectionPool(backend=RecordingBackend())
cli = ahttpx.Client(transport=transport)
await cli.get('https://www.example.com')
""",
)

DOCUMENT = (
    BACKEND,
    CONNECT,
    CONNECT_WITHIN_A_BLOCK,
    CLOSE,
    TIMEOUT,
    CANCELLED_TIMEOUT,
    SENDING_REQUESTS,
    CUSTOM_BACKEND,
    CUSTOM_CLIENT,
)
