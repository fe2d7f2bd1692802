-- Run under the slot's exported snapshot: what was there before the stream is version 0/0#0. $1 the history id.
-- What the stream would not bring, or refuse, is left out.
INSERT INTO walcast.content_version (history_id, content_id, commit_lsn, ordinal, deleted, {stored})
SELECT $1, {id}, '0/0', 0, false, {read}
FROM {table}{only}
