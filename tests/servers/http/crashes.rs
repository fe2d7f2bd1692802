//! kill -9 where it hurts.
