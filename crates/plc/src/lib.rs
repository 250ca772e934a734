//! The rules of did:plc, pure: no I/O, no async, no clock (time is an argument).
//!
//! A JSON line becomes an [`entry::Entry`] and its operation the signed DAG-CBOR bytes that
//! everything else works on ([`json`]); [`operation::Operation`] reads those bytes;
//! [`chain::Chain`] judges an operation against the history of its identity, asking a
//! [`signature::Verifier`] about signatures; [`document`] and [`json`] write the answers of the
//! directory from the same bytes.
//!
//! Nothing here knows of a database or a server, so that a second program could take this folder
//! as it is.

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
pub mod json;
pub mod key;
mod malformed;
pub mod operation;
pub mod refusal;
pub mod signature;
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
