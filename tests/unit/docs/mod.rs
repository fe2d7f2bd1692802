//! The documentation: the reference is what the code says, every link leads somewhere, and what is named exists.
//!
//! `UPDATE_REFERENCE=1` writes the pages of `docs/reference` that are made from the code; `make docs` does that first.

mod links;
mod names;
mod pages;
mod reference;
