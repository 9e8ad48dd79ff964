//! A gate in front of a peer's contribution log: it lets so many bytes through to the followers and then holds back the
//! rest, so that a run stands still in the middle for as long as a test wants.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::Result;

#[derive(Debug, Default)]
struct Allowance {
    bytes: usize,
    /// Whether somebody wants to pass and may not.
    held: bool,
    open: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    allowance: Mutex<Allowance>,
    changed: Condvar,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Allowance)) {
        change(&mut self.allowance.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until so many bytes may pass.
    fn take(&self, bytes: usize) {
        let allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        let held = |allowance: &mut Allowance| {
            allowance.held = !allowance.open && allowance.bytes < bytes;
            allowance.held
        };
        let allowance = self.changed.wait_while(allowance, held);
        let mut allowance = allowance.unwrap_or_else(PoisonError::into_inner);
        allowance.bytes = allowance.bytes.saturating_sub(bytes);
    }
}

/// The gate. The peer behind it listens on [`Gate::listen`] and advertises [`Gate::advertise`].
#[derive(Debug)]
pub(crate) struct Gate {
    front: SocketAddr,
    shared: Arc<Shared>,
}

impl Gate {
    /// A gate that holds after so many bytes in all.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let front = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        shared.change(|allowance| allowance.bytes = bytes);
        let gate = Self { front, shared: shared.clone() };
        let behind = gate.listen();
        thread::spawn(move || {
            for caller in listener.incoming() {
                if shared.allowance.lock().unwrap_or_else(PoisonError::into_inner).closed {
                    return;
                }
                if let (Ok(caller), Ok(callee)) = (caller, TcpStream::connect(&behind)) {
                    connect(caller, callee, &shared);
                }
            }
        });
        Ok(gate)
    }

    /// Where the peer listens: the same port on another address of this host, so that nobody else has it.
    pub(crate) fn listen(&self) -> String {
        format!("127.0.0.2:{}", self.front.port())
    }

    /// Where the others find it.
    pub(crate) fn advertise(&self) -> String {
        self.front.to_string()
    }

    /// Whether it holds something back just now.
    pub(crate) fn holds(&self) -> bool {
        self.shared.allowance.lock().unwrap_or_else(PoisonError::into_inner).held
    }

    /// Lets everything through from now on.
    pub(crate) fn open(&self) {
        self.shared.change(|allowance| allowance.open = true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.change(|allowance| (allowance.open, allowance.closed) = (true, true));
        // Wakes the thread that waits for callers.
        _ = TcpStream::connect(self.front);
    }
}

/// Passes bytes both ways, those to the caller as far as the allowance goes.
fn connect(caller: TcpStream, callee: TcpStream, shared: &Arc<Shared>) {
    let (Ok(to_callee), Ok(to_caller)) = (callee.try_clone(), caller.try_clone()) else { return };
    let shared = shared.clone();
    thread::spawn(move || pass(caller, to_callee, |_| {}));
    thread::spawn(move || pass(callee, to_caller, |bytes| shared.take(bytes)));
}

fn pass(mut from: TcpStream, mut to: TcpStream, wait: impl Fn(usize)) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        wait(read);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The other direction hears of it too.
    _ = to.shutdown(Shutdown::Both);
    _ = from.shutdown(Shutdown::Both);
}
