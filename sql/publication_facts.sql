-- $1 the publication's name: one row, NULL columns at the end when it has no table. Row filters and column
-- lists are there from version 15, and NULL before by way of JSON. Last the partitioned tables whose partitions it has.
SELECT publication.oid, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,
       published.schemaname::text, published.tablename::text,
       CASE WHEN to_jsonb(entry) ->> 'prattrs' IS NOT NULL THEN
         (SELECT array_agg(name) FROM jsonb_array_elements_text(to_jsonb(published) -> 'attnames') AS name) END,
       to_jsonb(published) ->> 'rowfilter',
       entry.oid, puballtables,
       ARRAY(SELECT nspname || '.' || relname
             FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
             WHERE relkind = 'p' AND NOT pubviaroot
               AND (pg_class.oid IN (SELECT prrelid FROM pg_publication_rel WHERE prpubid = publication.oid)
                    OR pg_class.oid IN (SELECT pg_partition_root(to_regclass(quote_ident(schemaname) || '.' || quote_ident(tablename)))
                                        FROM pg_publication_tables WHERE pubname = $1)))
FROM pg_publication AS publication
LEFT JOIN pg_publication_tables AS published USING (pubname)
LEFT JOIN pg_publication_rel AS entry
  ON prpubid = publication.oid AND prrelid = to_regclass(quote_ident(schemaname) || '.' || quote_ident(tablename))
WHERE pubname = $1
ORDER BY schemaname, tablename
