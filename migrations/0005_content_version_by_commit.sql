-- Pruning looks at the versions that have come since it last looked; those of the slot's snapshot stand at 0/0.
CREATE INDEX content_version_commit_lsn ON walcast.content_version (epoch, commit_lsn) WHERE commit_lsn > '0/0';
