-- The outbox. An accepted event is one row of `events` until it is settled:
--
--     pending ──► (delivered: row deleted, counted in the ledger)
--       │  └────► deferred ──► pending's fate, after a wait; holds its stream
--       └───────► refused ───► delivered or dead, once it is known which
--     dead ─────► deferred (replay) or (removed: row deleted, counted in the ledger)
--
-- No AUTOINCREMENT and no index that a post has to write: a post dirties one page.
-- Instants are integer milliseconds since the Unix epoch.

CREATE TABLE outbox (
    id               INTEGER PRIMARY KEY CONSTRAINT only_one_row CHECK (id = 1),
    outbox_id        TEXT    NOT NULL,
    created_at       INTEGER NOT NULL,
    -- The highest seq that has left `events`: with it, seq has no gap and is never reused.
    last_seq         INTEGER NOT NULL DEFAULT 0 CHECK (last_seq >= 0),
    -- Every event up to here has been looked at by a flusher: none of them is pending.
    frontier         INTEGER NOT NULL DEFAULT 0 CHECK (frontier >= 0),
    -- Up to here, the key of an event is forgotten as soon as the event is gone.
    keys_swept_to    INTEGER NOT NULL DEFAULT 0 CHECK (keys_swept_to >= 0),
    delivered_events INTEGER NOT NULL DEFAULT 0 CHECK (delivered_events >= 0),
    removed_events   INTEGER NOT NULL DEFAULT 0 CHECK (removed_events >= 0),
    dead_events      INTEGER NOT NULL DEFAULT 0 CHECK (dead_events >= 0)
);

-- Events of one stream reach the backend in the order of their seq.
CREATE TABLE streams (
    stream_id  INTEGER PRIMARY KEY,
    tenant_id  TEXT NOT NULL,
    device_id  TEXT NOT NULL,
    meter_id   TEXT NOT NULL,
    -- Set while an event of the stream waits for another attempt: later ones queue behind it.
    held_until INTEGER,
    CONSTRAINT one_row_a_stream UNIQUE (tenant_id, device_id, meter_id)
);

CREATE INDEX held_streams ON streams (held_until) WHERE held_until IS NOT NULL;

CREATE TABLE events (
    seq             INTEGER PRIMARY KEY,
    stream_id       INTEGER NOT NULL REFERENCES streams (stream_id),
    idempotency_key TEXT    NOT NULL,
    event_time      INTEGER NOT NULL,
    recorded_at     INTEGER NOT NULL,
    total_usage     INTEGER CHECK (total_usage IS NULL OR total_usage >= 0),
    state           TEXT    NOT NULL DEFAULT 'pending',
    -- Verdicts of the backend on this event that asked for another attempt.
    attempts        INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    -- How many events had been delivered when this one was first refused alone.
    refused_after   INTEGER,
    reason          TEXT,
    detail          TEXT,
    dead_at         INTEGER,
    -- What the caller said, frozen as JSON at capture; names tenant, device and meter
    -- itself, so that a row alone is enough to bill it. Last, because a long one goes to
    -- pages of its own: what stands before it is read without them.
    payload         TEXT    NOT NULL,
    CONSTRAINT known_state CHECK (state IN ('pending', 'deferred', 'refused', 'dead')),
    CONSTRAINT dead_if_and_only_if_it_has_a_reason CHECK ((state = 'dead') = (reason IS NOT NULL)),
    CONSTRAINT dead_if_and_only_if_it_has_a_time CHECK ((state = 'dead') = (dead_at IS NOT NULL)),
    CONSTRAINT pending_means_untouched CHECK (state <> 'pending' OR (attempts = 0 AND refused_after IS NULL))
);

-- Partial, so that a post writes none of them.
CREATE INDEX deferred_events ON events (stream_id, seq) WHERE state = 'deferred';
CREATE INDEX refused_events ON events (seq) WHERE state = 'refused';
CREATE INDEX dead_letters ON events (seq) WHERE state = 'dead';

-- The idempotency keys that callers chose themselves, kept beyond delivery so that
-- a repeated post is known again; as digests, so that they take little and all the same.
CREATE TABLE known_keys (
    seq         INTEGER PRIMARY KEY,
    key_digest  BLOB    NOT NULL CONSTRAINT one_event_a_key UNIQUE,
    fingerprint BLOB    NOT NULL,
    event_time  INTEGER NOT NULL,
    -- The occurrence time as given; null where it was left to us.
    timestamp   INTEGER
);

-- What has left `events`, by the UTC day of its event time. Units are decimal
-- text: their sum may pass 64 bits.
CREATE TABLE ledger (
    day              INTEGER NOT NULL,
    stream_id        INTEGER NOT NULL REFERENCES streams (stream_id),
    delivered_events INTEGER NOT NULL DEFAULT 0 CHECK (delivered_events >= 0),
    delivered_units  TEXT    NOT NULL DEFAULT '0',
    removed_events   INTEGER NOT NULL DEFAULT 0 CHECK (removed_events >= 0),
    removed_units    TEXT    NOT NULL DEFAULT '0',
    PRIMARY KEY (day, stream_id)
) WITHOUT ROWID;

-- How it stands with each thing that we reach over the network: 'events', 'accounts'.
CREATE TABLE links (
    name            TEXT    PRIMARY KEY,
    failures        INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
    down_since      INTEGER,
    next_attempt_at INTEGER,
    last_success_at INTEGER,
    last_error      TEXT,
    last_error_at   INTEGER,
    CONSTRAINT down_if_and_only_if_it_failed CHECK ((failures > 0) = (down_since IS NOT NULL))
) WITHOUT ROWID;

-- Customer accounts as the accounts API last answered.
CREATE TABLE accounts (
    tenant_id    TEXT    PRIMARY KEY,
    -- JSON text of the id (a string or a number); null where the account is unknown.
    customer_id  TEXT,
    answered_at  INTEGER NOT NULL,
    -- Answers in a row that said: no such account.
    misses       INTEGER NOT NULL DEFAULT 0 CHECK (misses >= 0),
    CONSTRAINT a_known_account_is_not_missed CHECK (customer_id IS NULL OR misses = 0)
) WITHOUT ROWID;

INSERT INTO outbox (id, outbox_id, created_at)
VALUES (1, lower(hex(randomblob(16))), CAST(strftime('%s', 'now') AS INTEGER) * 1000);
