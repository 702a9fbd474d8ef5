"""Delivery straight to Kafka, in transactions. The only user of confluent_kafka, an extra."""

from meter_worker.kafka_link.attempt import KafkaFailed
from meter_worker.kafka_link.backend import KafkaBackend
from meter_worker.kafka_link.configuration import KafkaConfiguration
from meter_worker.kafka_link.reaching import reach

__all__ = ["KafkaBackend", "KafkaConfiguration", "KafkaFailed", "reach"]
