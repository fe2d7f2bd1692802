//! The `pgoutput` plugin's messages.
