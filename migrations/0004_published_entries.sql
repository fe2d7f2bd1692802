-- The publication's entries for the two tables, content first: others than the catalog's = a table was taken out
-- and put back. NULL: not known, of an epoch made before this migration.
ALTER TABLE walcast.epoch ADD COLUMN published_entries OID[];
