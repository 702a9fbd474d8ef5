"""A broker that refuses what it is told to: librdkafka's own, which knows no records back."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_worker.backend import Outcome, Request
    from meter_worker.kafka_link import KafkaBackend

PRODUCE = 0
# Those to the topic of the events and to that of the positions, whichever comes first.
_REQUESTS_OF_A_TRANSACTION = 4


def _library() -> ctypes.CDLL:
    """Return the librdkafka that confluent_kafka has loaded."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split()[-1] for line in maps if "librdkafka" in line}
    except OSError:
        paths = set()
    if not paths:
        pytest.skip("librdkafka's own broker is looked for on Linux only")
    return ctypes.CDLL(paths.pop())


class RefusingCluster:
    """A cluster of one broker in this process, over real sockets."""

    def __init__(self) -> None:
        self._library = library = _library()
        pointer = ctypes.c_void_p
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(library, name).restype = pointer
        library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        words = ctypes.create_string_buffer(512)
        conf = pointer(library.rd_kafka_conf_new())
        self._client = pointer(library.rd_kafka_new(0, conf, words, ctypes.c_size_t(512)))
        assert self._client.value, words.value
        self._cluster = pointer(library.rd_kafka_mock_cluster_new(self._client, 1))
        assert self._cluster.value
        self.address = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def close(self) -> None:
        """End it."""
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)

    @contextlib.contextmanager
    def refusing(self, code: int, api_key: int = PRODUCE) -> Iterator[None]:
        """Answer requests of a kind, by Kafka's number, with this error."""
        codes = (ctypes.c_int * _REQUESTS_OF_A_TRANSACTION)(*[code] * _REQUESTS_OF_A_TRANSACTION)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster,
            ctypes.c_int16(api_key),
            ctypes.c_size_t(_REQUESTS_OF_A_TRANSACTION),
            codes,
        )
        try:
            yield
        finally:
            self._library.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(api_key))


class Picky:
    """The adapter before a broker that refuses requests with a certain word in a record."""

    def __init__(
        self, backend: KafkaBackend, cluster: RefusingCluster, words: dict[str, int]
    ) -> None:
        self._backend = backend
        self._cluster = cluster
        self._words = words
        self.interrupt = backend.interrupt
        self.is_appeased = False
        """Set to have everything accepted."""
        self.accepted: list[str] = []
        """The records that were stored, in order."""

    def deliver(self, request: Request) -> Outcome:
        """Deliver it to a broker of that mind."""
        for word, code in self._words.items():
            if not self.is_appeased and any(word in record for record in request.records):
                with self._cluster.refusing(code):
                    return self._backend.deliver(request)
        outcome = self._backend.deliver(request)
        self.accepted += request.records
        return outcome
