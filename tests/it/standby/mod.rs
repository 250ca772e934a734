//! A primary and hot standbys of it, as servers of their own.

mod servers;
