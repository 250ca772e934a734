//! The limits on one operation, and what is checked by them.

use std::collections::HashSet;

use super::super::base58;
use super::super::key::PublicKey;
use super::super::operation::Operation;
use super::rejection::Rejection;

/// Limits on one operation. The default ones are the directory's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmissionLimits {
    /// Bytes of the signed operation as DAG-CBOR.
    pub operation_bytes: usize,
    /// Entries of `alsoKnownAs`.
    pub also_known_as: usize,
    /// Length of one of them, as all lengths of texts here in UTF-16 code units.
    pub also_known_as_length: usize,
    /// Entries of `rotationKeys`.
    pub rotation_keys: usize,
    /// Entries of `services`.
    pub services: usize,
    /// Length of a service's `type`.
    pub service_type_length: usize,
    /// Length of a service's `endpoint`.
    pub service_endpoint_length: usize,
    /// Entries of `verificationMethods`.
    pub verification_methods: usize,
    /// Length of the name of a service or a verification method.
    pub name_length: usize,
    /// Length of the key of a verification method.
    pub key_length: usize,
}

impl Default for SubmissionLimits {
    fn default() -> SubmissionLimits {
        SubmissionLimits {
            operation_bytes: 4_000,
            also_known_as: 10,
            // The longest host name (253), and `at://`.
            also_known_as_length: 258,
            rotation_keys: 10,
            services: 10,
            service_type_length: 256,
            service_endpoint_length: 512,
            verification_methods: 10,
            name_length: 32,
            key_length: 256,
        }
    }
}

impl SubmissionLimits {
    /// Checks an operation that is small enough in all.
    pub(super) fn check(&self, operation: &Operation<'_>) -> Result<(), Rejection> {
        self.check_aliases(operation)?;
        self.check_rotation_keys(operation)?;
        self.check_services(operation)?;
        self.check_verification_methods(operation)
    }

    fn check_aliases(&self, operation: &Operation<'_>) -> Result<(), Rejection> {
        let aliases = operation.also_known_as();
        if aliases.len() > self.also_known_as {
            return Err(Rejection::TooManyAliases { most: self.also_known_as });
        }
        let mut seen = HashSet::new();
        for alias in &aliases {
            let most = self.also_known_as_length;
            if length(alias) > most {
                return Err(Rejection::AliasTooLong { most, alias: alias.to_string() });
            }
            if !seen.insert(alias) {
                return Err(Rejection::DuplicateAlias { alias: alias.to_string() });
            }
        }
        Ok(())
    }

    fn check_rotation_keys(&self, operation: &Operation<'_>) -> Result<(), Rejection> {
        let keys = operation.rotation_keys();
        if keys.len() > self.rotation_keys {
            return Err(Rejection::TooManyRotationKeys { most: self.rotation_keys });
        }
        let is_key = |key: &&str| key.parse().is_ok_and(|key: PublicKey| key.is_on_its_curve());
        match keys.into_iter().find(|key| !is_key(key)) {
            Some(key) => Err(Rejection::InvalidRotationKey { key: key.to_owned() }),
            None => Ok(()),
        }
    }

    fn check_services(&self, operation: &Operation<'_>) -> Result<(), Rejection> {
        let services = operation.services();
        if services.len() > self.services {
            return Err(Rejection::TooManyServices { most: self.services });
        }
        for (name, service) in services {
            if length(name) > self.name_length {
                let (most, name) = (self.name_length, name.to_owned());
                return Err(Rejection::ServiceNameTooLong { most, name });
            }
            if length(&service.kind) > self.service_type_length {
                return Err(Rejection::ServiceTypeTooLong { most: self.service_type_length });
            }
            if length(&service.endpoint) > self.service_endpoint_length {
                let most = self.service_endpoint_length;
                return Err(Rejection::ServiceEndpointTooLong { most });
            }
        }
        Ok(())
    }

    fn check_verification_methods(&self, operation: &Operation<'_>) -> Result<(), Rejection> {
        let methods = operation.verification_methods();
        if methods.len() > self.verification_methods {
            let most = self.verification_methods;
            return Err(Rejection::TooManyVerificationMethods { most });
        }
        for (name, key) in methods {
            if length(name) > self.name_length {
                let (most, name) = (self.name_length, name.to_owned());
                return Err(Rejection::VerificationMethodNameTooLong { most, name });
            }
            let owned = || key.to_owned();
            if length(key) > self.key_length {
                let most = self.key_length;
                return Err(Rejection::VerificationMethodKeyTooLong { most, key: owned() });
            }
            if !key.strip_prefix("did:key:z").is_some_and(base58::is_text) {
                return Err(Rejection::InvalidVerificationMethod { key: owned() });
            }
        }
        Ok(())
    }
}

/// The length of a text as JavaScript counts it.
fn length(text: &str) -> usize {
    text.encode_utf16().count()
}
