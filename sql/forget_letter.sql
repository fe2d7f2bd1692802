-- Of which letters, says who uses it. Their rows are forgotten, and what a target said of them, which may quote the row. That
-- there were such rows stays, for `walcast verify`.
UPDATE walcast.dead_letter AS letter
SET record = NULL, event = NULL, repair = CASE WHEN repair IS NOT NULL THEN '{}'::json END,
  message = CASE WHEN starts_with(reason, 'refused_by_') THEN '' ELSE message END,
  state = CASE state WHEN 'open' THEN 'discarded' ELSE state END, changed_at = now()
