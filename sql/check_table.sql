-- $1 schema, $2 table: one row when there is such a table. The columns of the primary key, those by which an old row
-- is known (NULL for the whole row), those that are generated, what our role may do, and
-- whether policies of row-level security filter what it reads.
SELECT relreplident::text,
       ARRAY(SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = pg_class.oid AND attnum = ANY (indkey)
             WHERE indrelid = pg_class.oid AND indisprimary),
       ARRAY(SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = pg_class.oid AND attnum = ANY (indkey)
             WHERE indrelid = pg_class.oid AND indisreplident),
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = pg_class.oid AND attgenerated <> ''
               AND NOT attisdropped ORDER BY attnum),
       has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'SELECT'),
       row_security_active(oid)
FROM pg_class
WHERE oid = to_regclass(format('%I.%I', $1::text, $2::text))
