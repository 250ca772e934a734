//! What a verification costs: `cargo bench --bench signature`.
//!
//! Each figure is for one signature on one core. As in the directory's log, two keys sign by turns
//! and every signature is another one.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use did_plc::key::{Curve, PublicKey};
use did_plc::signature::{
    NativeVerifier, PlainVerifier, Signature, Signed, Tables, Verifier, signing_digest,
};
use k256::ecdsa::signature::hazmat::PrehashSigner;

/// So many that neither branch predictors nor the caches know them all.
const SIGNATURES: u32 = 2_000;
/// A k256 key that is met so often gets its table.
const HOT: u32 = 256;

/// A key, a digest and a signature that verifies.
type Example = (String, [u8; 32], Signature);

fn k256_signed(secret: u8, number: u32) -> Example {
    let key = k256::ecdsa::SigningKey::from_slice(&[secret; 32]).expect("below the order");
    let digest = signing_digest(&[&number.to_le_bytes()]);
    let signature: k256::ecdsa::Signature = key.sign_prehash(&digest).expect("a digest");
    let point = key.verifying_key().to_sec1_point(true);
    let signature = Signature(signature.normalize_s().to_bytes().into());
    (did_key(Curve::K256, point.as_bytes()), digest, signature)
}

fn p256_signed(secret: u8, number: u32) -> Example {
    let key = p256::ecdsa::SigningKey::from_slice(&[secret; 32]).expect("below the order");
    let digest = signing_digest(&[&number.to_le_bytes()]);
    let signature: p256::ecdsa::Signature = key.sign_prehash(&digest).expect("a digest");
    let point = key.verifying_key().to_sec1_point(true);
    let signature = Signature(signature.normalize_s().to_bytes().into());
    (did_key(Curve::P256, point.as_bytes()), digest, signature)
}

fn did_key(curve: Curve, point: &[u8]) -> String {
    PublicKey { curve, point: point.try_into().expect("compressed") }.to_string()
}

fn by_two(sign: fn(u8, u32) -> Example) -> Vec<Example> {
    (0..SIGNATURES).map(|number| sign(1 + (number % 2) as u8, number)).collect()
}

fn verify(verifier: &dyn Verifier, (key, digest, signature): &Example) {
    let signed = Signed::new(*digest, *signature);
    assert_eq!(verifier.verify(black_box(key), &signed), Ok(true));
}

fn verifications(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    let (off, on) = (NativeVerifier::new(Tables::Off), NativeVerifier::new(Tables::On));
    let verifiers: [(&str, &dyn Verifier); 3] =
        [("plain", &PlainVerifier), ("libraries", &off), ("tables", &on)];
    for (curve, sign) in [("k256", k256_signed as fn(u8, u32) -> Example), ("p256", p256_signed)] {
        let signed = by_two(sign);
        for (name, verifier) in verifiers {
            if (curve, name) == ("p256", "tables") {
                continue;
            }
            signed.iter().for_each(|signed| verify(verifier, signed));
            let mut next = signed.iter().cycle();
            group.bench_function(BenchmarkId::new(curve, name), |bencher| {
                bencher.iter(|| next.next().map(|signed| verify(verifier, signed)));
            });
        }
    }
}

/// A key that is kept and cannot be used: what finding a key costs.
fn kept(criterion: &mut Criterion) {
    let verifier = NativeVerifier::new(Tables::On);
    let signed = k256_signed(1, 0);
    (0..HOT).for_each(|_| verify(&verifier, &signed));
    let (mut key, digest, signature) = signed;
    key.replace_range(9..10, "a");
    criterion.bench_function("find/key", |bencher| {
        let signed = Signed::new(digest, signature);
        bencher.iter(|| assert!(verifier.verify(black_box(&key), &signed).is_err()));
    });
}

/// The 256th verification of a key by the library, and its table.
fn table(criterion: &mut Criterion) {
    let signed = k256_signed(3, 0);
    let almost_hot = || {
        let verifier = NativeVerifier::new(Tables::On);
        (1..HOT).for_each(|_| verify(&verifier, &signed));
        verifier
    };
    // The table of the generator is made with the first one.
    verify(&almost_hot(), &signed);
    let mut group = criterion.benchmark_group("build");
    group.sample_size(20);
    group.bench_function("table", |bencher| {
        bencher.iter_batched(
            almost_hot,
            |verifier| {
                verify(&verifier, &signed);
                verifier
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, kept, verifications, table);
criterion_main!(benches);
