-- Pruning looks at the versions that have come since it last looked.
CREATE INDEX content_version_commit_lsn ON walcast.content_version (epoch, commit_lsn);
