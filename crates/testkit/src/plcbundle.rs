//! Repositories in the format of plcbundle, as its specification describes them.

use std::fs;
use std::io::Write;
use std::path::Path;

use data_encoding::HEXLOWER;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Writes a repository of these lines, of so many in a bundle; what is left over is in none.
pub fn write(directory: &Path, origin: &str, lines: &[String], size: usize) {
    fs::create_dir_all(directory).unwrap();
    let mut bundles = Vec::new();
    let mut parent = String::new();
    for (number, bundle) in (1..).zip(lines.chunks_exact(size)) {
        let content = bundle.join("\n") + "\n";
        let stored = frames(number, bundle);
        fs::write(directory.join(format!("{number:06}.jsonl.zst")), &stored).unwrap();
        let content_hash = hash(content.as_bytes());
        let before = if parent.is_empty() { "plcbundle:genesis" } else { &parent };
        let chain = hash(format!("{before}:{content_hash}").as_bytes());
        bundles.push(json!({
            "bundle_number": number, "start_time": "", "end_time": "", "operation_count": size,
            "did_count": size, "hash": chain, "content_hash": content_hash, "parent": parent,
            "compressed_hash": hash(&stored), "compressed_size": stored.len(),
            "uncompressed_size": content.len(), "cursor": "", "created_at": "",
        }));
        parent = chain;
    }
    let index = json!({
        "version": "1.0", "origin": origin, "last_bundle": bundles.len(), "updated_at": "",
        "total_size_bytes": 0, "total_uncompressed_size_bytes": 0, "bundles": bundles,
    });
    fs::write(directory.join("plc_bundles.json"), index.to_string()).unwrap();
}

/// A skippable frame with what describes the bundle, and a frame for a hundred lines each.
fn frames(number: u32, lines: &[String]) -> Vec<u8> {
    let about = json!({"format": "plcbundle-v1", "bundle_number": number}).to_string();
    let mut stored = 0x184d_2a50_u32.to_le_bytes().to_vec();
    stored.extend(u32::try_from(about.len()).unwrap().to_le_bytes());
    stored.extend(about.into_bytes());
    for frame in lines.chunks(100) {
        let mut encoder = zstd::Encoder::new(&mut stored, 1).unwrap();
        frame.iter().for_each(|line| writeln!(encoder, "{line}").unwrap());
        encoder.finish().unwrap();
    }
    stored
}

fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}
