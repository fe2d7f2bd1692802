//! Records by hash partition in one file on disk: what of each side is looked at together fits into memory,
//! however many events there are.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::record::{Extras, Record};
use crate::error::{Code, Error, Result};

/// About how many bytes of one partition wait in memory to be written together: so many whole records that it is no less.
const BLOCK_BYTES: usize = 4 << 10;

/// The records of one side.
pub struct Spill {
    file: File,
    /// How many blocks have been written, each of [`Spill::block_bytes`].
    blocks: u32,
    extras: Arc<Extras>,
    partitions: Vec<Partition>,
}

#[derive(Default)]
struct Partition {
    waiting: Vec<u8>,
    /// Which of the file's blocks are its own: a number each, as there are hundreds of thousands.
    blocks: Vec<u32>,
}

impl Spill {
    /// An empty one. The file is nobody else's to open, and has no name from the start: it is gone when this process is.
    pub fn new(folder: &Path, partitions: usize, extras: &Arc<Extras>) -> Result<Spill> {
        let path = folder.join(format!("walcast-verify-{}", Uuid::new_v4()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        let partitions = (0..partitions.max(1)).map(|_| Partition::default()).collect();
        Ok(Spill { file, blocks: 0, extras: Arc::clone(extras), partitions })
    }

    /// Adds a record.
    pub fn add(&mut self, record: &Record) -> Result<()> {
        let at =
            ((record.id as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize % self.partitions.len();
        let block_bytes = self.block_bytes();
        let Some(partition) = self.partitions.get_mut(at) else { return Ok(()) };
        // there may be thousands of these: none is larger than it is to be
        if partition.waiting.capacity() == 0 {
            partition.waiting.reserve_exact(block_bytes);
        }
        record.write(&self.extras, &mut partition.waiting);
        if partition.waiting.len() < block_bytes {
            return Ok(());
        }
        self.file.write_all(&partition.waiting).map_err(failed)?;
        partition.blocks.push(self.blocks);
        self.blocks += 1;
        partition.waiting.clear();
        Ok(())
    }

    fn block_bytes(&self) -> usize {
        BLOCK_BYTES.next_multiple_of(self.extras.record_bytes())
    }

    /// The extra columns that its records have.
    pub fn extras(&self) -> &Arc<Extras> {
        &self.extras
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// All records of one partition, by id.
    pub fn partition(&mut self, at: usize) -> Result<Vec<Record>> {
        let block_bytes = self.block_bytes();
        let Some(partition) = self.partitions.get_mut(at) else { return Ok(Vec::new()) };
        let (waiting, blocks) =
            (std::mem::take(&mut partition.waiting), std::mem::take(&mut partition.blocks));
        let bytes = blocks.len() * block_bytes + waiting.len();
        // once, and no more than that: with all sides it is the most that is held at once
        let mut records = Vec::with_capacity(bytes / self.extras.record_bytes());
        let mut take = |bytes: &[u8]| {
            let each = bytes.chunks_exact(self.extras.record_bytes());
            records.extend(each.filter_map(|bytes| Record::read(bytes, &self.extras)));
        };
        take(&waiting);
        let mut block = vec![0; block_bytes];
        for number in blocks {
            self.file.seek(SeekFrom::Start(u64::from(number) * block_bytes as u64)).map_err(failed)?;
            self.file.read_exact(&mut block).map_err(failed)?;
            take(&block);
        }
        records.sort_by_key(|record| record.id);
        Ok(records)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::new(Code::Prerequisite, "the temporary file for the comparison cannot be written or read")
        .because(error)
        .hint("it needs about 120 bytes for each event and side; name a folder with --temp-dir")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::{Lsn, Position};

    #[test]
    fn the_file_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let spill = Spill::new(&std::env::temp_dir(), 1, &Arc::default()).unwrap();
        assert_eq!(spill.file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn all_records_come_back_each_in_one_partition() {
        let mut spill = Spill::new(&std::env::temp_dir(), 3, &Arc::default()).unwrap();
        for id in (-5_000..5_000).rev() {
            spill.add(&Record::new(id, Position { commit_lsn: Lsn(9), ordinal: 0 }, 0)).unwrap();
        }
        let partitions: Vec<Vec<Record>> = (0..3).map(|at| spill.partition(at).unwrap()).collect();
        let mut ids: Vec<i64> = partitions.iter().flatten().map(|record| record.id).collect();
        assert!(partitions.iter().all(|records| records.is_sorted_by_key(|record| record.id)));
        ids.sort_unstable();
        assert_eq!(ids, (-5_000..5_000).collect::<Vec<_>>());
    }
}
