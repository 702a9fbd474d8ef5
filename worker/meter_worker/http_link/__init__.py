"""One HTTP peer, reached with requests: each wait and each answer is bounded, nothing is resent."""

from meter_worker.http_link.failures import LinkFailed, LinkInterrupted
from meter_worker.http_link.link import HttpLink
from meter_worker.http_link.reply import Reply

__all__ = ["HttpLink", "LinkFailed", "LinkInterrupted", "Reply"]
