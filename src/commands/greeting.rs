//! What a person at a terminal is told when `serve` begins.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::words::plural;

/// What it is about to do.
pub struct Greeting<'a> {
    /// Where it serves.
    pub listen: SocketAddr,
    /// The database, without a password.
    pub database: &'a str,
    /// Operations that are in it.
    pub operations: u64,
    /// Who can be followed.
    pub directories: &'a [&'a str],
    /// Whether the log was ever read to its end.
    pub caught_up: bool,
    /// Whether this process may take operations in.
    pub may_follow: bool,
}

impl Greeting<'_> {
    /// Five lines, and an empty one.
    pub fn lines(&self) -> String {
        let mut lines = format!(
            "plc-replica {} answers at http://{}/ (open it in a browser)\n",
            env!("CARGO_PKG_VERSION"),
            reached(self.listen)
        );
        let time = match (self.may_follow, self.caught_up) {
            (false, _) => "it only reads here; another process takes operations in",
            (true, true) => {
                "what is new since the last time is read now; that takes minutes for a day"
            }
            (true, false) => {
                "the first time may take hours; how many is told as soon as the directory has answered, and `plc-replica \
                 import` is faster"
            }
        };
        let rows = [
            ("Database", format!("{}, {}", self.database, plural(self.operations, "operation"))),
            ("Directory", self.directories.join(", ")),
            ("How long", time.to_owned()),
            ("More", "`plc-replica --help`, and README.md".to_owned()),
        ];
        for (name, said) in rows {
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "  {name:<11}{said}");
        }
        lines + "\n"
    }
}

/// An address at which a browser on this machine reaches it.
fn reached(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(at) if at.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, at.port()).into(),
        SocketAddr::V6(at) if at.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, at.port()).into(),
        at => at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_where_to_look() {
        let listen = "0.0.0.0:2582".parse().unwrap();
        let greeting = Greeting {
            listen,
            database: "plc.db",
            operations: 1_234_567,
            directories: &["https://plc.directory"],
            caught_up: false,
            may_follow: true,
        };
        let lines = greeting.lines();
        assert!(lines.contains(" answers at http://127.0.0.1:2582/ "), "{lines}");
        assert!(lines.contains("plc.db, 1,234,567 operations\n"), "{lines}");
        assert!(lines.contains("`plc-replica import` is faster"), "{lines}");
    }
}
