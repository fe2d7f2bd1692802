-- A backfill that fills a sink anew: its target is emptied, and all rows of the events table are brought to it but for those that
-- the stream brings after the place `begins`.
--   asked    the sink is to stop
--   stopped  it has stopped, and a slot of its own keeps what follows
--   marked   from `begins` on the ids of the rows that the stream brings are noted in walcast.event_mark as 'since'
--   emptied  its target holds nothing but the checkpoint `begins`, and rows are brought
ALTER TABLE walcast.backfill
  ADD COLUMN rebuild TEXT CHECK (rebuild IN ('asked', 'stopped', 'marked', 'emptied')),
  ADD COLUMN begins JSONB,              -- a checkpoint
  ADD COLUMN begins_xid XID8;           -- all that had committed by then has a lower one
ALTER TABLE walcast.event_mark DROP CONSTRAINT event_mark_kind_check;
ALTER TABLE walcast.event_mark ADD CONSTRAINT event_mark_kind_check
  CHECK (kind IN ('late', 'touched', 'renamed', 'since'));
