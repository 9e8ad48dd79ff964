//! Connections to other processes, with every limit set.

use cohort_proto::limits::{CONNECT_TIMEOUT, KEEPALIVE};
use tonic::transport::{Channel, Endpoint};

use super::backoff::Backoff;
use super::network::Network;
use crate::error::PeerError;

/// Connects to `http://host:port`, trying again while nobody answers.
///
/// # Errors
/// [`PeerError::Usage`] if that is no URL, [`PeerError::Unreachable`] once the attempts are used up. `who` says in
/// the error whom we wanted to reach.
pub async fn connect(
    network: &dyn Network,
    url: &str,
    who: &str,
    mut backoff: Backoff,
) -> Result<Channel, PeerError> {
    let mut attempts = 1;
    loop {
        let error = match connect_once(network, url).await? {
            Ok(channel) => return Ok(channel),
            Err(error) => error,
        };
        let Some(pause) = backoff.next_pause() else {
            let sentence =
                format!("{who} at {url} did not answer {attempts} attempts ({error}); is it running there?");
            return Err(PeerError::Unreachable(sentence));
        };
        tracing::debug!("{who} at {url}: {error}; next attempt in {} ms", pause.as_millis());
        tokio::time::sleep(pause).await;
        attempts += 1;
    }
}

/// One attempt; the inner error is why it failed, in words.
///
/// # Errors
/// [`PeerError::Usage`] if that is no URL.
pub async fn connect_once(network: &dyn Network, url: &str) -> Result<Result<Channel, String>, PeerError> {
    Ok(network.connect(endpoint(url)?).await.map_err(|error| cause(&error)))
}

fn endpoint(url: &str) -> Result<Endpoint, PeerError> {
    let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let bad =
        |why: String| PeerError::Usage(format!("{url:?} is not an address: {why}; write http://host:port"));
    if !full.starts_with("http://") {
        return Err(bad("only http:// is spoken".into()));
    }
    let endpoint = Endpoint::from_shared(full).map_err(|error| bad(cause(&error)))?;
    if endpoint.uri().host().is_none_or(str::is_empty) || endpoint.uri().port_u16().is_none() {
        return Err(bad("host or port is missing".into()));
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true))
}

/// The innermost cause of an error: "transport error" says nothing, "connection refused" does.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["http://127.0.0.1:4700", "127.0.0.1:4700", "http://[::1]:4700", "host.example:1"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in ["", "http://", "nowhere", "https://host:1", "http://host", "http://:1"] {
            let error = endpoint(bad).unwrap_err();
            assert!(matches!(error, PeerError::Usage(_)), "{bad}: {error}");
        }
    }
}
