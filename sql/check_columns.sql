-- $1 schema, $2 table: its columns with their types; of a domain the type that it is made of.
WITH RECURSIVE typed AS (
  SELECT attnum, attname::text AS name, atttypid AS type FROM pg_attribute
  WHERE attrelid = to_regclass(format('%I.%I', $1::text, $2::text)) AND attnum > 0 AND NOT attisdropped
  UNION ALL
  SELECT attnum, name, typbasetype FROM typed JOIN pg_type ON oid = type WHERE typbasetype <> 0
)
SELECT name, type FROM typed JOIN pg_type ON oid = type WHERE typbasetype = 0 ORDER BY attnum
