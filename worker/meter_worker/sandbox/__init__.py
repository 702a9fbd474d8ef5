"""A local backend to develop and test against: events API, accounts API, and faults on demand.

    with Sandbox() as sandbox:
        ...  # METER_STREAM_URL and METER_ACCOUNTS_URL are sandbox.url
        sandbox.fault("drop_reply", times=1)
        ...
        assert sandbox.duplicates == 0

It answers over real sockets as a Kafka REST proxy (Karapace) does, refusals included, and keeps
what it stored in memory, where the test or the developer can look.
"""

from __future__ import annotations

from meter_worker.sandbox.accounts import customer_id_of
from meter_worker.sandbox.request_log import LoggedRequest
from meter_worker.sandbox.server import Sandbox
from meter_worker.sandbox.store import StoredRecord

__all__ = ["LoggedRequest", "Sandbox", "StoredRecord", "customer_id_of"]
