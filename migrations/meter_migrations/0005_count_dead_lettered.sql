-- How many events ever became dead letters here, those that were replayed or purged since included:
-- a total that never falls, for those who watch. `dead_events` is how many there are.

ALTER TABLE outbox ADD COLUMN dead_lettered_events INTEGER NOT NULL DEFAULT 0;

-- Those of before that have gone are not known of any more.
UPDATE outbox SET dead_lettered_events = dead_events;
