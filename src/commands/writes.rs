//! The settings of writes that are passed on to the upstream.

use std::sync::Arc;
use std::time::Duration;

use did_plc::submission::SubmissionLimits;

use crate::serve::{Forward, ForwardSettings};
use crate::upstream::{ExportClient, UnusableUpstream};

/// Whether clients may write, how often, and what. The limits on an operation are the directory's; an upstream that
/// has others needs others here.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Writes")]
pub struct WriteArgs {
    /// Pass operations that are sent with `POST /{did}` on to the upstream, so that clients need one URL. What is
    /// certainly wrong is refused here, in the directory's words; the upstream's answer to all else is passed on,
    /// once the operation has come back by its log or has not for a moment. Without the setting nothing can be
    /// written.
    #[arg(
        long,
        env = "PLC_FORWARD_WRITES",
        value_name = "on|off",
        default_value = "off",
        default_missing_value = "on",
        num_args = 0..=1,
        action = clap::ArgAction::Set,
        value_parser = super::values::switch()
    )]
    forward_writes: bool,
    /// Operations a minute that are passed on in all, out of the upstream's budget of requests; 0 for no limit.
    /// Beyond it the answer is 503. A minute's worth may come at once.
    #[arg(
        long,
        env = "PLC_WRITES_PER_MINUTE",
        value_name = "OPERATIONS",
        default_value_t = ForwardSettings::default().writes_per_minute
    )]
    writes_per_minute: u32,
    /// Operations a minute of one client (an IPv4 address, or a /64 of IPv6); 0 for no limit. Beyond it the answer
    /// is 429.
    #[arg(
        long,
        env = "PLC_CLIENT_WRITES_PER_MINUTE",
        value_name = "OPERATIONS",
        default_value_t = ForwardSettings::default().client_writes_per_minute
    )]
    client_writes_per_minute: u32,
    /// Seconds that the upstream may take to answer an operation. After that the answer is 504, and says that it is not
    /// known what became of the operation.
    #[arg(
        long,
        env = "PLC_WRITE_SECONDS",
        value_name = "SECONDS",
        default_value_t = ForwardSettings::default().time.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    write_seconds: u64,
    /// Bytes of an operation, signed, as DAG-CBOR.
    #[arg(
        long,
        env = "PLC_MAX_OPERATION_BYTES",
        value_name = "BYTES",
        default_value_t = SubmissionLimits::default().operation_bytes
    )]
    max_operation_bytes: usize,
    /// Entries of `alsoKnownAs`.
    #[arg(
        long,
        env = "PLC_MAX_ALSO_KNOWN_AS",
        value_name = "ENTRIES",
        default_value_t = SubmissionLimits::default().also_known_as
    )]
    max_also_known_as: usize,
    /// Length of such an entry in UTF-16 code units, as all lengths below.
    #[arg(
        long,
        env = "PLC_MAX_ALSO_KNOWN_AS_LENGTH",
        value_name = "LENGTH",
        default_value_t = SubmissionLimits::default().also_known_as_length
    )]
    max_also_known_as_length: usize,
    /// Entries of `rotationKeys`.
    #[arg(
        long,
        env = "PLC_MAX_ROTATION_KEYS",
        value_name = "ENTRIES",
        default_value_t = SubmissionLimits::default().rotation_keys
    )]
    max_rotation_keys: usize,
    /// Entries of `services`.
    #[arg(
        long,
        env = "PLC_MAX_SERVICES",
        value_name = "ENTRIES",
        default_value_t = SubmissionLimits::default().services
    )]
    max_services: usize,
    /// Length of a service's `type`.
    #[arg(
        long,
        env = "PLC_MAX_SERVICE_TYPE_LENGTH",
        value_name = "LENGTH",
        default_value_t = SubmissionLimits::default().service_type_length
    )]
    max_service_type_length: usize,
    /// Length of a service's `endpoint`.
    #[arg(
        long,
        env = "PLC_MAX_SERVICE_ENDPOINT_LENGTH",
        value_name = "LENGTH",
        default_value_t = SubmissionLimits::default().service_endpoint_length
    )]
    max_service_endpoint_length: usize,
    /// Entries of `verificationMethods`.
    #[arg(
        long,
        env = "PLC_MAX_VERIFICATION_METHODS",
        value_name = "ENTRIES",
        default_value_t = SubmissionLimits::default().verification_methods
    )]
    max_verification_methods: usize,
    /// Length of the name of a service or a verification method.
    #[arg(
        long,
        env = "PLC_MAX_NAME_LENGTH",
        value_name = "LENGTH",
        default_value_t = SubmissionLimits::default().name_length
    )]
    max_name_length: usize,
    /// Length of the key of a verification method.
    #[arg(
        long,
        env = "PLC_MAX_KEY_LENGTH",
        value_name = "LENGTH",
        default_value_t = SubmissionLimits::default().key_length
    )]
    max_key_length: usize,
}

impl WriteArgs {
    /// Who passes them on to this upstream; none where they are not.
    ///
    /// # Errors
    ///
    /// Those of [`Forward::new`].
    pub fn forward(
        &self,
        upstream: &ExportClient,
    ) -> Result<Option<Arc<Forward>>, UnusableUpstream> {
        if !self.forward_writes {
            return Ok(None);
        }
        let settings = ForwardSettings {
            time: Duration::from_secs(self.write_seconds),
            writes_per_minute: self.writes_per_minute,
            client_writes_per_minute: self.client_writes_per_minute,
            limits: SubmissionLimits {
                operation_bytes: self.max_operation_bytes,
                also_known_as: self.max_also_known_as,
                also_known_as_length: self.max_also_known_as_length,
                rotation_keys: self.max_rotation_keys,
                services: self.max_services,
                service_type_length: self.max_service_type_length,
                service_endpoint_length: self.max_service_endpoint_length,
                verification_methods: self.max_verification_methods,
                name_length: self.max_name_length,
                key_length: self.max_key_length,
            },
        };
        Forward::new(upstream, settings).map(|forward| Some(Arc::new(forward)))
    }
}
