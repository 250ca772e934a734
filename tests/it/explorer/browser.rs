//! A headless Chromium, driven over its DevTools protocol: what it asks for, what it complains
//! about, and what it looks like.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use data_encoding::BASE64;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// How long the browser may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// Programs that are Chromium.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

pub struct Browser {
    process: Child,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next: u64,
    events: Vec<Value>,
    _profile: TempDir,
}

impl Browser {
    /// Starts one with one empty page; none when there is no Chromium here.
    pub async fn start() -> Option<Browser> {
        let profile = TempDir::new().unwrap();
        let process = PROGRAMS.iter().find_map(|program| {
            Command::new(program)
                .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
                .args(["--no-first-run", "--disable-background-networking"])
                .args(["--disable-component-update", "--disable-sync", "--metrics-recording-only"])
                .args(["--remote-debugging-port=0", "about:blank"])
                .arg(format!("--user-data-dir={}", profile.path().display()))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .ok()
        })?;
        let port = port_of(profile.path().join("DevToolsActivePort")).await;
        let list = format!("http://127.0.0.1:{port}/json/list");
        let pages: Value =
            serde_json::from_str(&reqwest::get(list).await.unwrap().text().await.unwrap()).unwrap();
        let pages = pages.as_array().unwrap();
        let page = pages.iter().find(|target| target["type"] == "page").unwrap();
        let (socket, _) =
            connect_async(page["webSocketDebuggerUrl"].as_str().unwrap()).await.unwrap();
        let mut browser =
            Browser { process, socket, next: 0, events: Vec::new(), _profile: profile };
        for domain in ["Page", "Network", "Log", "Runtime"] {
            browser.ask(&format!("{domain}.enable"), json!({})).await;
        }
        Some(browser)
    }

    /// Sends a command and waits for its result; events that come before it are kept.
    pub async fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let command = json!({"id": id, "method": method, "params": parameters});
        self.socket.send(Message::text(command.to_string())).await.unwrap();
        loop {
            let message = self.receive().await;
            if message["id"] == id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    async fn receive(&mut self) -> Value {
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.unwrap().unwrap().unwrap();
            if let Message::Text(text) = message {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// Waits until the page that something has led to is there.
    pub async fn loaded(&mut self) {
        let is_load = |event: &Value| event["method"] == "Page.loadEventFired";
        loop {
            if let Some(at) = self.events.iter().position(is_load) {
                self.events.remove(at);
                return;
            }
            let event = self.receive().await;
            self.events.push(event);
        }
    }

    pub async fn open(&mut self, url: &str) {
        self.ask("Page.navigate", json!({"url": url})).await;
        self.loaded().await;
    }

    /// Sets the width of the window and the colours that the person prefers.
    pub async fn look(&mut self, width: u32, dark: bool) {
        let metrics =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.ask("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.ask("Emulation.setEmulatedMedia", media).await;
    }

    /// The value of an expression.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.ask("Runtime.evaluate", parameters).await;
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Everything that was asked for, and everything that was complained about, until now.
    pub fn noticed(&mut self) -> (Vec<String>, Vec<String>) {
        let (mut asked, mut complaints) = (Vec::new(), Vec::new());
        for event in std::mem::take(&mut self.events) {
            match event["method"].as_str().unwrap_or_default() {
                "Network.requestWillBeSent" => {
                    asked.push(event["params"]["request"]["url"].as_str().unwrap().to_owned());
                }
                "Log.entryAdded"
                | "Runtime.exceptionThrown"
                | "Runtime.consoleAPICalled"
                | "Page.javascriptDialogOpening" => complaints.push(event.to_string()),
                _ => {}
            }
        }
        (asked, complaints)
    }

    /// The whole page as a PNG file.
    pub async fn screenshot(&mut self, file: PathBuf) {
        let shot = self
            .ask("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true}))
            .await;
        let png = BASE64.decode(shot["data"].as_str().unwrap().as_bytes()).unwrap();
        std::fs::write(file, png).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

async fn port_of(file: PathBuf) -> u16 {
    for _ in 0..300 {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Some(port) = text.lines().next().and_then(|line| line.parse().ok()) {
            return port;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("Chromium has not begun to listen");
}
