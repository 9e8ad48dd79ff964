//! Network namespaces as hosts, each with a cable to a bridge in a namespace of its own. All of it is private to the
//! test process and goes when [`Net`] is dropped.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The part of the addresses that all hosts share. It is used inside the namespaces only.
const SUBNET: &str = "10.77.0";

/// Hosts on a network.
#[derive(Debug)]
pub(crate) struct Net {
    /// Begins the name of every namespace: unique for this process and network.
    prefix: String,
    hosts: Vec<String>,
}

impl Net {
    /// Makes the hosts; `letter` tells apart the networks of one process.
    ///
    /// # Errors
    /// If this is not permitted here; what was made is removed again.
    pub(crate) fn new(letter: char, hosts: &[&str]) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "that needs root");
        let prefix = format!("cohort-{}{letter}", std::process::id());
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        // From here on, dropping it removes what there is.
        let net = Self { prefix, hosts };
        let hub = net.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for host in &net.hosts {
            let (space, port) = (net.space(host), net.port(host)?);
            let address = format!("{}/24", net.address(host)?);
            ip(&["netns", "add", &space])?;
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &space, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(net)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn space(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn number(&self, host: &str) -> Result<usize> {
        self.hosts.iter().position(|known| known == host).with_context(|| format!("no host {host}"))
    }

    fn port(&self, host: &str) -> Result<String> {
        Ok(format!("port{}", self.number(host)?))
    }

    /// A host's address.
    pub(crate) fn address(&self, host: &str) -> Result<String> {
        Ok(format!("{SUBNET}.{}", self.number(host)? + 1))
    }

    /// The words before a command that is to run on a host.
    pub(crate) fn enter(&self, host: &str) -> Result<Vec<String>> {
        self.number(host)?;
        Ok(vec!["ip".into(), "netns".into(), "exec".into(), self.space(host)])
    }

    /// Pulls a host's cable.
    pub(crate) fn cut(&self, host: &str) -> Result<()> {
        ip(&["-n", &self.hub(), "link", "set", &self.port(host)?, "down"])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // With a namespace go its end of every cable, the other end, and the bridge.
        for space in self.hosts.iter().map(|host| self.space(host)).chain([self.hub()]) {
            // One that was never made needs no removing.
            _ = ip(&["netns", "delete", &space]);
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(args).output().context("running ip (of iproute2)")?;
    let words = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "ip {}: {}", args.join(" "), words.trim());
    Ok(())
}
