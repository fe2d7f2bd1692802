//! Named places where the crash tests end the process, as `kill -9` would: no destructor runs, no socket is
//! closed in good order. In a build without the feature `failpoints` there is nothing left of them.

/// Ends the process here when `FAILPOINTS` has an action `return` for this name, such as
/// `kafka_before_commit=20*off->return`, which lets twenty passes go by.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        let _: Option<()> = fail::eval($name, |_| std::process::abort());
    };
}

pub(crate) use failpoint;
