"""What a broker says is judged as a proxy's answer is: outages, verdicts, dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("confluent_kafka", reason="the extra 'kafka' is not installed")

from confluent_kafka import KafkaError

from meter_lib import Settings
from meter_worker.backend import Answered, Refused, Rejected, Retriable, Unavailable, Undecided
from meter_worker.kafka_link import KafkaBackend, KafkaConfiguration
from meter_worker.kafka_link.attempt import Complaints, KafkaFailed
from meter_worker.kafka_link.reports import Report, judge_reports
from tests.kafka.refusing import Picky, RefusingCluster
from tests.kafka.requests import all_delivered, request_of
from tests.unit.flusher_bench import Bench

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOO_LARGE, INVALID_RECORD, TOPIC_RIGHTS, NO_REPLICAS = 10, 87, 29, 19


class Refusals(Bench):
    """A flusher over a real outbox, before a broker that refuses events of some meters."""

    def __init__(self, path: Path, cluster: RefusingCluster, **codes: int) -> None:
        super().__init__(path)
        sink = f"kafka://{cluster.address}/usage-events"
        configuration = KafkaConfiguration.of(Settings(sink=sink, read_timeout=3))
        words = {f'"meter_id":"{meter}"': code for meter, code in codes.items()}
        self.kafka = KafkaBackend(configuration)
        self.picky: Any = Picky(self.kafka, cluster, words)
        self.backend = self.picky
        self.restarted()

    @property
    def accepted(self) -> list[str]:
        """The keys of what the broker has stored, in order."""
        return [text.split('"idempotency_key":"')[1].split('"')[0] for text in self.picky.accepted]


@pytest.mark.parametrize(
    ("code", "reason"), [(TOO_LARGE, "too_large"), (INVALID_RECORD, "rejected")]
)
def test_an_event_is_a_dead_letter_once_its_refusal_is_proven(
    tmp_path: Path, cluster: RefusingCluster, code: int, reason: str
) -> None:
    """Refused alone, another accepted, refused alone again; its neighbours are delivered."""
    bench = Refusals(tmp_path / "outbox.db", cluster, bad=code)
    bench.post("a", meter_id="good")
    bench.post("b", meter_id="bad")
    bench.flush_all()
    assert (bench.accepted, bench.dead) == (["a"], [])

    bench.wait()
    bench.post("c", meter_id="good")
    bench.flush_all()

    assert (bench.accepted, bench.dead) == (["a", "c"], [("b", reason)])
    assert bench.counts == {"pending": 0, "dead": 1, "delivered": 2, "refused": 0}


@pytest.mark.parametrize("code", [TOO_LARGE, INVALID_RECORD])
def test_a_broker_that_refuses_everything_buries_nothing(
    tmp_path: Path, cluster: RefusingCluster, code: int
) -> None:
    """Nothing shows that it is the events, so they stay, however often they are refused."""
    bench = Refusals(tmp_path / "outbox.db", cluster, bad=code)
    bench.post("a", "b", "c", meter_id="bad")
    for _ in range(5):
        bench.flush_all()
        bench.wait()

    assert (bench.accepted, bench.dead) == ([], [])
    assert bench.outbox.status().pending == 3


def test_missing_rights_are_an_outage_and_charged_to_nobody(
    tmp_path: Path, cluster: RefusingCluster
) -> None:
    """It wants an operator, and everything is delivered once the rights are given."""
    bench = Refusals(tmp_path / "outbox.db", cluster, m=TOPIC_RIGHTS)
    bench.post("a", "b")
    bench.flush_all()
    said = bench.outbox.link("events").last_error
    assert said is not None
    assert said.startswith("check the rights at the broker, and METER_KAFKA_CONFIG")
    assert (bench.counts["pending"], bench.counts["refused"]) == (2, 0)

    bench.picky.is_appeased = True
    bench.wait()
    bench.flush_all()
    assert bench.counts == {"pending": 0, "dead": 0, "delivered": 2, "refused": 0}


@pytest.mark.parametrize(
    ("api_key", "code"),
    [(24, 29), (24, 53), (25, 30), (28, 30), (26, 53)],
    ids=["add topics", "add topics as nobody", "add the group", "commit the position", "commit"],
)
def test_missing_rights_to_a_transaction_are_told_at_once(
    cluster: RefusingCluster, api_key: int, code: int
) -> None:
    """Whatever the broker does not allow, an operator reads it, and the next attempt is whole."""
    backend = KafkaBackend(
        KafkaConfiguration.of(Settings(sink=f"kafka://{cluster.address}/usage-events"))
    )
    with cluster.refusing(code, api_key):
        outcome = backend.deliver(request_of("a"))

    assert isinstance(outcome, Unavailable)
    assert outcome.wants_an_operator
    assert outcome.detail.startswith("check the rights at the broker, and METER_KAFKA_CONFIG")
    assert all_delivered(backend.deliver(request_of("a")), 1)


@pytest.mark.parametrize("codes", [(-187, -195), (-195, -187)])
def test_an_outage_is_told_in_the_words_of_the_connection(codes: tuple[int, int]) -> None:
    """In whatever order librdkafka says that all brokers are down and why."""
    complaints = Complaints()
    for code in codes:
        complaints.raise_if_hopeless()
        complaints(KafkaError(code, f"said by {code}"))

    with pytest.raises(KafkaFailed, match="said by -195"):
        complaints.raise_if_hopeless()


@pytest.mark.parametrize("codes", [(-181, -195, -187), (-187, -181, -195), (-187, -169, -181)])
def test_what_an_operator_has_to_mend_is_not_hidden_by_what_follows(codes: Sequence[int]) -> None:
    """A certificate or a password that is refused loses the connection, which says less."""
    complaints = Complaints()
    for code in codes:
        complaints(KafkaError(code, f"said by {code}"))

    [lasting, *_] = [code for code in codes if code in {-181, -169}]
    with pytest.raises(KafkaFailed, match=f"said by {lasting}") as failed:
        complaints.raise_if_hopeless()
    assert failed.value.wants_an_operator


def judged(*codes: int, sent: int = 1) -> Any:
    """Judge a request of so many records whose first ones failed with these codes."""
    return judge_reports({place: Report(code, "no") for place, code in enumerate(codes)}, sent)


@pytest.mark.parametrize("code", [TOO_LARGE, 18])
def test_a_lone_record_that_is_too_large_is_rejected(code: int) -> None:
    """It is a verdict on the record itself."""
    detail = f"error_code {code}: no"
    assert repr(judged(code)) == repr(Answered([Rejected("too_large", detail)]))


def test_records_that_are_too_large_together_are_sent_in_parts() -> None:
    """A broker limits batches: nothing was stored, so the request is cut as after a 413."""
    assert repr(judged(TOO_LARGE, TOO_LARGE, sent=3)) == repr(
        Refused("too_large", f"error_code {TOO_LARGE}: no")
    )


def test_records_beside_a_refused_one_stay_as_they_were() -> None:
    """Their transaction was undone with it, and nothing was said of them."""
    assert repr(judged(INVALID_RECORD, sent=3)) == repr(
        Answered([Rejected("rejected", f"error_code {INVALID_RECORD}: no"), *[Undecided()] * 2])
    )


def test_a_record_refused_for_another_one_stays_as_it_was() -> None:
    """A broker names the record that spoils a batch, and says so of the others."""
    assert repr(judged(-138, INVALID_RECORD, sent=2)) == repr(
        Answered([Undecided(), Rejected("rejected", f"error_code {INVALID_RECORD}: no")])
    )


@pytest.mark.parametrize("code", [2, 6, 7, NO_REPLICAS, 20, 32, 999])
def test_what_may_pass_is_retriable(code: int) -> None:
    """Trouble of one partition holds up its own streams, and so does what nobody has described."""
    assert repr(judged(code, sent=2)) == repr(
        Answered([Retriable(f"error_code {code}: no"), Undecided()])
    )


@pytest.mark.parametrize("code", [-195, -185, -192, -187, -150, 45, 47, 49, 59, 90])
def test_trouble_of_the_producer_or_the_line_is_an_outage(code: int) -> None:
    """It says nothing of any record."""
    outcome = judged(code, INVALID_RECORD, sent=2)
    assert isinstance(outcome, Unavailable)
    assert outcome.timed_out == (code == -192)


@pytest.mark.parametrize("code", [3, -188, 17])
def test_a_missing_topic_is_an_outage_that_wants_an_operator(code: int) -> None:
    """Every record meets it, so it is none's fault."""
    outcome = judged(code, sent=2)
    assert isinstance(outcome, Unavailable)
    assert outcome.wants_an_operator
    assert outcome.detail.startswith("check the topic, it is missing or invalid: error_code")
