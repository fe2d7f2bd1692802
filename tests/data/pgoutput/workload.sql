-- What is recorded: each statement or BEGIN block is a transaction. The text of every value is fixed, so that
-- recordings differ in LSNs, OIDs, transaction ids and commit times alone.

-- Inserts: several rows a statement, nulls, unicode.
INSERT INTO content VALUES
  ('00000000-0000-0000-0000-000000000001', 'first', 'The first', 'podcast', 1800, '2024-02-29 12:30:00.000001+00'),
  ('00000000-0000-0000-0000-000000000002', 'second', 'Żółć 🎧 “quoted” \ back', NULL, NULL, '1969-12-31 23:59:59.5+00'),
  ('00000000-0000-0000-0000-000000000003', 'third', repeat('long title ', 500), 'video', 0, '1900-01-01 00:00:00+00');
INSERT INTO engagement_events (content_id, user_id, event_type, event_ts, duration_ms, device, raw_payload) VALUES
  ('00000000-0000-0000-0000-000000000001', 'ffffffff-ffff-4fff-bfff-ffffffffffff', 'play',
   '2025-06-01 10:00:00.123456+02', 15000, 'ios', '{"session": "a", "position_ms": 0}'),
  (NULL, NULL, NULL, '2025-06-01 10:00:01+02', NULL, NULL, NULL),
  (NULL, NULL, 'click', '2025-06-01 10:00:02+02', -2147483648, '', 'null'),
  (NULL, NULL, 'finish', '2025-06-01 10:00:03+02', 2147483647, 'телефон 📱',
   jsonb_build_object('ключ', '🎧', 'escapes', E'tab\t "quote" \\ line\n', 'nested', '{"a": [1, 2.50, null, true]}'::jsonb));

-- A large jsonb, first compressed and then out of line.
INSERT INTO engagement_events (event_type, event_ts, raw_payload)
  SELECT 'pause', '2025-06-02 00:00:00+00', jsonb_agg(md5(i::text)) FROM generate_series(1, 150) AS i;

-- Every type with a reader, at its edges.
INSERT INTO samples VALUES
  (1, -32768, -9223372036854775808, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'größer', 'ab', '2025-03-30 01:59:59.999999+00',
   '{"b":  1,"a":2}', '{"b":  1,"a":2}', 'ärgerlich', 7, 'a label', 12.50, 'pg_monitor=r/pg_monitor'),
  (2, 32767, 9223372036854775807, NULL, '', '', 'infinity', 'null', '[]', 'calm', 0, '', 0, NULL),
  (3, NULL, NULL, NULL, NULL, NULL, '-infinity', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
  (4, 0, 0, NULL, NULL, NULL, '0044-03-15 12:00:00.25+00 BC', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
  (5, 0, 0, NULL, NULL, NULL, '4714-11-24 00:00:00+00 BC', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
  (6, 0, 0, NULL, NULL, NULL, '294276-12-31 12:00:00+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
  (7, 0, 0, NULL, NULL, NULL, '2000-01-01 00:00:00+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
  (8, 0, 0, NULL, NULL, NULL, '0001-12-31 23:59:59+00 BC', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO without_columns DEFAULT VALUES;
INSERT INTO append_only VALUES ('x'), (NULL);

-- What was rolled back is not sent and not counted.
BEGIN;
INSERT INTO append_only VALUES ('before the savepoint');
SAVEPOINT one;
INSERT INTO append_only VALUES ('ROLLED BACK');
INSERT INTO engagement_events (event_ts) VALUES ('1999-01-01 00:00:00+00');
ROLLBACK TO one;
INSERT INTO append_only VALUES ('after the rollback');
SAVEPOINT two;
INSERT INTO append_only VALUES ('released');
SAVEPOINT three;
INSERT INTO append_only VALUES ('ROLLED BACK');
ROLLBACK TO three;
RELEASE two;
DO $$ BEGIN
  INSERT INTO append_only VALUES ('ROLLED BACK');
  RAISE EXCEPTION 'undone';
EXCEPTION WHEN raise_exception THEN
  INSERT INTO append_only VALUES ('from the handler');
END $$;
COMMIT;
BEGIN;
INSERT INTO append_only VALUES ('ROLLED BACK');
ROLLBACK;

-- COPY, which writes several rows to a WAL record, among rows of other tables.
BEGIN;
INSERT INTO append_only VALUES ('before the copy');
COPY engagement_events (content_id, event_type, event_ts, duration_ms) FROM STDIN;
00000000-0000-0000-0000-000000000001	play	2025-07-01 00:00:00+00	1
\N	pause	2025-07-01 00:00:01+00	2
00000000-0000-0000-0000-000000000002	finish	2025-07-01 00:00:02+00	\N
00000000-0000-0000-0000-000000000001	click	2025-07-01 00:00:03+00	4
\.
UPDATE content SET length_seconds = 60 WHERE slug = 'first';
COPY append_only FROM STDIN;
copied
copied too
\.
DELETE FROM engagement_events WHERE duration_ms = 2;
COMMIT;

-- Upserts: a conflict is an update or nothing at all.
INSERT INTO samples (id, small) VALUES (1, 1), (20, 2) ON CONFLICT (id) DO UPDATE SET small = EXCLUDED.small;
INSERT INTO samples (id) VALUES (1), (21) ON CONFLICT DO NOTHING;

-- Updates that leave a TOAST value alone, one that changes it, and one of an SQL null.
UPDATE content SET length_seconds = 90 WHERE slug = 'third';
UPDATE content SET title = repeat('longer title ', 500) WHERE slug = 'third';
UPDATE content SET content_type = 'newsletter' WHERE slug = 'second';

-- A changed key brings the old key; a delete brings the key.
UPDATE content SET id = '00000000-0000-0000-0000-000000000033' WHERE slug = 'third';
UPDATE by_index SET id = 2 WHERE id = 1;
INSERT INTO by_index VALUES (1, 'one'), (3, NULL);
UPDATE by_index SET id = 2 WHERE id = 1;
UPDATE by_index SET note = 'two' WHERE id = 2;
DELETE FROM by_index WHERE id = 2;
INSERT INTO content VALUES
  ('00000000-0000-0000-0000-000000000004', 'fourth', 'Short lived', 'podcast', 1, '2024-01-01 00:00:00+00');
DELETE FROM content WHERE slug = 'fourth';

-- The same with the whole old row: its large value comes with the old row and not with the new one.
ALTER TABLE content REPLICA IDENTITY FULL;
UPDATE content SET length_seconds = 120 WHERE slug = 'third';
UPDATE content SET id = '00000000-0000-0000-0000-000000000003' WHERE slug = 'third';
DELETE FROM content WHERE slug = 'third';
ALTER TABLE content REPLICA IDENTITY DEFAULT;
UPDATE content SET length_seconds = 61 WHERE slug = 'first';

-- Columns that come and go, between the rows of one transaction too.
BEGIN;
INSERT INTO append_only VALUES ('one column');
ALTER TABLE append_only ADD COLUMN extra int DEFAULT 5;
INSERT INTO append_only VALUES ('two columns', 6);
ALTER TABLE append_only DROP COLUMN note;
INSERT INTO append_only VALUES (7);
COMMIT;
ALTER TABLE append_only RENAME COLUMN extra TO renamed;
INSERT INTO append_only VALUES (8);
ALTER TABLE append_only ALTER COLUMN renamed TYPE text USING renamed::text;
INSERT INTO append_only VALUES ('nine');

-- A transaction that came from another server.
SELECT pg_replication_origin_session_setup('recording_upstream');
BEGIN;
SELECT pg_replication_origin_xact_setup('0/ABCDEF01', '2025-01-01 00:00:00+00');
INSERT INTO append_only VALUES ('from upstream');
COMMIT;
SELECT pg_replication_origin_session_reset();

-- Logical messages: alone, within a transaction, and outside of all (sent at once, rolled back or not).
SELECT pg_logical_emit_message(true, 'walcast', 'alone');
BEGIN;
INSERT INTO append_only VALUES ('before the message');
SELECT pg_logical_emit_message(true, 'walcast', 'within');
SELECT pg_logical_emit_message(false, 'other', 'at once');
INSERT INTO append_only VALUES ('after the message');
COMMIT;
BEGIN;
INSERT INTO append_only VALUES ('ROLLED BACK');
SELECT pg_logical_emit_message(true, 'walcast', 'ROLLED BACK');
SELECT pg_logical_emit_message(false, '', '\x00ff'::bytea);
ROLLBACK;

-- Nothing published: version 14 sends an empty transaction, later ones nothing.
INSERT INTO unpublished VALUES (1);

-- Truncates: of one table, and of two by CASCADE and by name.
TRUNCATE engagement_events RESTART IDENTITY;
INSERT INTO engagement_events (event_ts) VALUES ('2025-08-01 00:00:00+00');
BEGIN;
INSERT INTO append_only VALUES ('before the truncate');
TRUNCATE content CASCADE;
INSERT INTO content VALUES
  ('00000000-0000-0000-0000-000000000005', 'fifth', 'After the truncate', NULL, 300, '2025-08-01 00:00:00+00');
COMMIT;
TRUNCATE by_index, samples, unpublished RESTART IDENTITY CASCADE;
