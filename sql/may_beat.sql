-- Whether the role may write logical messages with a text, in whatever form this version has the function.
SELECT coalesce(bool_or(has_function_privilege(oid, 'EXECUTE')), false)
FROM pg_proc
WHERE proname = 'pg_logical_emit_message' AND proargtypes[2] = 'text'::regtype
