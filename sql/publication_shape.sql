-- What a publication publishes, by what pg_upgrade keeps: names, and the tables' OIDs. A dump that is restored gives them others.
SELECT concat_ws(E'\n',
  (SELECT concat(pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot) FROM pg_publication WHERE pubname = $1),
  (SELECT string_agg(concat_ws(' ', c.oid, t.schemaname, t.tablename, to_jsonb(t) -> 'attnames', to_jsonb(t) -> 'rowfilter'), E'\n'
            ORDER BY c.oid)
     FROM pg_publication_tables t
     JOIN pg_namespace n ON n.nspname = t.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
     WHERE t.pubname = $1))
