-- $1 history; $2 schema and $3 name of the events table: the extra columns that are there still as they were when events
-- began to have them, with the first such event.
SELECT name, since_lsn, since_ordinal
FROM walcast.extra_column
JOIN pg_attribute ON attname::text = name AND pg_attribute.attnum = extra_column.attnum AND NOT attisdropped
JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE history_id = $1 AND nspname = $2::text AND relname = $3::text
ORDER BY name
