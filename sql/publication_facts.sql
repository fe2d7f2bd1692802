-- $1 the publication's name: one row, NULL columns at the end when it has no table. Row filters and column
-- lists are there from version 15, and NULL before by way of JSON.
SELECT publication.oid, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,
       published.schemaname::text, published.tablename::text,
       (SELECT array_agg(name) FROM jsonb_array_elements_text(to_jsonb(published) -> 'attnames') AS name),
       to_jsonb(published) ->> 'rowfilter',
       (SELECT entry.oid FROM pg_publication_rel AS entry
        WHERE prpubid = publication.oid AND prrelid = to_regclass(format('%I.%I', schemaname, tablename)))
FROM pg_publication AS publication
LEFT JOIN pg_publication_tables AS published USING (pubname)
WHERE pubname = $1
ORDER BY schemaname, tablename
