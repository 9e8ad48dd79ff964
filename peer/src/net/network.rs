//! The network that a peer is on: the only place where sockets are opened.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::server::{Router, TcpIncoming};
use tonic::transport::{Channel, Endpoint, Error};

/// How others are reached, and how they reach this peer.
#[tonic::async_trait]
pub trait Network: fmt::Debug + Send + Sync {
    /// Connects to an endpoint, with the limits that it names.
    ///
    /// # Errors
    /// Nobody answers.
    async fn connect(&self, to: Endpoint) -> Result<Channel, Error>;

    /// Binds an address, `host:port`; returns it as it is, should a port have been chosen.
    ///
    /// # Errors
    /// It cannot be had.
    async fn listen(&self, address: &str) -> io::Result<(Box<dyn Listener>, SocketAddr)>;
}

/// A bound address.
#[tonic::async_trait]
pub trait Listener: Send {
    /// Serves those who come until `stop` is dropped or says so.
    ///
    /// # Errors
    /// The transport fails.
    async fn serve(self: Box<Self>, services: Router, stop: oneshot::Receiver<()>) -> Result<(), Error>;
}

/// The network of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Tcp;

#[tonic::async_trait]
impl Network for Tcp {
    async fn connect(&self, to: Endpoint) -> Result<Channel, Error> {
        to.connect().await
    }

    async fn listen(&self, address: &str) -> io::Result<(Box<dyn Listener>, SocketAddr)> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((Box::new(listener), bound))
    }
}

#[tonic::async_trait]
impl Listener for TcpListener {
    async fn serve(self: Box<Self>, services: Router, stop: oneshot::Receiver<()>) -> Result<(), Error> {
        // The builder's own `tcp_nodelay` is for sockets that it opens itself. Without it a contribution, which is
        // smaller than a segment, waits up to 40 ms for the acknowledgement of the one before.
        let incoming = TcpIncoming::from(*self).with_nodelay(Some(true));
        services.serve_with_incoming_shutdown(incoming, async { _ = stop.await }).await
    }
}
