//! What an identity is now: the DID document and its data, as the directory prints them.

use super::did::Did;
use super::json::write_string;
use super::key::{Curve, PublicKey};
use super::operation::{Malformed, Operation, Service};

const DID_CONTEXT: &str = "https://www.w3.org/ns/did/v1";
const MULTIKEY_CONTEXT: &str = "https://w3id.org/security/multikey/v1";
const K256_CONTEXT: &str = "https://w3id.org/security/suites/secp256k1-2019/v1";
const P256_CONTEXT: &str = "https://w3id.org/security/suites/ecdsa-2019/v1";

/// Appends the DID document of an identity with this head: the body of `GET /{did}`.
///
/// # Errors
///
/// [`Malformed`] when the bytes are not an operation.
pub fn write_document(did: &Did, signed: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let operation = Operation::read(signed)?;
    out.extend_from_slice(b"{\"@context\":[");
    let methods = operation.verification_methods();
    write_list(contexts(&methods), out, write_string);
    out.extend_from_slice(b"],");
    write_members(did, &operation, methods, out);
    Ok(())
}

/// The same as plain JSON (`application/did+json`), which has no context.
///
/// # Errors
///
/// [`Malformed`] when the bytes are not an operation.
pub fn write_plain_document(did: &Did, signed: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let operation = Operation::read(signed)?;
    out.push(b'{');
    write_members(did, &operation, operation.verification_methods(), out);
    Ok(())
}

/// Everything after the context, and the end of the object.
fn write_members(
    did: &Did,
    operation: &Operation<'_>,
    methods: Vec<(&str, &str)>,
    out: &mut Vec<u8>,
) {
    let did = did.to_string();
    out.extend_from_slice(b"\"id\":\"");
    out.extend_from_slice(did.as_bytes());
    out.extend_from_slice(b"\",\"alsoKnownAs\":[");
    write_list(operation.also_known_as(), out, |alias, out| write_string(&alias, out));
    out.extend_from_slice(b"],\"verificationMethod\":[");
    write_list(methods, out, |(name, key), out| write_method(&did, name, key, out));
    out.extend_from_slice(b"],\"service\":[");
    write_list(operation.services(), out, |(name, service), out| {
        write_service(name, &service, out);
    });
    out.extend_from_slice(b"]}");
}

/// Appends what a head says of an identity in the form of an operation without its signature: the
/// body of `GET /{did}/data`.
///
/// # Errors
///
/// [`Malformed`] when the bytes are not an operation.
pub fn write_data(did: &Did, signed: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let operation = Operation::read(signed)?;
    out.extend_from_slice(b"{\"did\":\"");
    out.extend_from_slice(&did.to_ascii());
    out.extend_from_slice(b"\",\"verificationMethods\":{");
    write_list(operation.verification_methods(), out, |(name, key), out| {
        write_string(name, out);
        out.push(b':');
        write_string(key, out);
    });
    out.extend_from_slice(b"},\"rotationKeys\":[");
    write_list(operation.rotation_keys(), out, write_string);
    out.extend_from_slice(b"],\"alsoKnownAs\":[");
    write_list(operation.also_known_as(), out, |alias, out| write_string(&alias, out));
    out.extend_from_slice(b"],\"services\":{");
    write_list(operation.services(), out, |(name, service), out| {
        write_string(name, out);
        out.extend_from_slice(b":{\"type\":");
        write_string(&service.kind, out);
        out.extend_from_slice(b",\"endpoint\":");
        write_string(&service.endpoint, out);
        out.push(b'}');
    });
    out.extend_from_slice(b"}}");
    Ok(())
}

/// The contexts of a document: two for every one, then one for each curve that its keys are on,
/// in the order of first use.
fn contexts(methods: &[(&str, &str)]) -> Vec<&'static str> {
    let mut contexts = vec![DID_CONTEXT, MULTIKEY_CONTEXT];
    for (_, key) in methods {
        let context = match PublicKey::from_ascii(key.as_bytes()).filter(PublicKey::is_on_its_curve)
        {
            Some(PublicKey { curve: Curve::K256, .. }) => K256_CONTEXT,
            Some(PublicKey { curve: Curve::P256, .. }) => P256_CONTEXT,
            None => continue,
        };
        if !contexts.contains(&context) {
            contexts.push(context);
        }
    }
    contexts
}

fn write_method(did: &str, name: &str, key: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"id\":");
    write_string(&format!("{did}#{name}"), out);
    out.extend_from_slice(b",\"type\":\"Multikey\",\"controller\":\"");
    out.extend_from_slice(did.as_bytes());
    out.extend_from_slice(b"\",\"publicKeyMultibase\":");
    write_string(key.strip_prefix("did:key:").unwrap_or(key), out);
    out.push(b'}');
}

fn write_service(name: &str, service: &Service<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"id\":");
    write_string(&format!("#{name}"), out);
    out.extend_from_slice(b",\"type\":");
    write_string(&service.kind, out);
    out.extend_from_slice(b",\"serviceEndpoint\":");
    write_string(&service.endpoint, out);
    out.push(b'}');
}

fn write_list<T>(
    items: impl IntoIterator<Item = T>,
    out: &mut Vec<u8>,
    mut write: impl FnMut(T, &mut Vec<u8>),
) {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(item, out);
    }
}
