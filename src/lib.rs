//! An independent, verifying replica of the PLC directory.
//!
//! ```text
//! upstream ──pages──▶ decode ──▶ verify ──▶ store ──▶ serve
//!  /export            (pure)     (pure)      one tx     HTTP, WebSocket, HTML
//!  /export/stream                                 └──▶ audit (against upstream and peers)
//!  dump files
//! ```
//!
//! The modules stand in the order of the flow; each may use those before it, never those after.

mod cores;
pub mod printable;

pub mod judge;
pub mod upstream;

pub mod store;

pub mod index;
pub mod live;
pub mod metrics;
pub mod sync;

pub mod audit;
pub mod serve;

pub mod fsck;
pub mod offline;

pub mod commands;
