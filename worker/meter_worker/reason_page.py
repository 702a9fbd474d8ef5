"""The reasons of dead letters as a page of Markdown: `python -m meter_worker.reason_page`."""

from __future__ import annotations

import sys

from meter_worker.reasons import REASONS

__all__ = ["page"]

_PAGE = """\
# Dead letters

Made from the table in `worker/meter_worker/reasons.py` by `make docs`; do not edit.

A dead letter is an event that is no longer tried. It stays in the outbox, under its idempotency
key, until it is replayed or purged; those behind it in its stream are delivered meanwhile.
`meter-lib dead-letters list` shows them all, `show KEY` one with what to do about it.

## Reasons

The reason is a word that stays the same from release to release, for `--reason` and for scripts.

| reason | what happened | what to do | can it be stored all the same? |
|---|---|---|---|
{reasons}

## What to do

1. Look: `meter-lib dead-letters list`, then `show` one of each reason.
2. Mend the cause.
3. Plan: `meter-lib dead-letters replay --reason rejected --dry-run` changes nothing.
4. Replay without `--dry-run`. Where a worker is running, the oldest goes first, as a canary. Once
   it is delivered the others follow, at most `--rate` a second. If it is refused again, or is not
   delivered within `--canary-timeout`, the others stay dead letters and the command ends with 1.
   Without a worker all become pending at once. Ctrl-C stops at any point; what is replayed by then
   stays replayed, and the same command does the rest.
5. What must never be billed: `purge`. It writes a file beside the outbox first. `import` takes that
   file in again, here or in another outbox, and takes nothing twice.

## Replays that may bill twice

A replay keeps the idempotency key, so a backend that drops repeated keys bills once, as long as it
remembers them. If it forgets them after a while, say so with `METER_DEDUPE_WINDOW` (seconds). Then
a replay asks for `--accept-duplicate-risk` where both are true:

- The backend may have the event: nobody saw it refused for good (the last column above), or it was
  also in a request that was never answered.
- It died longer ago than the window. The last attempt was no later than that; how long an earlier
  attempt is ago is not known, so choose the window shorter rather than longer. The time that a
  replayed event waits for its delivery comes on top.

Without `METER_DEDUPE_WINDOW` nothing is known of the backend, and nothing is asked.
"""


def page() -> str:
    """Return the page."""
    rows = (
        f"| `{reason.slug}` | {reason.meaning} | {reason.hint} |"
        f" {'no' if reason.is_refusal else 'yes'} |"
        for reason in REASONS
    )
    return _PAGE.format(reasons="\n".join(rows))


if __name__ == "__main__":
    sys.stdout.write(page())
