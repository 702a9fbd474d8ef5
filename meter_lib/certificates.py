"""Whether the files of TLS hold what their settings say."""

from __future__ import annotations

import os

__all__ = ["refused_certificate"]


def refused_certificate(
    ca_bundle: str | None, client_cert: str | None = None, client_key: str | None = None
) -> tuple[str, str] | None:
    """Return which of these settings cannot be used, and the words for what it must be; or None.

    The files are there and can be read. A CA bundle may be a folder, as OpenSSL has them.
    """
    if ca_bundle is not None and not os.path.isdir(ca_bundle) and not _has_certificates(ca_bundle):
        return "ca_bundle", "a file of certificates in PEM"
    if client_cert is None:
        return None
    if not _has_certificates(client_cert):
        return "client_cert", "a file that holds a certificate in PEM"
    if _is_pair(client_cert, client_key):
        return None
    if client_key is None:
        return "client_cert", (
            "a file that holds the certificate's private key as well, in PEM and without a"
            " password, or METER_CLIENT_KEY (client_key) must be given too"
        )
    return "client_key", (
        "a file that holds the private key of METER_CLIENT_CERT (client_cert), in PEM and without"
        " a password"
    )


def _has_certificates(path: str) -> bool:
    import ssl  # noqa: PLC0415  # only where there are any

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True


def _is_pair(certificate: str, key: str | None) -> bool:
    import ssl  # noqa: PLC0415  # as above

    try:
        # Without a password given, OpenSSL would ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, lambda: "")
    except ssl.SSLError:
        return False
    return True
