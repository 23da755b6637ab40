//! Networks of a test's own: namespaces joined by veth pairs, and a firewall that lets nothing in. Needs root, iproute2
//! and iptables.

use anyhow::{Context, Result};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace; removed when dropped.
pub struct Netns {
    name: String,
}

impl Netns {
    fn new(name: String) -> Result<Arc<Netns>> {
        sh(&format!("ip netns add {name}"))?;
        let net = Netns { name };
        sh(&format!("ip -n {} link set lo up", net.name))?;
        Ok(Arc::new(net))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a shell line inside.
    pub fn sh(&self, line: &str) -> Result<()> {
        sh(&format!("ip netns exec {} sh -ec '{line}'", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = sh(&format!("ip netns del {}", self.name));
    }
}

/// Two networks: the world outside, where users and the proxy are, and a closed one for the agent, which can only dial
/// out: its firewall drops whatever was not asked for from inside.
pub struct Closed {
    pub outside: Arc<Netns>,
    pub inside: Arc<Netns>,
    /// The address of the outside that the inside can dial.
    pub outside_addr: String,
    /// The address of the inside, which drops everything.
    pub inside_addr: String,
}

impl Closed {
    pub fn new() -> Result<Closed> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "{}x{}",
            std::process::id(),
            SERIAL.fetch_add(1, Ordering::Relaxed)
        );
        let outside = Netns::new(format!("pt{id}out"))?;
        let inside = Netns::new(format!("pt{id}in"))?;
        let (o, i) = (outside.name(), inside.name());
        sh(&format!(
            "ip -n {o} link add veth0 type veth peer name veth0 netns {i}"
        ))?;
        // Addresses of documentation: they exist in these two namespaces only.
        let (outside_addr, inside_addr) = ("192.0.2.1", "192.0.2.2");
        for (ns, addr) in [(o, outside_addr), (i, inside_addr)] {
            sh(&format!("ip -n {ns} addr add {addr}/24 dev veth0"))?;
            sh(&format!("ip -n {ns} link set veth0 up"))?;
        }
        for line in [
            "iptables -A INPUT -i lo -j ACCEPT",
            "iptables -A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT",
            "iptables -P INPUT DROP",
        ] {
            inside.sh(line)?;
        }
        Ok(Closed {
            outside,
            inside,
            outside_addr: outside_addr.into(),
            inside_addr: inside_addr.into(),
        })
    }

    /// Whether this machine can do it; else why not.
    pub fn possible() -> Result<(), String> {
        if !super::is_root() {
            return Err("network namespaces need root".into());
        }
        Closed::new().map(drop).map_err(|e| format!("{e:#}"))
    }
}

fn sh(line: &str) -> Result<()> {
    let out = Command::new("sh")
        .args(["-c", line])
        .env("PATH", path())
        .output()
        .context(line.to_string())?;
    anyhow::ensure!(
        out.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

fn path() -> String {
    format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    )
}
