//! Two machines on this one, and the way between them, which can be cut: network namespaces that reach each other through
//! this program's own. Nothing of it is in the machine's own network, and it ends with this program.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

use crate::child::{free_address, this_program};

/// Set where this program runs in a network of its own.
const OWN: &str = "FLEET_HAS_ITS_OWN_NETWORK";
/// Whether this program passes on what comes from one machine for the other. Where it does not, that vanishes without a
/// word to anybody.
const PASSES_ON: &str = "/proc/sys/net/ipv4/ip_forward";
/// What is needed to make such a network, tried in one that is gone afterwards.
const TRIAL: &str = "command -v nsenter && ip link set lo up && ip link add one type veth peer name other && \
                     echo 1 >/proc/sys/net/ipv4/ip_forward";

/// Two machines, and this program.
pub struct Network {
    /// Where this program is reached from both.
    pub here: IpAddr,
    /// That of the primary.
    pub near: Machine,
    /// That of the standby, the readers and the proxy.
    pub far: Machine,
    /// Whether they are apart at all.
    pub is_own: bool,
}

/// One of them.
pub struct Machine {
    pub address: IpAddr,
    /// Keeps its namespace until its standard input ends, which is when this program does.
    keeper: Option<Child>,
}

/// Goes on in a network of this program's own, where one can be made; otherwise returns.
///
/// # Errors
///
/// When it can be made and not be entered.
pub fn enter_own() -> anyhow::Result<()> {
    if std::env::var_os(OWN).is_some() || !can_be_made() {
        return Ok(());
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--"]).arg(this_program()?).args(std::env::args_os().skip(1));
    Err(command.env(OWN, "yes").exec()).context("cannot enter a network of its own")
}

fn can_be_made() -> bool {
    let trial = Command::new("unshare")
        .args(["--net", "--", "sh", "-c", TRIAL])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    trial.is_ok_and(|status| status.success())
}

impl Network {
    /// Both machines, apart where this program has a network of its own.
    pub fn new() -> anyhow::Result<Network> {
        if std::env::var_os(OWN).is_none() {
            let local = IpAddr::from(Ipv4Addr::LOCALHOST);
            let machine = || Machine { address: local, keeper: None };
            return Ok(Network { here: local, near: machine(), far: machine(), is_own: false });
        }
        ip(&["link", "set", "lo", "up"])?;
        let (near, far) = (Machine::new(1)?, Machine::new(2)?);
        let network = Network { here: gateway(1), near, far, is_own: true };
        network.mend()?;
        Ok(network)
    }

    /// Nothing gets from one machine to the other any more.
    pub fn cut(&self) -> anyhow::Result<()> {
        std::fs::write(PASSES_ON, "0").context("cannot cut the network")
    }

    /// It does again.
    pub fn mend(&self) -> anyhow::Result<()> {
        std::fs::write(PASSES_ON, "1").context("cannot mend the network")
    }
}

/// This program's own address in the network of a machine.
fn gateway(number: u8) -> IpAddr {
    IpAddr::from([10, 77, number, 1])
}

impl Machine {
    /// One in a namespace of its own, which reaches this program, and what that passes on.
    fn new(number: u8) -> anyhow::Result<Machine> {
        let (address, gateway) = (IpAddr::from([10, 77, number, 2]), gateway(number));
        let mut keeper = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo made; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot make a network namespace")?;
        let mut made = String::new();
        let out = keeper.stdout.as_mut().context("a namespace without an output")?;
        BufReader::new(out).read_line(&mut made)?;
        let (id, link) = (keeper.id().to_string(), format!("machine{number}"));
        let machine = Machine { address, keeper: Some(keeper) };
        let peer = ["type", "veth", "peer", "name", "wire", "netns", &id];
        ip(&[&["link", "add", &*link][..], &peer].concat())?;
        ip(&["address", "add", &format!("{gateway}/24"), "dev", &link])?;
        ip(&["link", "set", &link, "up"])?;
        machine.ip(&["link", "set", "lo", "up"])?;
        machine.ip(&["address", "add", &format!("{address}/24"), "dev", "wire"])?;
        machine.ip(&["link", "set", "wire", "up"])?;
        machine.ip(&["route", "add", "default", "via", &gateway.to_string()])?;
        Ok(machine)
    }

    fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut words = self.enter();
        words.push("ip".to_owned());
        let mut command = Command::new(&words[0]);
        succeeds(command.args(&words[1..]).args(arguments))
    }

    /// The program and the arguments after which a command runs there; none where it runs here.
    pub fn enter(&self) -> Vec<String> {
        let Some(keeper) = &self.keeper else { return Vec::new() };
        vec!["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", keeper.id()), "--".to_owned()]
    }

    /// An address there where nobody listens.
    pub fn free_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(self.address, free_address()?.port()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    succeeds(Command::new("ip").args(arguments))
}

fn succeeds(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
