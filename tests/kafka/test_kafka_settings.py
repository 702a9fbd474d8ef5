"""How a broker is named and reached: what is refused, what is kept secret, what the doctor sees."""

from __future__ import annotations

import logging
import signal
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("confluent_kafka", reason="the extra 'kafka' is not installed")

from meter_lib import InvalidSetting, Settings
from meter_worker.backend import Unavailable
from meter_worker.kafka_link import KafkaBackend, KafkaConfiguration
from meter_worker.sandbox import Sandbox
from tests.integration.test_http_tls import issued
from tests.kafka.brokers import TOPIC, Broker, Line
from tests.kafka.requests import all_delivered, request_of
from tests.kafka.workers import KafkaDevice
from tests.promises.delivering import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.operating import Operator

SECRET = "hunter-2-hunter"  # noqa: S105 - nobody's


def configuration(file: Path, text: str, **settings: Any) -> KafkaConfiguration:
    """Take these properties from a file."""
    file.write_text(text)
    return KafkaConfiguration.of(
        Settings(**{"sink": f"kafka://127.0.0.1:1/{TOPIC}", "kafka_config": str(file), **settings})
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "acks=0",
            "line 1 sets acks: it may set security.protocol, ssl.*, sasl.* and https.* only",
        ),
        ("# who\n\nbootstrap.servers=h:1", "line 3 sets bootstrap.servers: it may set"),
        (SECRET, "line 1 must be property=value"),
        (f"{SECRET}=1", "line 1 must be property=value"),
        (
            "ssl.no.such=1",
            'is refused by librdkafka: No such configuration property: "ssl.no.such"',
        ),
        (
            f"security.protocol=ssl\nssl.key.pem={SECRET}",
            "is refused by librdkafka: Failed to create producer: ssl.key.pem failed",
        ),
        (
            f"security.protocol=sasl_ssl\nsasl.mechanism=WISH\nsasl.password={SECRET}",
            "is refused by librdkafka: Failed to create producer: Unsupported SASL mechanism: WISH",
        ),
        (
            f"ssl.keystore.password={SECRET}\nssl.keystore.location=/no\nsecurity.protocol=ssl",
            "is refused by librdkafka: Failed to create producer: ",
        ),
    ],
)
def test_properties_that_cannot_be_meant_are_refused_at_start(
    tmp_path: Path, text: str, words: str
) -> None:
    """By name and line, with no value in it: it may be a secret."""
    with pytest.raises(InvalidSetting) as refused:
        configuration(tmp_path / "kafka.properties", text)
    said = str(refused.value)
    assert said.startswith("METER_KAFKA_CONFIG (kafka_config) is ")
    assert words in said
    assert SECRET not in said
    assert refused.value.__cause__ is None


def test_the_worker_does_not_start_with_properties_that_it_cannot_use(
    tmp_path: Path, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with 2 and the reason; `config` shows where they are, and none of them."""
    file = tmp_path / "kafka.properties"
    file.write_text(f"sasl.passwort={SECRET}")
    monkeypatch.setenv("METER_KAFKA_CONFIG", str(file))
    monkeypatch.setenv("METER_SINK", f"kafka://127.0.0.1:1/{TOPIC}")
    worker, config = operator.run("worker"), operator.run("config")

    assert worker.code == 2
    assert "METER_KAFKA_CONFIG (kafka_config) is refused by librdkafka" in worker.stderr
    assert config.code == 0
    assert str(file) in config.stdout
    assert SECRET not in worker.stderr + config.stdout + config.stderr


def test_a_password_is_in_no_word_of_an_outage(
    tmp_path: Path, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that does not take it leaves it out of the reason and out of the log."""
    caplog.set_level(logging.DEBUG)
    made = configuration(
        tmp_path / "kafka.properties",
        f"security.protocol=sasl_plaintext\nsasl.mechanism=PLAIN\nsasl.username=u\n"
        f"sasl.password={SECRET}",
        sink=f"kafka://{broker.address}/{TOPIC}",
        read_timeout=2,
    )
    outcome = KafkaBackend(made).deliver(request_of("a"))

    assert isinstance(outcome, Unavailable)
    assert SECRET not in outcome.detail + caplog.text
    assert made.without_secrets(f"no: {SECRET}!") == "no: ***!"


def test_a_broker_is_reached_by_mutual_tls(tmp_path: Path, broker_program: str) -> None:
    """Each shows its certificate; a broker of a strange authority is an outage, told at once."""
    authority = issued(tmp_path / "authority.pem")
    server = issued(tmp_path / "server.pem", authority)
    client = issued(tmp_path / "client.pem", authority)
    stranger = issued(tmp_path / "stranger.pem")
    authority.write()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server.path)
    tls.load_verify_locations(authority.path)
    tls.verify_mode = ssl.CERT_REQUIRED
    line = Line(tls)
    broker = Broker(broker_program, advertised=line.port)
    line.lead_to(broker.port)
    broker.start(topics=())
    settings = {
        "sink": f"kafka://{broker.address}/{TOPIC}",
        "client_cert": str(client.path),
        "read_timeout": 10,
    }
    try:
        properties = tmp_path / "kafka.properties"
        protocol = "security.protocol=ssl"
        known = configuration(properties, protocol, ca_bundle=str(authority.path), **settings)
        assert all_delivered(KafkaBackend(known).deliver(request_of("a")), 1)

        strange = configuration(properties, protocol, ca_bundle=str(stranger.path), **settings)
        for _ in range(5):  # errors follow from this one, now and then before it is looked at
            outcome = KafkaBackend(strange).deliver(request_of("b"))
            assert isinstance(outcome, Unavailable)
            assert outcome.wants_an_operator
            assert "certificate verify failed" in outcome.detail
    finally:
        line.close()
        broker.kill()


@pytest.mark.usefixtures("operator")
def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker ends with 2 and the doctor finds a fault; nobody else misses it."""
    monkeypatch.setenv("METER_SINK", f"kafka://127.0.0.1:1/{TOPIC}")
    program = (
        "import sys; sys.modules['confluent_kafka'] = None; "
        "from meter_worker.cli import main; main(sys.argv[1:])"
    )
    ended = [
        subprocess.run(
            [sys.executable, "-c", program, command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for command in ("worker", "doctor", "meters")
    ]

    assert [one.returncode for one in ended] == [2, 1, 0]
    assert ended[0].stderr == (
        "meter-lib: METER_SINK (sink) needs the extra 'kafka': pip install 'meter-lib[kafka]'\n"
    )
    assert "pip install 'meter-lib[kafka]'" in ended[1].stdout


def kafka_in(operator: Operator) -> dict[str, str]:
    """What the doctor finds of the broker."""
    [found] = [
        check
        for check in operator.run("doctor", "--json").json["checks"]
        if check["name"] == "Kafka"
    ]
    return dict(found)


def test_the_doctor_looks_for_brokers_and_topics(
    broker_program: str, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All there, a topic missing, nobody there: it tells them apart, and makes no topic itself."""
    broker = Broker(broker_program)
    monkeypatch.setenv("METER_SINK", f"kafka://{broker.address}/{TOPIC}")
    monkeypatch.setenv("METER_CONNECT_TIMEOUT", "2")
    found = []
    try:
        for topics in ((TOPIC, f"{TOPIC}-positions"), (TOPIC,)):
            broker.start(topics=topics)
            found.append(kafka_in(operator))
            broker.kill()
    finally:
        broker.kill()
    found.append(kafka_in(operator))

    url = f"kafka://{broker.address}/{TOPIC}"
    assert [(one["verdict"], one["found"]) for one in found[:2]] == [
        ("ok", f"{url} answers: 1 brokers, topic {TOPIC} of 3 partitions"),
        ("fault", f"{url}: answers, but has no topic {TOPIC}-positions"),
    ]
    assert found[2]["verdict"] == "fault"
    assert "Connection refused" in found[2]["found"]


def test_a_worker_stops_in_time_while_the_broker_says_nothing(
    tmp_path: Path, broker: Broker
) -> None:
    """SIGTERM is not kept waiting by a broker, and the event stays."""
    with Sandbox() as sandbox:
        device = KafkaDevice(tmp_path, sandbox, f"kafka://{broker.address}/{TOPIC}")
        device.record(1)
        worker = device.start_worker()
        device.drained()
        broker.stall()
        device.record(1)
        eventually(lambda: under_way(device) == 1)
        worker.send_signal(signal.SIGTERM)
        code = worker.wait(10)
        broker.go_on()
        status = device.status

    assert (code, status.pending, status.delivered) == (0, 1, 1)


def under_way(device: KafkaDevice) -> int:
    """How many requests the outbox remembers as sent and not answered."""
    with device.opened() as outbox:
        return len(outbox.unanswered())
