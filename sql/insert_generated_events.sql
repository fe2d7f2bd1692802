INSERT INTO engagement_events (content_id, user_id, event_type, event_ts, duration_ms, device, raw_payload)
SELECT content_id, user_id, event_type, event_ts, duration_ms, device, raw_payload::jsonb
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[], $5::int[], $6::text[], $7::text[])
  AS event (content_id, user_id, event_type, event_ts, duration_ms, device, raw_payload)
