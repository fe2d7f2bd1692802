-- $1 a request's name, $2 the 32 bits of a transaction's id. Whether that has ended in this snapshot; and the request, where
-- that very transaction has inserted it. Of a transaction that has committed, the full id is the one that lies nearest to the
-- snapshot's end.
WITH now AS MATERIALIZED (
  SELECT pg_current_snapshot() AS snapshot, pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax
), ticket AS (
  SELECT snapshot, (xmax + (($2 - xmax) % 4294967296 + 4294967296 + 2147483648) % 4294967296 - 2147483648) AS xid FROM now
)
SELECT ticket.xid >= 0 AND pg_visible_in_snapshot(greatest(ticket.xid, 0)::text::xid8, ticket.snapshot),
  request.kind, request.sinks, request.rows
FROM ticket LEFT JOIN walcast.request ON request.id = $1 AND request.xid = greatest(ticket.xid, 0)::text::xid8
