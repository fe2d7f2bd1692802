//! A place in walcast where it waits until a test lets it go.

use std::path::PathBuf;

use super::{fresh_name, wait_until};

/// A file; a failpoint waits for as long as it is there. Gone when dropped.
pub struct Hold(PathBuf);

impl Hold {
    /// Holds nobody yet.
    pub fn open() -> Hold {
        Hold(std::env::temp_dir().join(fresh_name("walcast-hold")))
    }

    /// Holds whoever comes to it from now on.
    pub fn closed() -> Hold {
        let hold = Hold::open();
        hold.close();
        hold
    }

    /// What `FAILPOINTS` must have for walcast to wait here.
    pub fn at(&self, failpoint: &str) -> String {
        format!("{failpoint}=return({})", self.0.display())
    }

    /// Holds whoever comes to it from now on.
    pub fn close(&self) {
        std::fs::write(&self.0, "").unwrap();
    }

    /// Lets all go.
    pub fn release(&self) {
        std::fs::remove_file(&self.0).unwrap();
    }

    /// Returns when somebody waits.
    pub async fn reached(&self) {
        let mark = self.mark();
        wait_until("a held place is reached", async || mark.exists()).await;
    }

    fn mark(&self) -> PathBuf {
        format!("{}.reached", self.0.display()).into()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file(self.mark());
    }
}
