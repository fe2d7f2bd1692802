-- A lane that kept more WAL than it may is 'given_up': its slot is not needed any more, and what only that had is gone.
ALTER TABLE walcast.lane DROP CONSTRAINT lane_state_check;
ALTER TABLE walcast.lane ADD CONSTRAINT lane_state_check CHECK (state IN ('opening', 'open', 'given_up'));
