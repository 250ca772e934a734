//! The store on a Postgres server.
//!
//! Connections come from several pools, and each is made when it is first needed and again after it has
//! broken: for those that write, for what ingest asks before it judges, for lookups, which are gathered
//! into common queries, for what commits tell clients of the stream, and for pages and all other reads, so that none of
//! these waits for another. A hot standby of the server has such a store too, of which only what reads is used.

mod changes;
mod claims;
mod commit;
mod divergences;
mod error;
mod expect;
mod gather;
mod hanging;
mod imported;
mod insert;
mod lease;
mod lookup;
mod migrations;
mod news;
mod open;
mod pool;
mod presence;
mod read;
mod refusals;
mod rewrite;
mod rows;
mod server;
mod standby;
mod statistics;
mod strings;
mod tables;
#[cfg(test)]
mod tests;
mod unsettled;
mod writer;

pub use self::changes::Changes;
pub use self::open::Postgres;
pub use self::presence::Presence;
pub use self::standby::{Replayed, Standby};
pub(super) use self::writer::LEASE;
