//! Network namespaces as hosts, each with a cable to a bridge in a namespace of its own. All of it is private to the
//! process that makes it and goes when [`Net`] is dropped.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The part of the addresses that all hosts share. It is used inside the namespaces only.
const SUBNET: &str = "10.77.0";

/// Hosts on a network.
#[derive(Debug)]
pub struct Net {
    /// Begins the name of every namespace: unique for this process and network.
    prefix: String,
    hosts: Vec<String>,
}

impl Net {
    /// Makes the hosts; `letter` tells apart the networks of one process.
    ///
    /// # Errors
    /// If this is not permitted here; what was made is removed again.
    pub fn new(letter: char, hosts: &[&str]) -> Result<Self> {
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

    /// The file by which a thread enters a host's namespace.
    pub fn door(&self, host: &str) -> PathBuf {
        PathBuf::from("/var/run/netns").join(self.space(host))
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
    ///
    /// # Errors
    /// If there is no such host.
    pub fn address(&self, host: &str) -> Result<String> {
        Ok(format!("{SUBNET}.{}", self.number(host)? + 1))
    }

    /// The words before a command that is to run on a host.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn enter(&self, host: &str) -> Result<Vec<String>> {
        self.number(host)?;
        Ok(vec!["ip".into(), "netns".into(), "exec".into(), self.space(host)])
    }

    /// Pulls a host's cable.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn cut(&self, host: &str) -> Result<()> {
        ip(&["-n", &self.hub(), "link", "set", &self.port(host)?, "down"])
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn mend(&self, host: &str) -> Result<()> {
        ip(&["-n", &self.hub(), "link", "set", &self.port(host)?, "up"])
    }

    /// Parts two hosts that both still reach all others: each believes that the other's card has an address which
    /// nobody has, so packets vanish without a word.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn part(&self, one: &str, other: &str) -> Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let words = ["lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", "eth0"];
            let args = ["-n", &self.space(from), "neigh", "replace", &self.address(to)?];
            ip(&[args.as_slice(), &words].concat())?;
        }
        Ok(())
    }

    /// Ends what [`Net::part`] began.
    ///
    /// # Errors
    /// If there is no such host, or they were not parted.
    pub fn unite(&self, one: &str, other: &str) -> Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            ip(&["-n", &self.space(from), "neigh", "delete", &self.address(to)?, "dev", "eth0"])?;
        }
        Ok(())
    }

    /// Loses so many of a hundred packets that leave a host; none if 0.
    ///
    /// # Errors
    /// If the kernel cannot do that.
    pub fn lose(&self, host: &str, percent: u8) -> Result<()> {
        let space = self.space(host);
        let on = ["-n", &space, "qdisc"];
        match percent {
            0 => run("tc", &[on.as_slice(), &["delete", "dev", "eth0", "root"]].concat()),
            _ => {
                let loss = format!("{percent}%");
                let netem = ["replace", "dev", "eth0", "root", "netem", "loss", &loss];
                run("tc", &[on.as_slice(), &netem].concat())
            }
        }
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
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let done = Command::new(program).args(args).output();
    let done = done.with_context(|| format!("running {program} (of iproute2)"))?;
    let words = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{program} {}: {}", args.join(" "), words.trim());
    Ok(())
}
