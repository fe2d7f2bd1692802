-- The tables of the recording. content and engagement_events are the service's own (migrations/), the others
-- hold what those two cannot show.

CREATE TYPE mood AS ENUM ('calm', 'ärgerlich');
CREATE DOMAIN percent AS int4 CHECK (VALUE BETWEEN 0 AND 100);
CREATE DOMAIN label AS varchar(20);
CREATE DOMAIN price AS numeric(10, 2);

-- One column of each type with a reader, and some without. aclitem has no binary form: it comes as text in a
-- row whose other values are binary. A generated column is not published.
CREATE TABLE samples (
  id int PRIMARY KEY,
  small int2,
  big int8,
  uid uuid,
  "Größe" varchar(10),
  code char(4),
  moment timestamptz,
  doc json,
  docb jsonb,
  feeling mood,
  share percent,
  tag label,
  cost price,
  grant_item aclitem,
  doubled int GENERATED ALWAYS AS (small * 2) STORED
);
CREATE TABLE by_index (id int NOT NULL, note text);
CREATE UNIQUE INDEX by_index_id ON by_index (id);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id;
CREATE TABLE append_only (note text);
ALTER TABLE append_only REPLICA IDENTITY NOTHING;
CREATE TABLE without_columns ();
CREATE TABLE unpublished (id int);

-- Long titles are stored out of line, so that an update which leaves one alone does not send it.
ALTER TABLE content ALTER COLUMN title SET STORAGE EXTERNAL;

CREATE PUBLICATION recording FOR TABLE
  content, engagement_events, samples, by_index, append_only, without_columns;
