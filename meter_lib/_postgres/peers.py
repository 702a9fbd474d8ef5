"""What is remembered of the peers over the network: how it stands with a link, who pays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib.outbox import Account, Link

if TYPE_CHECKING:
    from psycopg import Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.session import Session

__all__ = ["PostgresPeers", "note_success", "read_links", "storable"]


def storable(text: str) -> str:
    """The text with a mark in the place of the one character that no column takes."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def read_links(cursor: Cursor[TupleRow]) -> list[Link]:
    """Return all links, by name."""
    cursor.execute(
        """
        SELECT name, failures, down_since, next_attempt_at, last_success_at, last_error,
               last_error_at
        FROM meter_lib.links ORDER BY name COLLATE "C"
        """
    )
    return [Link._make(row) for row in cursor]


def note_success(cursor: Cursor[TupleRow], now: int, *, recovers: bool) -> None:
    """Write that something was delivered, which may show that the link `events` is up."""
    cursor.execute(
        """
        INSERT INTO meter_lib.links (name, last_success_at) VALUES ('events', %s)
        ON CONFLICT (name) DO UPDATE SET last_success_at = excluded.last_success_at
        """,
        (now,),
    )
    if recovers:
        cursor.execute(
            """
            UPDATE meter_lib.links
            SET failures = 0, down_since = NULL, next_attempt_at = NULL
            WHERE name = 'events' AND (failures > 0 OR next_attempt_at IS NOT NULL)
            """
        )


class PostgresPeers:
    """Links and accounts, on the server of an outbox. All its workers share them."""

    def __init__(self, session: Session) -> None:
        self._work = session

    def link(self, name: str) -> Link:
        """Return how it stands with the link of that name."""
        with self._work.statements() as cursor:
            links = read_links(cursor)
        return next((link for link in links if link.name == name), Link(name))

    def set_link(self, link: Link) -> None:
        """Write how it stands with a link."""
        if link.last_error is not None:
            link = link._replace(last_error=storable(link.last_error))
        with self._work.write() as cursor:
            cursor.execute(
                """
                INSERT INTO meter_lib.links (name, failures, down_since, next_attempt_at,
                                             last_success_at, last_error, last_error_at)
                VALUES (%s, %s, %s, %s, %s, %s, %s)
                ON CONFLICT (name) DO UPDATE
                SET failures = excluded.failures, down_since = excluded.down_since,
                    next_attempt_at = excluded.next_attempt_at,
                    last_success_at = excluded.last_success_at,
                    last_error = excluded.last_error, last_error_at = excluded.last_error_at
                """,
                link,
            )

    def account(self, tenant_id: str) -> Account | None:
        """Return what the accounts API last answered for the tenant, or None."""
        with self._work.statements() as cursor:
            cursor.execute(
                """
                SELECT customer_id, answered_at, misses, ask_again_at
                FROM meter_lib.accounts WHERE tenant_id = %s
                """,
                (tenant_id,),
            )
            row = cursor.fetchone()
        return Account._make(row) if row else None

    def set_account(self, tenant_id: str, account: Account) -> None:
        """Write what the accounts API answered for the tenant."""
        with self._work.write() as cursor:
            cursor.execute(
                """
                INSERT INTO meter_lib.accounts (tenant_id, customer_id, answered_at, misses,
                                                ask_again_at)
                VALUES (%s, %s, %s, %s, %s)
                ON CONFLICT (tenant_id) DO UPDATE
                SET customer_id = excluded.customer_id, answered_at = excluded.answered_at,
                    misses = excluded.misses, ask_again_at = excluded.ask_again_at
                """,
                (tenant_id, *account),
            )
