-- $1 schema, $2 table: its columns with their types, of a domain the type that it is made of; whether our role may
-- read each; whether its values are texts, labels of an enum, or arrays. By name in the catalog: to_regclass() fails in a schema that our role may not use.
WITH RECURSIVE typed AS (
  SELECT attrelid, attnum, attname::text AS name, atttypid AS type
  FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
  WHERE nspname = $1::text AND relname = $2::text AND attnum > 0 AND NOT attisdropped
  UNION ALL
  SELECT attrelid, attnum, name, typbasetype FROM typed JOIN pg_type ON oid = type WHERE typbasetype <> 0
)
SELECT name, type, has_column_privilege(attrelid, attnum, 'SELECT'), typcategory IN ('S', 'E', 'A')
FROM typed JOIN pg_type ON oid = type WHERE typbasetype = 0 ORDER BY attnum
