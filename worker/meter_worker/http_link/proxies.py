"""The proxy that the environment names for a URL, as requests finds it, and its password."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote

from requests.utils import get_environ_proxies, select_proxy

from meter_worker.http_link.failures import LinkFailed

__all__ = ["credentials_in", "proxy_for"]

# Whatever is before the last @ is user and password, if not as they should be written.
_PROXY = re.compile(
    r"(?:[a-z][a-z0-9+.-]*://)?(?:([^/?#\s]*)@)?(?:\[[0-9a-f:.]+\]|[\w.-]+)(?::[0-9]{1,5})?/?",
    re.IGNORECASE,
)


def proxy_for(url: str) -> str | None:
    """Return the URL of the proxy to use, or None. Raises `LinkFailed` where it is none.

    requests would fail as well, some with the password in the error, or by a TypeError.
    """
    proxy = select_proxy(url, get_environ_proxies(url))
    if proxy is None or _PROXY.fullmatch(proxy):
        return proxy
    raise LinkFailed(
        "what the environment names as proxy (http_proxy, https_proxy or all_proxy) is no URL like"
        " http://user:password@host:port, with special characters percent-encoded",
        wants_an_operator=True,
    )


def credentials_in(proxy: str) -> list[str]:
    """Return user and password of a proxy, in each form in which somebody may echo them."""
    match = _PROXY.fullmatch(proxy)
    given = match[1] if match is not None else None
    if not given:
        return []
    plain = ":".join(map(unquote, given.split(":", 1)))
    return [base64.b64encode(plain.encode("latin-1", "replace")).decode(), plain, given]
