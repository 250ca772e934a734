//! Integration tests, one binary with a module a theme.

mod replica;
mod serve;
mod serve_stream;
mod shared;
mod stories;
mod vectors;
