//! Integration tests, one binary with a module a theme.

mod shared;
mod stories;
mod vectors;
