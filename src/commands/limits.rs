//! The settings of what clients may ask for.

use std::time::Duration;

use crate::serve::client_address::{ClientHeader, Network, Proxies};
use crate::serve::limits::Limits;

/// How much a client may ask for.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Requests a minute that one client may send on the average (an IPv4 address, or a /64 of
    /// IPv6); 0 for no limit. Beyond it the answer is 429.
    #[arg(long, env = "PLC_RATE_LIMIT", value_name = "REQUESTS", default_value_t = 0)]
    rate_limit: u32,
    /// Requests that a client who was silent may send at once.
    #[arg(long, env = "PLC_RATE_LIMIT_BURST", value_name = "REQUESTS", default_value_t = 100)]
    rate_limit_burst: u32,
    /// Stream clients that one address may have; 0 for no limit.
    #[arg(long, env = "PLC_MAX_STREAMS_PER_ADDRESS", value_name = "CLIENTS", default_value_t = 0)]
    max_streams_per_address: u32,
    /// Connections at a time; further ones wait.
    #[arg(long, env = "PLC_MAX_CONNECTIONS", value_name = "CONNECTIONS", default_value_t = 16_384)]
    max_connections: usize,
    /// Requests that are answered at a time; beyond it the answer is 503.
    #[arg(long, env = "PLC_MAX_REQUESTS", value_name = "REQUESTS", default_value_t = 4_096)]
    max_requests: usize,
    /// Bytes of a request's headers and first line, up to a read more.
    #[arg(long, env = "PLC_MAX_HEAD_BYTES", value_name = "BYTES", default_value_t = 32 << 10)]
    max_head_bytes: usize,
    /// Bytes of a request's path and query.
    #[arg(long, env = "PLC_MAX_URL_BYTES", value_name = "BYTES", default_value_t = 8 << 10)]
    max_url_bytes: usize,
    /// Seconds that an answer may take; then it is 503.
    #[arg(long, env = "PLC_REQUEST_SECONDS", value_name = "SECONDS", default_value_t = 60)]
    request_seconds: u64,
    /// Proxies that are believed about a client's address: addresses or networks, with commas
    /// between them. Without any, the address is that of the connection.
    #[arg(long, env = "PLC_TRUSTED_PROXIES", value_name = "NETWORKS", value_delimiter = ',')]
    trusted_proxies: Vec<Network>,
    /// Header in which those proxies state it. The other one is not read: a proxy that does not
    /// write a header passes on what the client wrote there.
    #[arg(
        long,
        env = "PLC_CLIENT_ADDRESS_HEADER",
        value_name = "HEADER",
        default_value = "x-forwarded-for",
        value_parser = clap::builder::PossibleValuesParser::new(["x-forwarded-for", "forwarded"])
    )]
    client_address_header: String,
}

impl From<LimitArgs> for Limits {
    fn from(args: LimitArgs) -> Limits {
        let header = match args.client_address_header.as_str() {
            "forwarded" => ClientHeader::Forwarded,
            _ => ClientHeader::XForwardedFor,
        };
        Limits {
            requests_per_minute: args.rate_limit,
            burst: args.rate_limit_burst,
            streams_per_address: args.max_streams_per_address,
            connections: args.max_connections.max(1),
            requests: args.max_requests.max(1),
            head_bytes: args.max_head_bytes,
            url_bytes: args.max_url_bytes,
            request_time: Duration::from_secs(args.request_seconds.max(1)),
            proxies: Proxies { trusted: args.trusted_proxies, header },
        }
    }
}
