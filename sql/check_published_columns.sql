-- $1 schemas, $2 names of the source tables: of each that is there its columns that can be published; and those by which its
-- rows, or its partitions', are known, NULL where a publication cannot bring some columns only: before PostgreSQL 15, and
-- where the whole row is what it is known by, since every UPDATE would be refused then.
WITH there AS (
  SELECT schema, name, pg_class.oid AS root
  FROM unnest($1::text[], $2::text[]) AS wanted (schema, name)
       JOIN pg_namespace ON nspname = schema JOIN pg_class ON relnamespace = pg_namespace.oid AND relname = name
),
tree AS (
  SELECT root, root AS relid FROM there
  UNION
  SELECT root, relid::oid FROM there CROSS JOIN pg_partition_tree(root)
),
known AS (
  SELECT root, bool_or(relreplident = 'f') AS whole, array_remove(array_agg(DISTINCT attname::text), NULL) AS columns
  FROM tree JOIN pg_class ON pg_class.oid = relid
       LEFT JOIN pg_index ON indrelid = relid
         AND CASE relreplident WHEN 'd' THEN indisprimary WHEN 'i' THEN indisreplident ELSE false END
       LEFT JOIN pg_attribute ON attrelid = relid AND attnum = ANY (indkey)
  GROUP BY root
)
SELECT schema, name,
       ARRAY(SELECT attname::text FROM pg_attribute
             WHERE attrelid = root AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum),
       CASE WHEN current_setting('server_version_num')::int >= 150000 AND NOT whole THEN columns END
FROM there JOIN known USING (root)
