//! The network of the simulation, as peers and the coordinator ask for one.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use cohort_peer::net::network::{Listener, Network};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, Router};
use tonic::transport::{Channel, Endpoint, Error, Uri};
use turmoil::net::{TcpListener, TcpStream};

/// Names are those of hosts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Simulated;

#[tonic::async_trait]
impl Network for Simulated {
    async fn connect(&self, to: Endpoint) -> Result<Channel, Error> {
        let connector = tower::service_fn(|uri: Uri| async move {
            let address = uri.authority().map_or("", |authority| authority.as_str()).to_owned();
            TcpStream::connect(address).await.map(TokioIo::new)
        });
        to.connect_with_connector(connector).await
    }

    async fn listen(&self, address: &str) -> io::Result<(Box<dyn Listener>, SocketAddr)> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((Box::new(Bound(listener)), bound))
    }
}

struct Bound(TcpListener);

#[tonic::async_trait]
impl Listener for Bound {
    async fn serve(self: Box<Self>, services: Router, stop: oneshot::Receiver<()>) -> Result<(), Error> {
        services.serve_with_incoming_shutdown(Connections::of(self.0), async { _ = stop.await }).await
    }
}

type Accepting = Pin<Box<dyn Future<Output = (TcpListener, io::Result<(TcpStream, SocketAddr)>)> + Send>>;

/// The connections that come to a listener.
pub(crate) struct Connections(Accepting);

impl Connections {
    pub(crate) fn of(listener: TcpListener) -> Self {
        Self(Box::pin(async move {
            let accepted = listener.accept().await;
            (listener, accepted)
        }))
    }
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (listener, accepted) = ready!(self.0.as_mut().poll(context));
        *self = Self::of(listener);
        Poll::Ready(Some(accepted.map(|(stream, _)| Connection(stream))))
    }
}

/// One of them.
pub(crate) struct Connection(TcpStream);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
