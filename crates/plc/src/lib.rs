#![doc = include_str!("../README.md")]
//!
//! # How it fits together
//!
//! A JSON line becomes an [`entry::Received`], and its operation the signed DAG-CBOR bytes that
//! everything else works on ([`json`]); [`Operation`] reads those bytes; a [`Chain`] judges an
//! operation against the history of its identity, asking a [`signature::Verifier`] about the
//! signature; [`History`] puts a whole log in its places; [`document`] and [`json`] write the
//! answers of the directory from the same bytes.
//!
//! Time is always an argument: it is the directory's statement of when it accepted an operation.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
// What comes from outside ends in an error, never in a panic. Tests may.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod base32;
mod base58;
pub mod cbor;
pub mod chain;
pub mod change;
pub mod cid;
pub mod claim;
pub mod did;
pub mod document;
pub mod entry;
pub mod history;
mod javascript;
pub mod json;
pub mod key;
mod malformed;
pub mod operation;
pub mod order;
pub mod refusal;
pub mod sequence;
pub mod signature;
pub mod submission;
pub mod timestamp;
mod x_coordinate;

pub use chain::{Acceptance, Chain, Verdict};
pub use change::Change;
pub use cid::Cid;
pub use did::Did;
pub use history::History;
pub use operation::Operation;
pub use refusal::Refusal;
pub use timestamp::Timestamp;
