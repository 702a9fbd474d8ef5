from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meter_lib import InvalidSetting, Settings
from meter_lib.clock import SystemClock
from meter_worker.backend import Request, Unavailable
from meter_worker.http_link import HttpLink, LinkFailed
from meter_worker.rest_backend import RestAccounts, RestBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Serving: TypeAlias = "Callable[[ssl.SSLContext | None], str]"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DAY = timedelta(days=1)
NOW = datetime.now(timezone.utc)


class Identity(NamedTuple):
    """A key, its certificate, and where both are kept."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    path: Path

    def write(self) -> None:
        """Keep both in one file, as servers read them."""
        self.path.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + self.certificate.public_bytes(serialization.Encoding.PEM)
        )


def issued(
    path: Path,
    by: Identity | None = None,
    *,
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + DAY,
    host: str = "127.0.0.1",
) -> Identity:
    """Issue a certificate, to an authority if `by` is nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    signing = key if by is None else by.key
    # From 3.13 on Python asks for all that RFC 5280 does.
    usage = dict.fromkeys(
        [
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ],
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=by is None, **usage), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False
        )
        .sign(signing, hashes.SHA256())
    )
    identity = Identity(key, certificate, path)
    identity.write()
    return identity


@pytest.fixture
def authority(tmp_path: Path) -> Identity:
    """An authority of certificates."""
    return issued(tmp_path / "authority.pem")


@pytest.fixture
def serving() -> Iterator[Serving]:
    """A maker of servers that answer one request a connection, with TLS or without."""
    listening: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def make(context: ssl.SSLContext | None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(10)
                        answer(connection)

        def answer(connection: socket.socket) -> None:
            if context is None:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return
            with context.wrap_socket(connection, server_side=True) as secured:
                received = b""
                while not received.endswith(b"{}"):
                    chunk = secured.recv(65_536)
                    if not chunk:
                        return
                    received += chunk
                secured.sendall(OK)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield make
    for server in listening:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
    for thread in threads:
        thread.join(10)


def tls(identity: Identity, *, clients_of: Identity | None = None) -> ssl.SSLContext:
    """Make a server's side of TLS, that asks for a certificate of the client if told so."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.path)
    if clients_of is not None:
        context.load_verify_locations(clients_of.path)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def send(url: str, authority: Identity, *, client_cert: str | None = None) -> int:
    """Send a request and return the status."""
    link = HttpLink(
        connect_timeout=10, read_timeout=10, ca_bundle=str(authority.path), client_cert=client_cert
    )
    try:
        return link.send("POST", url, headers={}, body=b"{}").status
    finally:
        link.interrupt()


def failure(url: str, authority: Identity, *, distrusted: bool = False) -> str:
    """Send a request that must fail, and return why."""
    with pytest.raises(LinkFailed) as caught:
        send(url, authority)
    assert (caught.value.timed_out, caught.value.wants_an_operator) == (False, distrusted)
    return str(caught.value)


def test_a_certificate_of_an_authority_that_is_trusted_is_taken(
    tmp_path: Path, authority: Identity, serving: Serving
) -> None:
    """METER_CA_BUNDLE says whom to trust."""
    server = issued(tmp_path / "server.pem", authority)

    assert send(f"https://{serving(tls(server))}/", authority) == 200


@pytest.mark.parametrize(
    ("begins", "ends", "words"),
    [
        (NOW - 9 * DAY, NOW - DAY, "certificate has expired"),
        (NOW + DAY, NOW + 9 * DAY, "certificate is not yet valid"),
    ],
)
def test_a_certificate_out_of_its_time_makes_us_doubt_the_clock(
    tmp_path: Path,
    authority: Identity,
    serving: Serving,
    begins: datetime,
    ends: datetime,
    words: str,
) -> None:
    """A device that believes in 1970 trusts nobody; the error says what its clock shows."""
    server = issued(tmp_path / "server.pem", authority, begins=begins, ends=ends)
    before = datetime.now(timezone.utc)
    error = failure(f"https://{serving(tls(server))}/", authority, distrusted=True)
    after = datetime.now(timezone.utc)

    assert words in error
    assert any(
        error.startswith(
            f"the clock of this device may be wrong, it shows {shown:%Y-%m-%d %H:%M} UTC: SSLError"
        )
        for shown in (before, after)
    )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stranger", "unable to get local issuer certificate"),
        ("self-signed", "self"),
        ("another host", "match"),
    ],
)
def test_other_certificates_are_refused_without_a_word_of_clocks(
    tmp_path: Path, authority: Identity, serving: Serving, fault: str, words: str
) -> None:
    """Of an unknown authority, of none at all, or of another host."""
    stranger = issued(tmp_path / "stranger.pem")
    if fault == "stranger":
        server = issued(tmp_path / "server.pem", stranger)
    elif fault == "self-signed":
        server = stranger
    else:
        server = issued(tmp_path / "server.pem", authority, host="127.0.0.2")
    error = failure(f"https://{serving(tls(server))}/", authority, distrusted=True)

    assert (words in error, "clock" in error) == (True, False)


def test_our_own_certificate_is_shown_where_one_is_asked_for(
    tmp_path: Path, authority: Identity, serving: Serving
) -> None:
    """With it the request passes, without it the connection is refused."""
    server = issued(tmp_path / "server.pem", authority)
    device = issued(tmp_path / "device.pem", authority)
    url = f"https://{serving(tls(server, clients_of=authority))}/"

    assert failure(url, authority)
    assert send(url, authority, client_cert=str(device.path)) == 200


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("ca_bundle", {"ca_bundle": "text"}),
        ("ca_bundle", {"ca_bundle": "empty"}),
        ("client_cert", {"client_cert": "text"}),
        ("client_cert", {"client_cert": "certificate.pem"}),
        ("client_key", {"client_cert": "certificate.pem", "client_key": "text"}),
        ("client_key", {"client_cert": "certificate.pem", "client_key": "stranger.pem"}),
        ("client_key", {"client_cert": "certificate.pem", "client_key": "locked.pem"}),
        (None, {"client_cert": "certificate.pem", "client_key": "device.pem"}),
        (None, {"client_cert": "device.pem", "ca_bundle": "authority.pem"}),
        (None, {"ca_bundle": "."}),
    ],
)
def test_files_of_tls_that_cannot_be_used_are_refused_at_the_start(
    tmp_path: Path, authority: Identity, field: str | None, given: dict[str, str]
) -> None:
    """Not at the first request, of an hour later; and no password of a key is asked for."""
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "empty").touch()
    device = issued(tmp_path / "device.pem", authority)
    issued(tmp_path / "stranger.pem")
    public = device.certificate.public_bytes(serialization.Encoding.PEM)
    (tmp_path / "certificate.pem").write_bytes(public)
    (tmp_path / "locked.pem").write_bytes(
        device.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a password"),
        )
    )
    paths = {name: os.path.normpath(tmp_path / file) for name, file in given.items()}
    if field is None:
        assert Settings(**paths).client_cert == paths.get("client_cert")
    else:
        with pytest.raises(InvalidSetting, match=f"^METER_{field.upper()} "):
            Settings(**paths)


def test_an_outage_for_want_of_trust_wants_an_operator(
    tmp_path: Path, authority: Identity, serving: Serving
) -> None:
    """A certificate does not become valid by waiting, at either API."""
    stranger = issued(tmp_path / "stranger.pem")
    url = f"https://{serving(tls(stranger))}"
    link = HttpLink(connect_timeout=10, read_timeout=10, ca_bundle=str(authority.path))
    clock = SystemClock()
    backend = RestBackend(link, stream_url=url, topic="t", compression="none", clock=clock)
    outcomes = [
        backend.deliver(Request("t", "d", "k", ['{"value":{"n":1}}'])),
        RestAccounts(link, base_url=url, clock=clock).look_up("t"),
    ]
    link.interrupt()

    for outcome in outcomes:
        assert isinstance(outcome, Unavailable)
        assert (outcome.wants_an_operator, outcome.timed_out) == (True, False)


def test_a_port_that_speaks_no_tls_is_a_failure(authority: Identity, serving: Serving) -> None:
    """An https URL of a plain server."""
    assert "SSLError" in failure(f"https://{serving(None)}/", authority)


def test_a_port_that_speaks_tls_only_is_a_failure(
    tmp_path: Path, authority: Identity, serving: Serving
) -> None:
    """An http URL of a server with TLS."""
    server = issued(tmp_path / "server.pem", authority)

    assert failure(f"http://{serving(tls(server))}/", authority)
