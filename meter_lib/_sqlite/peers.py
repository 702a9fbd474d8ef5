"""What is remembered of the peers over the network: how it stands with a link, who pays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib.outbox import Account, Link

if TYPE_CHECKING:
    from meter_lib._sqlite.database import Database

__all__ = ["SqlitePeers"]


class SqlitePeers:
    """Links and accounts, in the file of an outbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def link(self, name: str) -> Link:
        """Return how it stands with the link of that name."""
        with self._database.read() as connection:
            row = connection.execute(
                """
                SELECT name, failures, down_since, next_attempt_at,
                       last_success_at, last_error, last_error_at
                FROM links WHERE name = ?
                """,
                (name,),
            ).fetchone()
        return Link(*row) if row else Link(name)

    def set_link(self, link: Link) -> None:
        """Write how it stands with a link."""
        with self._database.write() as connection:
            connection.execute(
                """
                INSERT OR REPLACE INTO links (name, failures, down_since, next_attempt_at,
                                              last_success_at, last_error, last_error_at)
                VALUES (?, ?, ?, ?, ?, ?, ?)
                """,
                link,
            )

    def account(self, tenant_id: str) -> Account | None:
        """Return what the accounts API last answered for the tenant, or None."""
        with self._database.read() as connection:
            row = connection.execute(
                """
                SELECT customer_id, answered_at, misses, ask_again_at
                FROM accounts WHERE tenant_id = ?
                """,
                (tenant_id,),
            ).fetchone()
        return Account(*row) if row else None

    def set_account(self, tenant_id: str, account: Account) -> None:
        """Write what the accounts API answered for the tenant."""
        with self._database.write() as connection:
            connection.execute(
                """
                INSERT OR REPLACE INTO accounts (tenant_id, customer_id, answered_at, misses,
                                                 ask_again_at)
                VALUES (?, ?, ?, ?, ?)
                """,
                (tenant_id, *account),
            )
