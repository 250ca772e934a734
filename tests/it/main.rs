//! Integration tests, one binary with a module a theme.

mod shared;
mod vectors;
