-- Every event as PostgreSQL has it, for verify and rebuild. Times in microseconds since 1970; NULL outside the years
-- 1 to 9999.
SELECT xmin, id::bigint, content_id::uuid, user_id::uuid, event_type::text,
  CASE WHEN event_ts >= '0001-01-01 00:00:00+00' AND event_ts < '10000-01-01 00:00:00+00'
       THEN (EXTRACT(EPOCH FROM event_ts) * 1000000)::bigint END,
  duration_ms::bigint, device::text, raw_payload::text
FROM {schema}.engagement_events
