-- What an outbox brings along that comes from a file, and what tells that one has left.

ALTER TABLE meter_lib.outbox
    -- Another one each time that an outbox comes to these tables. What a program remembers of
    -- them, as the numbers of streams, is of one life.
    ADD COLUMN life        uuid    NOT NULL DEFAULT gen_random_uuid(),
    -- How often it was found to be a copy, under which names it accepted which events before
    -- (JSON: [[after seq, up to, name], ...]), and when that was found last.
    ADD COLUMN epoch       integer NOT NULL DEFAULT 1,
    ADD COLUMN copied_from text,
    ADD COLUMN copied_at   bigint;

-- The event time was corrected before it was first sent: the clock had shown recorded_at.
ALTER TABLE meter_lib.events ADD COLUMN clock_corrected boolean NOT NULL DEFAULT false;

-- Of the outbox that was here, or is about to come: where it is, if it has left, and which
-- schema has the tables. While there is a row, there are none here.
CREATE TABLE meter_lib.moved (
    is_arriving boolean PRIMARY KEY,
    outbox_id   text    NOT NULL,
    moved_to    text,
    kept_in     text    NOT NULL,
    CONSTRAINT left_for_somewhere CHECK (is_arriving = (moved_to IS NULL))
);

-- Whoever may look into the schema is to be told.
GRANT SELECT ON meter_lib.moved TO PUBLIC;
