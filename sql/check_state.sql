-- How many tables walcast's own schema has, and whether our role may do with all of them what walcast does; whether
-- one of them says which migrations were made.
SELECT count(*),
       coalesce(bool_and(has_schema_privilege(nspname, 'USAGE') AND has_table_privilege(pg_class.oid, 'SELECT')
         AND (relname = 'migration'
              OR has_table_privilege(pg_class.oid, 'INSERT') AND has_table_privilege(pg_class.oid, 'UPDATE')
                 AND has_table_privilege(pg_class.oid, 'DELETE'))), false),
       coalesce(bool_or(relname = 'migration'), false)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = 'walcast' AND relkind IN ('r', 'p')
