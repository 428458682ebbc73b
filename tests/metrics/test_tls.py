"""The metrics address with TLS: accepted clients, renewed certificates, unusable files."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.support.end_to_end import LogLines
from tests.support.paths import TLS
from tests.support.scrapes import GET, ask, connect, no_vms, read_all, serving
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import OperatorError
from vhost_balloon.metrics import server as metrics_server
from vhost_balloon.metrics.options import MetricsOptions
from vhost_balloon.metrics.server import MetricsServer
from vhost_balloon.metrics.tls import Certificates


def trusting(certificate: str, client: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=TLS / f"{certificate}.pem")
    if client is not None:
        context.load_cert_chain(TLS / f"{client}.pem", TLS / f"{client}.key.pem")
    return context


def encrypted(certificate: Path, key: Path | None, client_ca: Path | None = None) -> MetricsOptions:
    return MetricsOptions("127.0.0.1", 0, certificate, key, client_ca)


async def test_tls() -> None:
    async with serving(encrypted(TLS / "first.pem", TLS / "first.key.pem")) as server:
        assert server.urls()[0].startswith("https://")
        assert (await ask(server, GET, trusting("first")))[0] == 200
        with pytest.raises(trio.BrokenResourceError):
            await ask(server, GET, trusting("second"))
        async with await connect(server) as plain:
            with contextlib.suppress(trio.BrokenResourceError):
                await plain.send_all(GET)
                assert b"200 OK" not in await read_all(plain)
        async with await connect(server):  # a silent client does not delay others
            assert (await ask(server, GET, trusting("first")))[0] == 200


async def test_an_answer_ends_as_tls_ends() -> None:
    """Otherwise the client could not tell it from a truncated one."""
    async with serving(encrypted(TLS / "first.pem", TLS / "first.key.pem")) as server:
        plain = await connect(server)
        async with trio.SSLStream(plain, trusting("first"), server_hostname="localhost") as strict:
            await strict.send_all(GET)
            assert (await read_all(strict)).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n" + bytes(1 << 20), 405),
        (GET + bytes(1 << 20), 200),
        (GET * 1000, 200),
        (b"\n" + bytes(1 << 20), 431),
    ],
)
async def test_data_after_a_request_does_not_destroy_the_answer(
    request_: bytes, status: int
) -> None:
    async with serving(encrypted(TLS / "first.pem", TLS / "first.key.pem")) as server:
        assert (await ask(server, request_, trusting("first")))[0] == status


async def test_key_in_the_certificates_file(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((TLS / "first.key.pem").read_bytes() + (TLS / "first.pem").read_bytes())
    async with serving(encrypted(both, None)) as server:
        assert (await ask(server, GET, trusting("first")))[0] == 200


async def test_only_clients_with_a_certificate() -> None:
    options = encrypted(TLS / "first.pem", TLS / "first.key.pem", TLS / "second.pem")
    async with serving(options) as server:
        assert (await ask(server, GET, trusting("first", "second")))[0] == 200
        for client in (None, "first"):
            with pytest.raises(trio.BrokenResourceError):
                await ask(server, GET, trusting("first", client))


async def test_a_renewed_certificate_is_loaded(tmp_path: Path, log_lines: LogLines) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(name: str) -> None:
        shutil.copy(TLS / f"{name}.pem", certificate)
        shutil.copy(TLS / f"{name}.key.pem", key)

    install("first")
    async with serving(encrypted(certificate, key)) as server:
        assert (await ask(server, GET, trusting("first")))[0] == 200
        key.write_text("half of it")
        assert (await ask(server, GET, trusting("first")))[0] == 200
        assert len(log_lines.having("warning: cannot use", "still used")) == 1
        install("second")
        assert (await ask(server, GET, trusting("second")))[0] == 200
        certificate.unlink()
        assert (await ask(server, GET, trusting("second")))[0] == 200


ENCRYPTED_KEY = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAgzl+6V3s/8oQICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEFqmhB6AO2HKUMouX8945jUEgZBE
OydNBy7Vd3r74niEm14uR6zW+vpEyc7lv8GmFHVYhylmOlrE6irdU9GEhTddUrLN
2hpftZX4f6u3uJUo+pQglZ8w6hC1ApMpXTrEiRrOaUbhM/BWRdD3fWnORIrOlWxT
Rhkb6cpiU73FsJHQNcnRnWVl/JI0VCKBr1IG52OWJwUusfuS3U6Aj9/JuHAo+WA=
-----END ENCRYPTED PRIVATE KEY-----
"""


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca"),
    [
        ("first.pem", None, None),
        ("first.pem", "second.key.pem", None),
        ("nothing.pem", "first.key.pem", None),
        ("first.key.pem", "first.key.pem", None),
        ("first.pem", "encrypted.pem", None),
        ("first.pem", "first.key.pem", "first.key.pem"),
        ("first.pem", "first.key.pem", "nothing.pem"),
    ],
)
async def test_files_that_cannot_be_used(
    tmp_path: Path, certificate: str, key: str | None, client_ca: str | None
) -> None:
    for path in TLS.glob("*.pem"):
        shutil.copy(path, tmp_path)
    (tmp_path / "encrypted.pem").write_text(ENCRYPTED_KEY)
    files = [None if name is None else tmp_path / name for name in (certificate, key, client_ca)]
    with pytest.raises(
        OperatorError, match=r"^(cannot use .* for TLS|the metrics key is)"
    ) as error:
        await MetricsServer.open(MetricsOptions("127.0.0.1", 0, *files), no_vms, InternalErrors())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_a_path_that_is_not_a_file_is_refused_without_waiting(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    certificate = tmp_path / "first.pem"
    make(certificate)
    options = encrypted(certificate, TLS / "first.key.pem")
    with trio.fail_after(5), pytest.raises(OperatorError, match="is not a regular file"):
        await MetricsServer.open(options, no_vms, InternalErrors())


async def test_a_file_system_that_hangs_delays_scrapers_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mended, context = threading.Event(), Certificates.context

    def hanging(certificates: Certificates) -> ssl.SSLContext:
        mended.wait(20)
        return context(certificates)

    monkeypatch.setattr(Certificates, "context", hanging)
    monkeypatch.setattr(metrics_server, "PATIENCE", 0.1)
    async with serving(encrypted(TLS / "first.pem", TLS / "first.key.pem")) as server:
        for _ in range(3):
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await ask(server, GET, trusting("first"))
        monkeypatch.setattr(metrics_server, "PATIENCE", 10.0)
        mended.set()
        assert (await ask(server, GET, trusting("first")))[0] == 200
