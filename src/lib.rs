//! An independent, verifying replica of the PLC directory.
//!
//! ```text
//! upstream ──pages──▶ decode ──▶ verify ──▶ store ──▶ serve
//!  /export            (pure)     (pure)      one tx     HTTP, WebSocket, HTML
//!  /export/stream                                 └──▶ audit (against upstream and peers)
//!  archives
//! ```
//!
//! The modules stand in the order of the flow; each may use those before it, never those after,
//! which a test makes sure of. `docs/ARCHITECTURE.md` says more.

// What comes from outside ends in an error, never in a panic. Tests may.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod blocking;

pub mod clock;

pub mod escape;

pub mod words;

pub mod snapshot;

pub mod upstream;

pub mod store;

pub mod metrics;

pub mod judge;

pub mod live;

pub mod reads;

pub mod follow;

pub mod audit;

pub mod publish;

pub mod table;

pub mod serve;

pub mod commands;
