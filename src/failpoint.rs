//! Named places where the crash tests end the process, as `kill -9` would (no destructor runs, no socket is closed in
//! good order), or hold it up. In a build without the feature `failpoints` there is nothing left of them.

/// Ends the process here when `FAILPOINTS` has an action `return` for this name, such as
/// `kafka_before_commit=20*off->return`, which lets twenty passes go by. `return(FILE)` waits instead for as long as
/// there is such a file, and makes `FILE.reached` to tell that it does. Outside of async functions it is
/// `failpoint!("name", blocking)`.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        if let Some(file) = $crate::failpoint::reached($name) {
            while $crate::failpoint::is_held(&file) {
                tokio::time::sleep($crate::failpoint::LOOK_EVERY).await;
            }
        }
    };
    ($name:literal, blocking) => {
        #[cfg(feature = "failpoints")]
        if let Some(file) = $crate::failpoint::reached($name) {
            while $crate::failpoint::is_held(&file) {
                std::thread::sleep($crate::failpoint::LOOK_EVERY);
            }
        }
    };
}

pub(crate) use failpoint;

#[cfg(feature = "failpoints")]
pub(crate) use when_on::{LOOK_EVERY, is_held, reached};

#[cfg(feature = "failpoints")]
mod when_on {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    /// How often a held place looks for its file.
    pub const LOOK_EVERY: Duration = Duration::from_millis(5);

    /// The file that this place is to wait for, if any.
    pub fn reached(name: &str) -> Option<PathBuf> {
        match fail::eval(name, |file| file)? {
            Some(file) => Some(file.into()),
            None => std::process::abort(),
        }
    }

    /// Whether to wait on; tells whoever made the file that somebody does.
    pub fn is_held(file: &Path) -> bool {
        let held = file.exists();
        if held {
            // a test that does not hear of it fails by itself
            let _ = std::fs::write(format!("{}.reached", file.display()), "");
        }
        held
    }
}
