"""The default TLS context: one to share, new ones to change, none built before it is needed."""

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import certifi
import pytest
import trustme

from lamina_pool import _ssl
from lamina_pool._ssl import default_ssl_context, shared_ssl_context


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings, and nothing shared yet."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_ssl, "_shared", {})


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("example.com").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def handshake(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> ssl.SSLObject:
    """A handshake in memory; returns the client's side."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="example.com")
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
        if not waiting:
            return client
    raise AssertionError("the handshake does not end")


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    built: list[int] = []
    build = ssl.create_default_context

    def counted(**options: str) -> ssl.SSLContext:
        built.append(1)
        return build(**options)  # type: ignore[arg-type] # only `cafile` is given

    monkeypatch.setattr(ssl, "create_default_context", counted)
    return built


def test_it_verifies_certificates_and_names() -> None:
    context = default_ssl_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_it_trusts_certifi_and_nobody_else() -> None:
    only_certifi = ssl.create_default_context(cafile=certifi.where())
    ours = set(default_ssl_context().get_ca_certs(binary_form=True))
    assert set(only_certifi.get_ca_certs(binary_form=True)) == ours


def test_a_certificate_with_no_more_than_a_common_name_is_refused_C01() -> None:
    assert not default_ssl_context().hostname_checks_common_name


def test_a_stranger_is_refused(server_context: ssl.SSLContext) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(default_ssl_context(), server_context)


def test_it_trusts_the_file_that_the_environment_names(
    ca: trustme.CA, server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert handshake(default_ssl_context(), server_context).version() is not None
    assert handshake(shared_ssl_context(()), server_context).version() is not None


def test_it_trusts_the_folder_that_the_environment_names(
    ca: trustme.CA, server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(path)
    # OpenSSL looks certificates up by the hash of their subject.
    for name in hashed_names(path):
        os.symlink(path, tmp_path / name)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert handshake(default_ssl_context(), server_context).version() is not None


def missing(peer: str) -> NoReturn:
    """Skip what needs a peer that is not installed; where peers are required, that is a failure."""
    if os.environ.get("LAMINA_REQUIRE_PEERS") == "1":
        pytest.fail(f"{peer} is not installed, and LAMINA_REQUIRE_PEERS is set")
    pytest.skip(f"{peer} is not installed")


def hashed_names(path: Path) -> Iterator[str]:
    command = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        missing("the openssl program")
    yield f"{done.stdout.strip()}.0"


def test_it_writes_the_keys_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert default_ssl_context().keylog_filename == str(tmp_path / "keys")
    monkeypatch.delenv("SSLKEYLOGFILE")
    assert default_ssl_context().keylog_filename is None


# --- sharing


def test_each_caller_gets_a_context_of_its_own() -> None:
    one, other = default_ssl_context(), default_ssl_context()
    shared = shared_ssl_context(())
    assert len({id(one), id(other), id(shared)}) == 3
    one.check_hostname = False
    one.verify_mode = ssl.CERT_NONE
    assert other.verify_mode is shared.verify_mode is ssl.CERT_REQUIRED


def test_one_context_is_shared_for_each_set_of_protocols() -> None:
    http1, http2 = shared_ssl_context(("http/1.1",)), shared_ssl_context(("h2", "http/1.1"))
    assert shared_ssl_context(("http/1.1",)) is http1
    assert shared_ssl_context(("h2", "http/1.1")) is http2
    assert http1 is not http2


def test_threads_that_come_at_once_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    built = count(monkeypatch)
    together = threading.Barrier(16)
    contexts: list[ssl.SSLContext] = []

    def dial() -> None:
        together.wait(10)
        contexts.append(shared_ssl_context(("http/1.1",)))

    threads = [threading.Thread(target=dial) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(contexts) == 16
    assert len({id(context) for context in contexts}) == 1
    assert len(built) == 1


def test_a_failure_to_build_one_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: str) -> ssl.SSLContext:
        raise OSError("no certificates")

    with monkeypatch.context() as broken:
        broken.setattr(ssl, "create_default_context", fail)
        with pytest.raises(OSError, match="no certificates"):
            shared_ssl_context(())
    assert shared_ssl_context(()) is shared_ssl_context(())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_was_forked_while_one_was_built_is_not_stuck() -> None:
    code = (
        "import os, signal, sys\n"
        "from lamina_pool import _ssl\n"
        "with _ssl._lock:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        signal.alarm(20)\n"
        "        _ssl.shared_ssl_context(())\n"
        "        os._exit(7)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.strip() == "7"


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys\n"
        "import lamina_pool._ssl\n"
        "print('ssl' in sys.modules, 'certifi' in sys.modules)\n"
        "lamina_pool._ssl.shared_ssl_context(())\n"
        "print('ssl' in sys.modules, 'certifi' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "True"]


# --- ALPN


@pytest.mark.parametrize(
    ("server", "offer", "chosen"),
    [
        (["h2", "http/1.1"], ("h2", "http/1.1"), "h2"),
        (["h2", "http/1.1"], ("http/1.1",), "http/1.1"),
        (["h2"], ("http/1.1",), None),
        (None, ("h2", "http/1.1"), None),
        (["h2", "http/1.1"], (), None),
    ],
)
def test_what_is_offered_and_what_comes_of_it(
    ca: trustme.CA,
    server: list[str] | None,
    offer: tuple[str, ...],
    chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("example.com").configure_cert(context)
    if server is not None:
        context.set_alpn_protocols(server)
    client = handshake(shared_ssl_context(offer), context)
    assert client.selected_alpn_protocol() == chosen
