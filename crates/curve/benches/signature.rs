//! What a verification costs: `cargo bench -p plc-curve`.
//!
//! Each figure is for one signature on one core. As in the directory's log, two keys sign by turns
//! and every signature is another one.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use did_plc::key::{Curve, PublicKey};
use did_plc::signature::{PlainVerifier, Signature, Signed, Verifier, signing_digest};
use k256::ecdsa::signature::hazmat::PrehashSigner;
use plc_curve::{FastVerifier, Tables};

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
    let signed = Signed { digest: *digest, signature: *signature };
    assert_eq!(verifier.find_signer(&[black_box(key)], &signed), Ok(Some(0)));
}

fn verifications(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    let (off, on) = (FastVerifier::new(Tables::Off), FastVerifier::new(Tables::On));
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

/// Two keys of which the second signs three times in four, as in the directory's log.
fn two_keys(criterion: &mut Criterion) {
    let signed: Vec<Example> =
        (0..SIGNATURES).map(|number| k256_signed(1 + u8::from(number % 4 > 0), number)).collect();
    let (first, second) = (k256_signed(1, 0).0, k256_signed(2, 0).0);
    let keys = [first.as_str(), second.as_str()];
    let mut group = criterion.benchmark_group("two keys");
    for (name, tables) in [("libraries", Tables::Off), ("tables", Tables::On)] {
        let verifier = FastVerifier::new(tables);
        let find = |(key, digest, signature): &Example| {
            let signed = Signed { digest: *digest, signature: *signature };
            let expected = keys.iter().position(|other| other == key);
            assert_eq!(verifier.find_signer(black_box(&keys), &signed), Ok(expected));
        };
        signed.iter().for_each(find);
        let mut next = signed.iter().cycle();
        group.bench_function(name, |bencher| bencher.iter(|| next.next().map(find)));
    }
}

/// What a signature costs that none of five keys made, which the plain verifier confirms.
fn refused(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("refuse");
    for (curve, sign) in [("k256", k256_signed as fn(u8, u32) -> Example), ("p256", p256_signed)] {
        let (_, digest, signature) = sign(6, 0);
        let signed = Signed { digest, signature };
        let texts: Vec<String> = (1..6).map(|secret| sign(secret, 0).0).collect();
        let keys: Vec<&str> = texts.iter().map(String::as_str).collect();
        let fast = FastVerifier::new(Tables::On);
        for (name, verifier) in [("plain", &PlainVerifier as &dyn Verifier), ("fast", &fast)] {
            group.bench_function(BenchmarkId::new(curve, name), |bencher| {
                bencher.iter(|| {
                    assert_eq!(verifier.find_signer(black_box(&keys), &signed), Ok(None));
                });
            });
        }
    }
}

/// The 256th verification of a key by the library, and its table.
fn table(criterion: &mut Criterion) {
    let signed = k256_signed(3, 0);
    let almost_hot = || {
        let verifier = FastVerifier::new(Tables::On);
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

criterion_group!(benches, verifications, two_keys, refused, table);
criterion_main!(benches);
