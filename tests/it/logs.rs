//! The log of a server as a program reads it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const DID: &str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";

/// A server that is ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What is logged as JSON of these requests, each with its status.
async fn logged(requests: &[(&str, u16)]) -> Vec<Value> {
    let folder = TempDir::new().unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let mut child = Command::new(env!("CARGO_BIN_EXE_plc-replica"))
        .args(["serve", "--listen", &listen, "--upstream", "http://127.0.0.1:9"])
        .args(["--read-through", "off", "--audit-requests-per-minute", "0"])
        .args(["--log", "warn,plc_replica::serve=debug", "--log-format", "json"])
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let _server = Server(child);
    let began = Instant::now();
    while reqwest::get(format!("http://{listen}/_health")).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "nobody listens");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (path, status) in requests {
        let answer = reqwest::get(format!("http://{listen}{path}")).await.unwrap();
        assert_eq!(answer.status(), *status, "{path}");
    }
    let answered = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let answered = answered.filter(|line| line["message"] == "answered");
    // The first ones are those of waiting for the server.
    answered.filter(|line| line["span"]["route"] != "/_health").take(requests.len()).collect()
}

#[tokio::test]
async fn a_request_is_logged_with_its_route_status_time_and_did() {
    let encoded = format!("/{}/log/", DID.replace(':', "%3A"));
    let lines = logged(&[
        (&format!("/{DID}"), 503),
        (&encoded, 503),
        ("/export?count=0", 400),
        ("/_other", 404),
    ])
    .await;
    let did = Value::from(DID);
    for (line, (route, status, did)) in lines.iter().zip([
        ("/{did}", 503, &did),
        ("/{did}/log", 503, &did),
        ("/export", 400, &Value::Null),
        ("/{did}", 404, &Value::from("_other")),
    ]) {
        let span = &line["span"];
        assert_eq!(line["level"], "DEBUG", "{line}");
        assert_eq!((&span["name"], &span["method"]), (&"request".into(), &"GET".into()), "{line}");
        assert_eq!((&span["route"], &span["status"]), (&route.into(), &status.into()), "{line}");
        assert_eq!(&span["did"], did, "{line}");
        assert!(span["microseconds"].is_u64(), "{line}");
    }
}
