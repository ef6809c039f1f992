"""The fixtures: what they give, and that a test fails at its end if a mock has something to tell."""

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def run(pytester: pytest.Pytester) -> "Run":
    return Run(pytester)


class Run:
    """Runs a test module in a session of its own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester

    def __call__(self, source: str) -> pytest.RunResult:
        self._pytester.makepyfile(source)
        # As pytest loads it where the package is installed; named here, so that a checkout does too.
        plugins = ["-p", "lamina_mock.pytest_plugin", "-p", "no:cacheprovider", "-p", "no:randomly"]
        return self._pytester.runpytest_inprocess(*plugins, "-q")


def test_the_virtual_clock_is_the_time_of_the_test(run: Run) -> None:
    run(
        """
        import pytest
        from lamina_interfaces import ReadTimeout, open_deadline, close_deadline
        from lamina_mock import PeerBackend, Peer
        import time

        def test_it(virtual_clock):
            deadline = open_deadline(60.0, time.monotonic)
            virtual_clock.advance(59.0)
            assert deadline.remaining() == 1.0
            close_deadline(deadline)
            stream = PeerBackend(lambda host, port: Peer()).connect_tcp("a.example", 80)
            with pytest.raises(ReadTimeout):
                stream.read(timeout=3600.0)
            assert virtual_clock() == 59.0 + 3600.0

        def test_that_nothing_is_left_of_it():
            from lamina_interfaces import current_deadline
            assert current_deadline() is None
        """
    ).assert_outcomes(passed=2)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_virtual_clock_is_the_time_of_an_async_test(run: Run, backend: str) -> None:
    pytest.importorskip(backend)
    run(
        f"""
        import pytest
        from lamina_interfaces import current_deadline
        from lamina_mock import Script

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def anyio_backend():
            return {backend!r}

        @pytest.mark.parametrize("turn", [1, 2])
        async def test_it(virtual_clock, async_scripted_backend, turn):
            assert current_deadline().clock is virtual_clock
            backend = async_scripted_backend(Script().reply(b"late", after=3600.0))
            stream = await backend.connect_tcp("a.example", 80)
            assert await stream.read() == b"late"
            assert virtual_clock() == 3600.0

        async def test_that_nothing_is_left_of_it():
            assert current_deadline() is None
        """
    ).assert_outcomes(passed=3)


def test_a_scripted_backend_is_checked_at_the_end(run: Run) -> None:
    result = run(
        """
        import pytest
        from lamina_mock import Script, ScriptError

        def test_good(scripted_backend):
            scripted_backend(Script("heard").reply(b"hello")).connect_tcp("a.example", 80).read()

        def test_leftovers(scripted_backend):
            scripted_backend(Script("good").reply(b"hello")).connect_tcp("a.example", 80).read()
            scripted_backend({"a.example": Script("left alone")})

        def test_swallowed(scripted_backend):
            stream = scripted_backend(Script("swallowed").expect(b"one")).connect_tcp("a.example", 80)
            with pytest.raises(ScriptError):
                stream.write(b"two")
        """
    )
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(["*script 'left alone', for a.example, was never played*"])
    result.stdout.fnmatch_lines(["*script 'swallowed', step 1 of 1 (expect b'one'): something else came*"])


def test_an_async_scripted_backend_is_checked_at_the_end(run: Run) -> None:
    result = run(
        """
        from lamina_mock import AsyncScriptedBackend, Script

        def test_leftovers(async_scripted_backend):
            assert isinstance(async_scripted_backend(Script("left alone")), AsyncScriptedBackend)
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*script 'left alone' was never played*"])


def test_a_mock_server_is_checked_at_the_end(run: Run) -> None:
    result = run(
        """
        import pytest

        def request(server, data):
            stream = server.backend.connect_tcp("a.example", 80)
            stream.write(data)
            return stream.read()

        def test_good(mock_server):
            server = mock_server(lambda request: 204)
            assert request(server, b"GET / HTTP/1.1\\r\\nHost: a.example\\r\\n\\r\\n").startswith(b"HTTP/1.1 204")

        def test_bad(mock_server):
            server = mock_server(lambda request: 204)
            try:
                request(server, b"NONSENSE\\r\\n\\r\\n")
            except Exception:
                pass
        """
    )
    result.assert_outcomes(passed=2, errors=1)


def test_the_network_can_be_denied(run: Run) -> None:
    run(
        """
        import pytest
        from lamina_interfaces import drive
        from lamina_mock import NetworkDenied

        def test_it(deny_network):
            with pytest.raises(NetworkDenied):
                deny_network.backend.connect_tcp("a.example", 80)
            with pytest.raises(NetworkDenied):
                drive(deny_network.async_backend.connect_tcp("a.example", 80))
        """
    ).assert_outcomes(passed=1)


def test_the_fixtures_are_described(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("-p", "lamina_mock.pytest_plugin", "--fixtures", "-q")
    names = ("virtual_clock", "scripted_backend", "async_scripted_backend", "mock_server", "deny_network")
    lines = result.outlines
    for name in names:
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{name} "))
        assert lines[at + 1].strip().endswith(".")


HEAVY = ("h2", "h11", "trio", "anyio", "certifi", "ssl", "lamina_mock._server")


def test_a_session_that_uses_none_of_it_pays_nothing() -> None:
    code = "import pytest, sys; had = {*sys.modules}; import lamina_mock.pytest_plugin; print(*{*sys.modules} - had)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert "lamina_mock" in done.stdout.split()
    assert not set(HEAVY) & set(done.stdout.split())
