-- $1 the history id, then arrays of kinds, blocks and ids; marks that are there stay.
INSERT INTO walcast.event_mark (history_id, kind, block, ids)
SELECT $1, kind, block, ids FROM unnest($2::text[], $3::bigint[], $4::varbit[]) AS mark (kind, block, ids)
ON CONFLICT (history_id, kind, block) DO UPDATE SET ids = event_mark.ids | excluded.ids
