//! Where this peer listens, and the address that others are told.

use std::net::{IpAddr, SocketAddr};

use tokio::net::UdpSocket;

use super::Config;
use crate::error::PeerError;

/// The address of this machine on the way to the coordinator. Connecting a datagram socket sends nothing.
async fn local_ip(coordinator: &str) -> Option<IpAddr> {
    let address = coordinator.rsplit("//").next().unwrap_or(coordinator).trim_end_matches('/');
    let target = tokio::net::lookup_host(address).await.ok()?.next()?;
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(target).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Where to listen if the command line does not say: on the interface that leads to the coordinator.
pub(super) async fn listen_address(config: &Config) -> Result<String, PeerError> {
    if let Some(listen) = &config.listen {
        return Ok(listen.clone());
    }
    let ip = local_ip(&config.coordinator).await;
    let ip = ip.ok_or_else(|| {
        PeerError::Usage("no way to the coordinator is known; give --listen and --advertise".into())
    })?;
    Ok(SocketAddr::new(ip, 0).to_string())
}

pub(super) async fn advertised(config: &Config, bound: SocketAddr) -> String {
    if let Some(advertise) = &config.advertise {
        let has_port = advertise.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        return if has_port { advertise.clone() } else { format!("{advertise}:{}", bound.port()) };
    }
    if bound.ip().is_unspecified()
        && let Some(ip) = local_ip(&config.coordinator).await
    {
        return SocketAddr::new(ip, bound.port()).to_string();
    }
    bound.to_string()
}

pub(super) fn warn_if_open(config: &Config, bound: SocketAddr) {
    if !config.insecure && !bound.ip().is_loopback() {
        tracing::warn!(
            "listening on {bound} in plain text: whoever reaches this port can read what this peer says; use a private \
             network, and --insecure to say that you know"
        );
    }
}
