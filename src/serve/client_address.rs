//! Who asks: the address of the connection, or, behind proxies that are trusted, the one that they
//! saw.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use http::{HeaderMap, HeaderName, header};

/// Addresses that one client can have at will: a network of IPv6 hosts is one client.
const IPV6_CLIENT_BITS: u8 = 64;

/// The header in which proxies say for whom they ask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientHeader {
    /// `X-Forwarded-For`, which nearly all of them write.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// An address and how many of its first bits count: `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Neither an address nor a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an address, or a network as in 10.0.0.0/8")]
pub struct MalformedNetwork;

impl FromStr for Network {
    type Err = MalformedNetwork;

    fn from_str(text: &str) -> Result<Network, MalformedNetwork> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| MalformedNetwork)?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(all), str::parse).map_err(|_| MalformedNetwork)?;
        if bits > all {
            return Err(MalformedNetwork);
        }
        Ok(Network { address: first_bits(address, bits), bits })
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && first_bits(address, self.bits) == self.address
    }
}

/// The address with all but its first bits zero.
fn first_bits(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

/// Whose word about the client's address is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// Their addresses; with none nobody is believed.
    pub trusted: Vec<Network>,
    /// Where they say it.
    pub header: ClientHeader,
}

impl Proxies {
    /// The client of a request that came over a connection from `peer`.
    ///
    /// Every proxy appends who it was asked by, so the list is read from its end: the first
    /// address that is no trusted proxy is the client, whatever stands before it. What cannot be
    /// read ends the list: the one who wrote it answers for it.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if self.trusted.is_empty() || !self.trusts(client) {
            return client;
        }
        for stated in self.stated(headers).iter().rev() {
            let Some(address) = stated else { break };
            client = *address;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// Everything that is stated, in order; none for what cannot be read.
    fn stated(&self, headers: &HeaderMap) -> Vec<Option<IpAddr>> {
        let name = match self.header {
            ClientHeader::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            ClientHeader::Forwarded => header::FORWARDED,
        };
        let lists = headers.get_all(name).into_iter();
        lists
            // Each element by itself: what a client wrote before a proxy's may be no text at all.
            .flat_map(|list| list.as_bytes().split(|&byte| byte == b','))
            .map(|element| {
                let element = str::from_utf8(element).ok()?;
                match self.header {
                    ClientHeader::XForwardedFor => address(element.trim()),
                    ClientHeader::Forwarded => address(for_of(element)?),
                }
            })
            .collect()
    }
}

/// The value of `for` in an element of `Forwarded`, without quotation marks.
fn for_of(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"'))
    })
}

/// An address, with or without a port, brackets around an IPv6 one.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// What counts as one client: an IPv4 address, or a network of IPv6 hosts.
pub fn client_key(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(_) => first_bits(address, IPV6_CLIENT_BITS),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn proxies(trusted: &[&str], header: ClientHeader) -> Proxies {
        Proxies { trusted: trusted.iter().map(|text| text.parse().unwrap()).collect(), header }
    }

    fn client(proxies: &Proxies, peer: &str, name: &'static str, values: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let nobody = Proxies::default();
        let some = proxies(&["127.0.0.1", "10.0.0.0/8", "::1"], ClientHeader::XForwardedFor);
        let xff = "x-forwarded-for";
        for (proxies, peer, stated, expected) in [
            (&nobody, "127.0.0.1", &["1.2.3.4"][..], "127.0.0.1"),
            (&some, "192.0.2.1", &["1.2.3.4"], "192.0.2.1"),
            (&some, "127.0.0.1", &[], "127.0.0.1"),
            (&some, "127.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            // What the client itself claims stands first and is not read.
            (&some, "127.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
            (&some, "127.0.0.1", &["6.6.6.6", "1.2.3.4, 10.1.1.1"], "1.2.3.4"),
            (&some, "127.0.0.1", &["\u{e9}, 1.2.3.4"], "1.2.3.4"),
            (&some, "127.0.0.1", &["1.2.3.4, unknown"], "127.0.0.1"),
            (&some, "127.0.0.1", &["garbage, 10.1.1.1"], "10.1.1.1"),
            (&some, "::ffff:127.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4"),
            (&some, "::1", &["2001:db8::7"], "2001:db8::7"),
            (&some, "127.0.0.1", &["1.2.3.4:5678"], "1.2.3.4"),
        ] {
            assert_eq!(client(proxies, peer, xff, stated), expected, "{peer} {stated:?}");
        }
    }

    #[test]
    fn one_header_is_read_and_the_other_is_not() {
        let by = proxies(&["127.0.0.1"], ClientHeader::Forwarded);
        for (stated, expected) in [
            ("for=1.2.3.4", "1.2.3.4"),
            ("For=\"[2001:db8::7]:4711\";proto=https", "2001:db8::7"),
            ("for=6.6.6.6, proto=http;for=1.2.3.4;by=10.0.0.1", "1.2.3.4"),
            ("for=_hidden", "127.0.0.1"),
            ("proto=https", "127.0.0.1"),
        ] {
            assert_eq!(client(&by, "127.0.0.1", "forwarded", &[stated]), expected, "{stated}");
        }
        assert_eq!(client(&by, "127.0.0.1", "x-forwarded-for", &["1.2.3.4"]), "127.0.0.1");
    }

    #[test]
    fn a_network_of_ipv6_hosts_is_one_client() {
        let key = |text: &str| client_key(text.parse().unwrap());
        assert_eq!(key("2001:db8:1:2:aaaa::1"), key("2001:db8:1:2:bbbb::2"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }

    #[test]
    fn networks_are_written_as_usual() {
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("1.2.3.4".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "localhost", "10.0.0.0/-1"] {
            assert_eq!(bad.parse::<Network>(), Err(MalformedNetwork), "{bad}");
        }
    }
}
