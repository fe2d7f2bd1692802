-- synchronized_standby_slots is there from version 17. With each, whether such a slot exists.
SELECT name, EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = name)
FROM (SELECT trim(BOTH ' "' FROM word) AS name
      FROM string_to_table(current_setting('synchronized_standby_slots', true), ',') AS word) AS wanted
WHERE name <> ''
  AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = name AND active AND slot_type = 'physical')
