//! What is in `ops/` agrees with the program: names of metrics, alerts and their runbook, and what
//! the tools of Prometheus and systemd say of it where they are installed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use plc_replica::metrics::{METRICS, MetricKind};

use crate::skip::skipped;

fn ops(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every `plc_…` in a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.match_indices("plc_")
        .filter(|(at, _)| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        .map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            &rest[..end.unwrap_or(rest.len())]
        })
        .collect()
}

/// The names under which a metric is scraped.
fn scraped(name: &str, kind: MetricKind) -> Vec<String> {
    match kind {
        MetricKind::Histogram => {
            ["bucket", "sum", "count"].map(|end| format!("{name}_{end}")).into()
        }
        _ => vec![name.to_owned()],
    }
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn every_metric_that_ops_names_exists() {
    let all: BTreeSet<String> =
        METRICS.iter().flat_map(|(name, kind, _)| scraped(name, *kind)).collect();
    for file in ["prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana/dashboard.json"] {
        for name in names(&read(&ops(file))) {
            assert!(all.contains(name), "{file} names {name}");
        }
    }
}

#[test]
fn every_metric_is_described_once_set_somewhere_and_shown() {
    let described: BTreeSet<&str> = METRICS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(described.len(), METRICS.len());
    let mut files = Vec::new();
    for folder in ["src", "crates"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    }
    let mut set = BTreeSet::new();
    for file in files {
        let text = read(&file);
        let macros = ["counter!(\"", "gauge!(\"", "histogram!(\""];
        for quoted in macros.iter().flat_map(|start| text.split(start).skip(1)) {
            set.insert(quoted.split('"').next().unwrap().to_owned());
        }
    }
    let set: BTreeSet<&str> = set.iter().map(String::as_str).collect();
    let unset: Vec<_> = described.difference(&set).collect();
    let undescribed: Vec<_> =
        set.difference(&described).filter(|name| name.starts_with("plc_")).collect();
    assert!(unset.is_empty() && undescribed.is_empty(), "{unset:?} {undescribed:?}");
    let dashboard = read(&ops("grafana/dashboard.json"));
    for name in described.difference(&BTreeSet::from(["plc_caught_up"])) {
        assert!(dashboard.contains(name), "{name} is on no panel");
    }
}

#[test]
fn every_metric_is_explained() {
    let text = read(&ops("METRICS.md"));
    let explained: BTreeSet<&str> =
        text.lines().filter(|line| line.starts_with("| `plc_")).collect();
    for (name, kind, meaning) in METRICS {
        let kind = format!("{kind:?}").to_lowercase();
        let is_its = |line: &&&str| {
            line.starts_with(&format!("| `{name}` | {kind} |"))
                && line.ends_with(&format!("| {meaning} |"))
        };
        assert!(explained.iter().any(|line| is_its(&line)), "{name}");
    }
    assert_eq!(explained.len(), METRICS.len());
}

#[test]
fn every_alert_has_a_section_in_the_runbook_and_a_test() {
    let (alerts, runbook) = (read(&ops("prometheus/alerts.yml")), read(&ops("RUNBOOK.md")));
    let tests = read(&ops("prometheus/alerts_test.yml"));
    let named = |text: &str, start: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(start));
        lines.map(str::to_owned).collect()
    };
    let (alerts, links) = (named(&alerts, "- alert: "), named(&alerts, "runbook: RUNBOOK.md#"));
    assert!(alerts.len() > 5);
    assert_eq!(alerts, named(&runbook, "## "));
    assert_eq!(alerts, named(&tests, "alertname: "));
    assert_eq!(alerts.iter().map(|name| name.to_lowercase()).collect::<BTreeSet<_>>(), links);
}

#[test]
fn the_dashboard_is_one() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read(&ops("grafana/dashboard.json"))).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(targets.iter().all(|target| target["expr"].is_string()), "{panel}");
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24);
    }
}

/// What the services of `docker-compose.yml` are given of this folder is there.
#[test]
fn what_compose_mounts_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = read(&root.join("docker-compose.yml"));
    let mounted: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- ./")?.split(':').next())
        .collect();
    assert!(mounted.len() > 4);
    // And what they name of it in there.
    let inside =
        text.split(&[' ', '=', ',', ']', '\n']).filter_map(|word| word.strip_prefix("/ops/"));
    let inside: Vec<String> = inside
        .map(|path| format!("ops/{}", path.split(':').next().unwrap()))
        .filter(|path| !path.ends_with("ops/"))
        .collect();
    assert!(inside.len() >= 2, "{inside:?}");
    for path in mounted.into_iter().chain(inside.iter().map(String::as_str)) {
        assert!(root.join(path).exists(), "{path}");
    }
}

/// A location with a header of its own would inherit none of the server's, and pass on what clients
/// say of their address.
#[test]
fn nginx_states_the_clients_address_everywhere() {
    let text = read(&ops("nginx.conf"));
    let (server, locations) = text.split_at(text.find("    location ").unwrap());
    for header in ["Host $host", "X-Forwarded-For $remote_addr", "Forwarded \"\""] {
        assert!(server.contains(&format!("proxy_set_header {header};")), "{header}");
    }
    assert!(!locations.contains("proxy_set_header"));
}

/// Runs a program; says in one line when it is not installed.
fn run(program: &str, arguments: &[&str], file: &Path) {
    match Command::new(program).args(arguments).arg(file).output() {
        Err(_) => skipped(program, &format!("there is no {program} here")),
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
        }
    }
}

/// The second of these provokes each alert, and an hour in which none may come.
#[test]
fn prometheus_takes_the_rules_and_each_alert_fires() {
    run("promtool", &["check", "rules"], &ops("prometheus/alerts.yml"));
    run("promtool", &["test", "rules"], &ops("prometheus/alerts_test.yml"));
}

#[test]
fn systemd_takes_the_unit() {
    // The program itself need not be installed for that.
    let folder = tempfile::TempDir::new().unwrap();
    let unit = folder.path().join("plc-replica.service");
    let text = read(&ops("plc-replica.service"));
    std::fs::write(&unit, text.replace("/usr/local/bin/plc-replica", "/bin/true")).unwrap();
    run("systemd-analyze", &["verify", "--man=no"], &unit);
    // Twenty is an exposure of 2.0, of 10 at most.
    run("systemd-analyze", &["security", "--offline=true", "--threshold=20"], &unit);
}
