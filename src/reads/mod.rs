//! Which database answers a read, and how fresh that is.
//!
//! ```text
//! request ──▶ Picture ──▶ a hot standby that keeps up ──▶ another one ──▶ the primary ──▶ one that is behind
//!             freshness                    (where one goes away, or cannot answer)
//! ```
//!
//! What only reads is asked of a [`Picture`], which knows how fresh what it is told will be: what it states was replayed
//! where it reads. A task for each standby looks ten times a second how far that has replayed, and one whether the primary has
//! fallen silent ([`watch`]): who waits for it then asks a standby. Without standbys it is the one database.
//!
//! What judges and follows reads from the primary itself, and so does whatever joins what is read to what is told of
//! commits, such as the stream: on a standby there may be something missing in between.

mod freshness;
mod picture;
mod primary;
mod standby;
mod trail;
mod watch;

pub use self::freshness::Freshness;
pub use self::picture::{Picture, Reads};
pub use self::watch::watch;
