-- $1 schema, $2 table, $3 its id column: one row when there is such a table. What it is, the columns of its primary key, those by which an
-- old row is known (NULL for the whole row), those that are generated, what our role may do (whose transaction a row is of
-- is a right of its own), whether policies of
-- row-level security filter what it reads; its children by INHERITS; of its partitions those that are not logged, and
-- those whose old rows are not known by anything; whether an index gives its rows in the order of their ids.
WITH ours AS (
  SELECT pg_class.* FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
  WHERE nspname = $1::text AND relname = $2::text
),
leaf AS (
  SELECT leaf.*, format('%I.%I', nspname, leaf.relname) AS place
  FROM ours CROSS JOIN pg_partition_tree(ours.oid) JOIN pg_class AS leaf ON leaf.oid = relid
       JOIN pg_namespace ON pg_namespace.oid = leaf.relnamespace
  WHERE isleaf AND ours.relkind = 'p'
)
SELECT relreplident::text,
       ARRAY(SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = ours.oid AND attnum = ANY (indkey)
             WHERE indrelid = ours.oid AND indisprimary),
       ARRAY(SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = ours.oid AND attnum = ANY (indkey)
             WHERE indrelid = ours.oid AND indisreplident),
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = ours.oid AND attgenerated <> ''
               AND NOT attisdropped ORDER BY attnum),
       has_schema_privilege(relnamespace, 'USAGE'), has_table_privilege(oid, 'SELECT'),
       CASE WHEN relkind IN ('r', 'p') THEN has_column_privilege(oid, 'xmin', 'SELECT') ELSE true END,
       row_security_active(oid), relkind::text, relpersistence = 'u',
       ARRAY(SELECT format('%I.%I', nspname, child.relname)
             FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid JOIN pg_namespace ON pg_namespace.oid = child.relnamespace
             WHERE inhparent = ours.oid AND NOT child.relispartition ORDER BY 1),
       ARRAY(SELECT place FROM leaf WHERE relpersistence = 'u' OR relkind = 'f' ORDER BY 1),
       ARRAY(SELECT place FROM leaf
             WHERE relreplident = 'n'
                OR relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = leaf.oid AND indisprimary)
             ORDER BY 1),
       EXISTS (SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
                 JOIN pg_class AS index ON index.oid = indexrelid JOIN pg_am ON pg_am.oid = index.relam
               WHERE indrelid = ours.oid AND indisvalid AND indpred IS NULL AND attname = $3::text AND amname = 'btree')
FROM ours
