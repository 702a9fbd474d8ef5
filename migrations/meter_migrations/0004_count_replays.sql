-- What operators do with dead letters is remembered: how often one was replayed, and whether
-- an event whose key is known was removed, so that it may be imported again.

ALTER TABLE events ADD COLUMN replays INTEGER NOT NULL DEFAULT 0;

-- 1: the event was purged or dropped. A post under its key is a duplicate as before.
ALTER TABLE known_keys ADD COLUMN removed INTEGER NOT NULL DEFAULT 0;
