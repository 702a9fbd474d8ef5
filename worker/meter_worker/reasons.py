"""Why events become dead letters: the reasons there are, and what to do about each."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["REASONS", "Reason", "hint_for", "reason_of"]


class Reason(NamedTuple):
    """A reason, by its slug, which stays the same from release to release."""

    slug: str
    meaning: str
    """What happened, as a sentence."""
    hint: str
    """What to do, as a sentence."""
    is_refusal: bool
    """Whether the backend is known not to have stored it."""


REASONS = (
    Reason(
        "rejected",
        "The backend refused this event alone, accepted another, and refused this one again.",
        "Read the detail, which is the backend's own word, and mend what it names at the backend,"
        " such as the schema of the topic; then replay. What no backend will ever take: purge.",
        is_refusal=True,
    ),
    Reason(
        "too_large",
        "The backend takes no request as large as this event alone.",
        "Raise the limit of the backend or of the proxy before it (an event has at most 64 KiB),"
        " then replay; and post less metadata.",
        is_refusal=True,
    ),
    Reason(
        "key_conflict",
        "The backend knows the idempotency key with other content.",
        "Two events have one key: find out which of them is billed. Purge this one where it is;"
        " else post it again under a new key, then purge it.",
        is_refusal=True,
    ),
    Reason(
        "customer_not_found",
        "The accounts API knows no customer for the tenant, however often it was asked.",
        "Make an account for the tenant, or correct METER_ACCOUNTS_URL or METER_PORTAL_URL; then"
        " replay. Where the tenant id itself is wrong: post again under the right one, then purge.",
        is_refusal=True,
    ),
    Reason(
        "attempts_exhausted",
        "The backend asked METER_MAX_ATTEMPTS times to try this event again, others passed.",
        "See at the backend why it could not store this one, then replay. It may have stored it"
        " all the same: METER_DEDUPE_WINDOW says how long a replay is safe.",
        is_refusal=False,
    ),
    Reason(
        "damaged",
        "It was read from a damaged outbox and contradicts itself.",
        "Compare what it says with your own records. Replay it where it is right; else post it"
        " again as it should be, then purge it.",
        is_refusal=False,
    ),
)

_UNKNOWN = Reason(
    "",
    "A reason that this version does not know.",
    "Read the detail; a newer version of meter-lib may have given it.",
    is_refusal=False,
)


def hint_for(slug: str) -> str:
    """Return what happened and what to do about it, in two or three sentences."""
    reason = reason_of(slug)
    return f"{reason.meaning} {reason.hint}"


def reason_of(slug: str) -> Reason:
    """Return the reason with this slug; one that nobody knows is believed to be the worst."""
    return next((reason for reason in REASONS if reason.slug == slug), _UNKNOWN)
