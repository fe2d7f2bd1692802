-- $1 schemas, $2 names of the source tables: what `walcast init` may make here. Whether our role may make a schema or a
-- publication in the database; of the schema walcast whether it is there, whether things may be made in it, and which of
-- its tables are another role's; of the source tables which are there, and which of these are another role's; the schemas
-- of those that are not there in which none may be made. Looked up by name in the catalog: to_regclass() fails in a schema
-- that our role may not use.
WITH wanted AS (SELECT schema, name FROM unnest($1::text[], $2::text[]) AS wanted (schema, name)),
there AS (
  SELECT schema, name, pg_has_role(relowner, 'USAGE') AS ours
  FROM wanted JOIN pg_namespace ON nspname = schema JOIN pg_class ON relnamespace = pg_namespace.oid AND relname = name
)
SELECT has_database_privilege(current_database(), 'CREATE'),
       (SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')
        FROM pg_namespace WHERE nspname = 'walcast'),
       ARRAY(SELECT format('%I.%I', nspname, relname)
             FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
             WHERE nspname = 'walcast' AND relkind IN ('r', 'p') AND NOT pg_has_role(relowner, 'USAGE') ORDER BY 1),
       ARRAY(SELECT name::text FROM there),
       (SELECT count(*) FROM there WHERE NOT ours),
       ARRAY(SELECT DISTINCT schema
             FROM wanted JOIN pg_namespace ON nspname = schema
             WHERE NOT EXISTS (SELECT FROM there WHERE there.schema = wanted.schema AND there.name = wanted.name)
               AND NOT (has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')))
