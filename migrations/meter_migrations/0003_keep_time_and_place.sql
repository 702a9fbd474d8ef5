-- What says whether a time can be believed, how long a wait still lasts after a restart, and
-- whether this file is a copy. Columns only, each with a default: a program of an earlier
-- version that has the file open goes on with the statements it knows.

-- In which boot of the machine, and when in it (milliseconds of the clock that counts from
-- there), an event was recorded. Null where it is not known.
ALTER TABLE events ADD COLUMN recorded_boot INTEGER;
ALTER TABLE events ADD COLUMN recorded_uptime INTEGER;
-- Where the event time comes from. 0: the caller, who is never corrected; 1: our clock;
-- 2: our clock, which cannot have been right; 3: our clock, corrected before it was first sent.
ALTER TABLE events ADD COLUMN clock INTEGER NOT NULL DEFAULT 0;

-- The boot in which an event was recorded last, the first event of it, and the latest time
-- that the clock is known to have shown before.
ALTER TABLE outbox ADD COLUMN boot INTEGER;
ALTER TABLE outbox ADD COLUMN boot_first_seq INTEGER;
ALTER TABLE outbox ADD COLUMN earlier_at INTEGER;

-- Instants that are waited for (held_until, next_attempt_at, ask_again_at) are on a time line
-- of one boot: its clock, plus this.
ALTER TABLE outbox ADD COLUMN waits_boot INTEGER;
ALTER TABLE outbox ADD COLUMN waits_offset INTEGER;

-- The machine and the path where the outbox was last delivered from, and how often it was
-- found to be a copy: where, of what, and when.
ALTER TABLE outbox ADD COLUMN machine TEXT;
ALTER TABLE outbox ADD COLUMN path TEXT;
ALTER TABLE outbox ADD COLUMN epoch INTEGER NOT NULL DEFAULT 1;
ALTER TABLE outbox ADD COLUMN copied_from TEXT;
ALTER TABLE outbox ADD COLUMN copied_at INTEGER;
