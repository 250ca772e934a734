//! What the follower tells the server while both run: the new operations, for stream clients
//! ([`Feed`]), how fresh the store is ([`Status`]), and how it stands with each upstream ([`Upstreams`]).
//!
//! Both are told after a commit, never before: whoever hears of an operation here finds it in
//! the store.

mod feed;
mod pace;
mod status;
mod upstreams;

pub use feed::{Committing, Feed, Lagged, Message, Subscription};
pub use pace::Outlook;
pub use status::{Mode, Status};
pub use upstreams::{Standing, UpstreamReport, Upstreams};
