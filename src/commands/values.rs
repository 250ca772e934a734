//! How the values of settings are written.

use std::net::{Ipv4Addr, SocketAddr};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

/// Other ways in which people write `on` and `off`.
const ON: [&str; 3] = ["true", "yes", "1"];
const OFF: [&str; 3] = ["false", "no", "0"];

/// Whether something is switched on.
pub fn switch() -> impl TypedValueParser<Value = bool> {
    let values = [PossibleValue::new("on").aliases(ON), PossibleValue::new("off").aliases(OFF)];
    PossibleValuesParser::new(values).map(|given| given == "on" || ON.contains(&&*given))
}

/// An address and a port to listen on. Of names only `localhost` is one: others may stand for several, or for another one
/// tomorrow.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    match port {
        Some(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        None => text.parse().map_err(|_| {
            "expected IP:PORT, as 127.0.0.1:2582, [::1]:2582 or localhost:2582".to_owned()
        }),
    }
}

/// A number that is not negative.
pub fn not_negative(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    // A hundred years are more than any clock here can add up.
    if (0.0..=36_500.0).contains(&number) {
        Ok(number)
    } else {
        Err("expected 0 to 36500".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_local() {
        assert_eq!(socket_address("localhost:2582").unwrap().to_string(), "127.0.0.1:2582");
        assert_eq!(socket_address("[::1]:80").unwrap().to_string(), "[::1]:80");
        for text in ["localhost", "localhost:http", "plc.example.com:80", "2582", ""] {
            assert!(socket_address(text).is_err(), "{text}");
        }
    }
}
