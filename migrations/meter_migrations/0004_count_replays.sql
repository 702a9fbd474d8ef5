-- What operators do with dead letters is remembered: how often one was replayed, and whether
-- an event whose key is known was purged, so that it may be imported again.

ALTER TABLE events ADD COLUMN replays INTEGER NOT NULL DEFAULT 0;

-- 1: an operator removed the event. A post under its key is a duplicate as before.
ALTER TABLE known_keys ADD COLUMN removed INTEGER NOT NULL DEFAULT 0;
