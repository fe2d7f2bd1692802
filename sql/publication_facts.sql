-- $1 the publication's name: one row, NULL columns at the end when it has no table. Row filters and column
-- lists are there from version 15, and NULL before by way of JSON. Behind them the partitioned tables whose partitions it has,
-- schemas, names and entries of the tables that it leaves out, and whether it has all sequences.
-- From version 19 on a table that the publication leaves out (EXCEPT) has an entry in pg_publication_rel too.
-- Tables are looked up in the catalog: to_regclass() fails in a schema that our role may not use.
WITH placed AS (
  SELECT published.*, pg_class.oid AS place
  FROM pg_publication_tables AS published
       JOIN pg_namespace ON nspname = schemaname
       JOIN pg_class ON relnamespace = pg_namespace.oid AND relname = tablename
  WHERE pubname = $1
), left_out AS (
  SELECT nspname AS schema, relname AS name, pg_class.oid AS place, named.oid AS entry
  FROM pg_publication_rel AS named
       JOIN pg_publication ON pg_publication.oid = prpubid
       JOIN pg_class ON pg_class.oid = prrelid
       JOIN pg_namespace ON pg_namespace.oid = relnamespace
  WHERE pubname = $1 AND to_jsonb(named) ->> 'prexcept' = 'true'
)
SELECT publication.oid, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,
       published.schemaname::text, published.tablename::text,
       CASE WHEN to_jsonb(entry) ->> 'prattrs' IS NOT NULL THEN
         (SELECT array_agg(name) FROM jsonb_array_elements_text(to_jsonb(published) -> 'attnames') AS name) END,
       to_jsonb(published) ->> 'rowfilter',
       entry.oid, puballtables,
       ARRAY(SELECT nspname || '.' || relname
             FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
             WHERE relkind = 'p' AND NOT pubviaroot
               AND (pg_class.oid IN (SELECT prrelid FROM pg_publication_rel AS named WHERE prpubid = publication.oid
                                     AND coalesce(to_jsonb(named) ->> 'prexcept', 'false') = 'false')
                    OR pg_class.oid IN (SELECT pg_partition_root(place) FROM placed))),
       ARRAY(SELECT left_out.schema::text FROM left_out ORDER BY place),
       ARRAY(SELECT left_out.name::text FROM left_out ORDER BY place),
       ARRAY(SELECT left_out.entry FROM left_out ORDER BY place),
       coalesce((to_jsonb(publication) ->> 'puballsequences')::boolean, false)
FROM pg_publication AS publication
LEFT JOIN placed AS published USING (pubname)
LEFT JOIN pg_publication_rel AS entry
  ON prpubid = publication.oid AND prrelid = place
WHERE pubname = $1
ORDER BY schemaname, tablename
