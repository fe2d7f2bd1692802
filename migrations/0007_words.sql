-- The words of the glossary. JSON that is stored already keeps its names until it is next written.
ALTER TABLE walcast.epoch RENAME TO slot;
ALTER INDEX walcast.epoch_pkey RENAME TO slot_pkey;
ALTER TABLE walcast.slot RENAME COLUMN epoch TO history_id;
ALTER TABLE walcast.slot RENAME COLUMN token TO fencing_token;
ALTER TABLE walcast.sink RENAME COLUMN epoch TO history_id;
ALTER TABLE walcast.sink RENAME COLUMN first_mark TO first_checkpoint;
ALTER TABLE walcast.progress RENAME COLUMN epoch TO history_id;
ALTER TABLE walcast.progress RENAME COLUMN mark TO checkpoint;
ALTER TABLE walcast.content_version RENAME COLUMN epoch TO history_id;
ALTER TABLE walcast.dead_letter RENAME COLUMN epoch TO history_id;
