-- The two tables and what is published of them, by what pg_upgrade keeps: a dump that is restored gives tables other OIDs.
SELECT concat_ws(' ', to_regclass($2)::oid, to_regclass($3)::oid, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot)
FROM pg_publication WHERE pubname = $1
