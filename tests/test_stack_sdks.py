"""The SDKs of openai and anthropic over lamina, against a stand-in for their APIs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from stack_helpers import missing
from stack_httpx import LIBRARIES, Library
from stack_sdk_server import FILLING, WORDS
from stack_worlds import PATIENCE, World, at_once

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stack_helpers import Certificates
    from stack_proxies import RunningProxy
    from stack_servers import Server, Servers

pytestmark = [
    # Both SDKs leave async generators of their own half-way, which trio tells of.
    pytest.mark.filterwarnings(r"ignore:Async generator '(openai|anthropic|httpx2?)\.:ResourceWarning"),
    # And they are large: the first test of each imports it, which takes seconds.
    pytest.mark.timeout(180),
]

TEXT = "".join(WORDS)


@pytest.fixture(params=["sync", "asyncio", "trio"])
def world(request: pytest.FixtureRequest) -> World:
    """Each runtime."""
    return World(request.param)


@pytest.fixture(scope="session")
def api(servers: Servers) -> Server:
    """The stand-in."""
    return servers.hypercorn("stack_sdk_server")


@pytest.fixture(params=[False, True], ids=["HTTP1", "HTTP2"])
def http2(request: pytest.FixtureRequest) -> bool:
    chosen: bool = request.param
    return chosen


class SDK:
    """What is asked of either SDK, in words that both share."""

    def __init__(self, world: World, client: Any, module: Any) -> None:
        self._world = world
        self.client = client
        self.errors = module

    async def result_of(self, value: Any) -> Any:
        return await value if inspect.isawaitable(value) else value

    def create(self, model: str, *, stream: bool = False, **options: Any) -> Any:
        """Begin a request; the options are the client's, for this one."""
        raise NotImplementedError

    def text(self, answer: Any) -> str:
        raise NotImplementedError

    def word(self, event: Any) -> str:
        raise NotImplementedError

    async def ask(self, model: str = "any", **options: Any) -> str:
        """The whole answer."""
        return self.text(await self.result_of(self.create(model, **options)))

    async def words(self, model: str = "any", **options: Any) -> AsyncIterator[str]:
        """The answer as it comes."""
        stream = await self.result_of(self.create(model, stream=True, **options))
        try:
            if self._world.is_async:
                async for event in stream:
                    yield self.word(event)
            else:
                for event in stream:
                    yield self.word(event)
        finally:
            await self.result_of(stream.close())

    async def close(self) -> None:
        await self.result_of(self.client.close())


class OpenAI(SDK):
    def create(self, model: str, *, stream: bool = False, **options: Any) -> Any:
        client = self.client.with_options(**options) if options else self.client
        return client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Say it."}], stream=stream
        )

    def text(self, answer: Any) -> str:
        text: str = answer.choices[0].message.content
        return text

    def word(self, event: Any) -> str:
        word: str = event.choices[0].delta.content
        return word

    async def upload(self, content: Any) -> int:
        answer = await self.result_of(self.client.files.create(file=("f.txt", content), purpose="assistants"))
        size: int = answer.bytes
        return size


class Anthropic(SDK):
    def create(self, model: str, *, stream: bool = False, **options: Any) -> Any:
        client = self.client.with_options(**options) if options else self.client
        return client.messages.create(
            model=model, messages=[{"role": "user", "content": "Say it."}], max_tokens=100, stream=stream
        )

    def text(self, answer: Any) -> str:
        text: str = answer.content[0].text
        return text

    def word(self, event: Any) -> str:
        return event.delta.text if event.type == "content_block_delta" else ""

    async def upload(self, content: Any) -> int:
        answer = await self.result_of(self.client.beta.files.upload(file=("f.txt", content, "text/plain")))
        size: int = answer.size_bytes
        return size


NAMES = {"openai": ("OpenAI", OpenAI), "anthropic": ("Anthropic", Anthropic)}


class Opening:
    """Opens an SDK's client over a transport of ours, and closes it at the end of the block."""

    def __init__(self, world: World, name: str, transport: Any, library: Library, url: str) -> None:
        if importlib.util.find_spec(name) is None:
            missing(name)
        module: Any = importlib.import_module(name)
        client_name, kind = NAMES[name]
        http_client = library.open(world, transport).real
        client = getattr(module, f"{'Async' * world.is_async}{client_name}")(
            api_key="none", base_url=url, http_client=http_client, max_retries=2, timeout=PATIENCE
        )
        self._sdk: Any = kind(world, client, module)

    async def __aenter__(self) -> Any:
        return self._sdk

    async def __aexit__(self, *exc_info: object) -> None:
        await self._sdk.close()


def both(name: str, library: str) -> Any:
    return pytest.param(name, library, id=f"{name}-{library}")


# anthropic takes clients of httpx2 only.
EACH = pytest.mark.parametrize(
    ("name", "library_name"), [*(both("openai", each) for each in LIBRARIES), both("anthropic", "httpx2")]
)


def trusting(certificates: Certificates, *, http2: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.authority)
    context.set_alpn_protocols([*["h2"] * http2, "http/1.1"])
    return context


@EACH
async def test_an_sdk(
    world: World, name: str, library_name: str, http2: bool, certificates: Certificates, api: Server
) -> None:
    library = Library(library_name)
    transport = library.transport(world, verify=trusting(certificates, http2=http2), http2=http2)
    base = f"{api.https}/v1" if name == "openai" else api.https
    async with Opening(world, name, transport, library, base) as sdk:
        assert await sdk.ask() == TEXT
        words = [word async for word in sdk.words() if word]
        assert words == WORDS
        assert await sdk.upload(FILLING * 300_000) == 300_000
        assert await sdk.ask("busy") == TEXT  # at the second attempt
        with pytest.raises(sdk.errors.RateLimitError):
            await sdk.ask("busy", max_retries=0)
        with pytest.raises(sdk.errors.APITimeoutError) as late:
            await sdk.ask("silent", max_retries=0, timeout=0.2)
        assert isinstance(late.value.__cause__, library.client.TimeoutException)
        # One of the SDKs has an error of its own for it.
        with pytest.raises((library.client.TimeoutException, sdk.errors.APITimeoutError)) as stuck:
            async for _ in sdk.words("stuck", max_retries=0, timeout=0.2):
                pass
        causes = (stuck.value, stuck.value.__cause__)
        assert any(isinstance(each, library.client.TimeoutException) for each in causes)
        assert await sdk.ask() == TEXT
        stats = transport.pool.stats()
        assert (stats.active, stats.queued) == (0, 0)


@EACH
async def test_many_requests_of_an_sdk_at_once(
    world: World,
    name: str,
    library_name: str,
    http2: bool,
    certificates: Certificates,
    api: Server,
    no_socket_left: None,
) -> None:
    library = Library(library_name)
    transport = library.transport(
        world,
        verify=trusting(certificates, http2=http2),
        http2=http2,
        limits=library.client.Limits(max_connections=2),
    )
    base = f"{api.https}/v1" if name == "openai" else api.https
    async with Opening(world, name, transport, library, base) as sdk:

        async def work(number: int) -> str:
            if number % 2:
                return await sdk.ask()  # type: ignore[no-any-return] # an SDK is any of them
            return "".join([word async for word in sdk.words()])

        assert await at_once(world, 6, work) == [TEXT] * 6
        assert len(transport.pool.connections) <= 2


@EACH
@pytest.mark.parametrize("peer", ["tinyproxy_auth", "microsocks"])
async def test_an_sdk_behind_a_proxy(
    request: pytest.FixtureRequest,
    world: World,
    name: str,
    library_name: str,
    certificates: Certificates,
    api: Server,
    peer: str,
) -> None:
    running: RunningProxy = request.getfixturevalue(peer)
    library = Library(library_name)
    proxy = running.proxy(certificates)
    auth = None if proxy.auth is None else tuple(each.decode() for each in proxy.auth)
    transport = library.transport(
        world,
        verify=trusting(certificates, http2=True),
        http2=True,
        proxy=library.client.Proxy(running.url, auth=auth),
    )
    base = f"{api.https}/v1" if name == "openai" else api.https
    async with Opening(world, name, transport, library, base) as sdk:
        assert [word async for word in sdk.words() if word] == WORDS
        assert await sdk.upload(FILLING * 1000) == 1000
