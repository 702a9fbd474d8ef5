-- What a flusher has to know of requests whose outcome it has not seen, of the proof that a
-- refusal needs, and of when an unknown account may be asked for again.

-- Requests that were sent, and of which nobody knows yet what became of them. A row is
-- written before its request leaves, so that it is sent again as it was.
CREATE TABLE unanswered (
    idempotency_key TEXT PRIMARY KEY,
    -- JSON text of the customer id that its records carry.
    customer_id     TEXT NOT NULL,
    -- JSON array of the seqs of its events, in their order.
    seqs            TEXT NOT NULL
) WITHOUT ROWID;

-- JSON text of the customer id that the event was first sent with: it is never sent with another.
ALTER TABLE events ADD COLUMN customer_id TEXT;

-- Which lone refusal it was, when the event was first refused alone. It takes the place of
-- refused_after, which counted deliveries: with several requests under way, one that was sent
-- before a refusal may be accepted after it, and proves nothing.
ALTER TABLE events ADD COLUMN lone_refusal INTEGER;

-- How many lone refusals there were, and up to which of them something sent later was accepted.
ALTER TABLE outbox ADD COLUMN lone_refusals INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN proven_to INTEGER NOT NULL DEFAULT 0;

ALTER TABLE accounts ADD COLUMN ask_again_at INTEGER;
