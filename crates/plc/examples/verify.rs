//! Verifies the audit log of one identity, read from the standard input:
//! `curl -s https://plc.directory/$DID/log/audit | cargo run -p did-plc --example verify -- $DID`

use std::error::Error;
use std::io::Read;
use std::process::ExitCode;

use did_plc::history::Judgement;
use did_plc::signature::PlainVerifier;
use did_plc::{Did, History};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let did: Did = std::env::args().nth(1).ok_or("which DID?")?.parse()?;
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body)?;
    let history = History::of_audit_log(did, &body, &PlainVerifier)?;

    for (index, entry) in history.entries.iter().enumerate() {
        let verdict = match &entry.judgement {
            Judgement::Accepted { signer } => format!("signed by rotation key {signer}"),
            Judgement::Repeated => "the same again".to_owned(),
            Judgement::Refused(refusal) => format!("refused, {}: {refusal}", refusal.kind()),
        };
        println!("{} {} {verdict}", entry.received.created_at, entry.received.cid);
        for change in history.changes(index) {
            println!("    {change}");
        }
        if let Some(by) = entry.nullified_by {
            println!("    nullified by {}", history.entries[by].received.cid);
        }
    }
    println!("{}", if history.is_clean() { "all of it verifies" } else { "it does not verify" });
    Ok(if history.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
