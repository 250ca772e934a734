//! Integration tests, one binary with a module a theme.

mod fake_upstream;
mod shared;
mod stories;
mod upstream;
mod vectors;
