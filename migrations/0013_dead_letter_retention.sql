-- The rows of dead letters are kept for a while only: their names and reasons stay.
CREATE INDEX dead_letter_kept ON walcast.dead_letter (created_at) WHERE record IS NOT NULL;
