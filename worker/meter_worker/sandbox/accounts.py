"""The accounts API: which customer a tenant belongs to. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from meter_worker.sandbox.exchange import (
    JSON,
    Answer,
    error_answer,
    json_answer,
    plain_answer,
)

if TYPE_CHECKING:
    from collections.abc import Container

    from meter_worker.sandbox.exchange import Request

_PATH = re.compile(r"(/metering)?/v1alpha1/customer-accounts/tenant/([^/]+)/?")


@dataclass(frozen=True, slots=True)
class AccountPath:
    """A path of the accounts API, taken apart: the plain tenant id, and by which door it came."""

    tenant: str
    by_portal: bool


def account_path(path: str) -> AccountPath | None:
    """Take a path apart; None where it is not one of the accounts API."""
    parts = _PATH.fullmatch(path)
    return AccountPath(unquote(parts[2]), parts[1] is not None) if parts else None


def customer_id_of(tenant: str) -> str:
    """Give the id of the customer account that the sandbox has for a tenant, always the same."""
    # "surrogatepass": a lone surrogate is no valid tenant id, but no reason to fall over either.
    digest = hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()
    return f"cust-{digest[:12]}"


def account_answer(
    request: Request,
    asked: AccountPath,
    *,
    api_key: str | None,
    unknown: Container[str],
    as_list: bool,
) -> Answer:
    """Give the tenant's account; 401 without the portal's API key, 404 for an unknown tenant."""
    if request.method != "GET":
        return plain_answer(405)
    is_open = api_key is None or not asked.by_portal
    if not is_open and request.headers.get("authorization") != f"Bearer {api_key}":
        return error_answer(401, "Unauthorized", content_type=JSON)
    if asked.tenant in unknown:
        return error_answer(404, "No account for this tenant", content_type=JSON)
    account = {"id": customer_id_of(asked.tenant), "tenant_id": asked.tenant}
    return json_answer(200, [account] if as_list else account)
