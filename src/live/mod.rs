//! What the server is told while it serves: the new operations, for stream clients ([`Feed`]), how fresh the store is
//! ([`Status`]), and how it stands with each upstream ([`Upstreams`]).
//!
//! The follower tells what it knows itself. What was committed, by whichever process, is read back from the store ([`tell`]):
//! whoever hears of an operation here finds it in the store.

mod feed;
mod pace;
mod status;
mod teller;
mod upstreams;

pub use feed::{Feed, Lagged, Looking, Message, Subscription};
pub use pace::Outlook;
pub use status::{Mode, Role, Status};
pub use teller::tell;
pub use upstreams::{Standing, UpstreamReport, Upstreams};
