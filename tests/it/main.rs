//! Integration tests, one binary with a module a theme.

mod alerts;
mod audit;
mod audit_command;
mod claims;
mod command_line;
mod contract;
mod crash;
mod explorer;
mod export;
mod follow;
mod limits;
mod logs;
mod ops;
mod postgres;
mod process;
mod replica;
mod resolution;
mod serve;
mod serve_stream;
mod shared;
mod skip;
mod sql;
mod stories;
mod tls;
mod upstream;
mod vectors;
