//! The virtio console's host side. The console's own output goes where the serial port's goes; once the guest has used it,
//! the user's input goes to it. Each named port is a Unix socket with one client at a time, served by a thread.
use super::{ConsoleSink, HostSide, Hosted, Work};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use viv_devices::virtio::{Console, Rings};
use viv_net::vsock::Waker;

/// Bytes that are taken from a client at once.
const PIECE: usize = 16 << 10;

/// See the module.
pub(crate) struct ConsoleHost {
    pub(crate) sink: Arc<ConsoleSink>,
    pub(crate) used: Arc<AtomicBool>,
    /// Of the named ports' threads.
    pub(crate) wakers: Vec<Waker>,
}

impl HostSide<Console> for ConsoleHost {
    fn serve(&self, device: &mut Console, rings: &mut Rings<'_>) {
        if device.has_output(0) {
            self.used.store(true, Ordering::Relaxed);
            self.sink.push(&device.take_output(rings, 0));
        }
        for (number, waker) in (1..).zip(&self.wakers) {
            if device.take_moved(number) {
                waker.wake();
            }
        }
    }
}

impl Drop for ConsoleHost {
    fn drop(&mut self) {
        // The next machine's threads take the clients from here on.
        self.wakers.iter().for_each(Waker::wake);
    }
}

/// What a named port's thread holds.
pub(crate) struct PortThread {
    device: Weak<dyn Hosted<Console>>,
    number: usize,
    listener: UnixListener,
    client: Option<UnixStream>,
    waker: Waker,
    /// From the guest, not yet taken by the client.
    out: Vec<u8>,
    /// From the client, for which the guest has no room yet.
    incoming: Vec<u8>,
    /// Somebody in the guest has it open.
    guest_open: bool,
    /// The client has gone; nobody reads what it has sent.
    hung_up: bool,
}

impl PortThread {
    /// The thread's work for port `number`: until the device is gone, or `ended` says so.
    pub(crate) fn work(
        device: &Arc<dyn Hosted<Console>>,
        number: usize,
        listener: UnixListener,
        waker: Waker,
        ended: impl Fn() -> bool + Send + 'static,
    ) -> Work {
        let mut thread = PortThread {
            device: Arc::downgrade(device),
            number,
            listener,
            client: None,
            waker,
            out: Vec::new(),
            incoming: Vec::new(),
            guest_open: false,
            hung_up: false,
        };
        Box::new(move || {
            // A socket that does not work any more has no clients.
            while !ended() && thread.round().is_ok() {}
        })
    }

    fn round(&mut self) -> io::Result<()> {
        self.waker.clear();
        let went_on = {
            let device = self.device.upgrade().ok_or(ErrorKind::NotConnected)?;
            let came = self.client.is_none() && self.accept(&*device)?;
            let sent = self.send(&*device);
            let received = self.receive(&*device);
            let gone = std::mem::take(&mut self.hung_up) && !self.guest_open;
            match (sent, received) {
                (Ok(sent), Ok(received)) if !gone => came || sent || received,
                _ => {
                    self.client = None;
                    self.incoming.clear();
                    device.with_device(&mut |console, rings| console.set_open(rings, self.number, false));
                    true
                }
            }
        };
        if !went_on {
            self.wait();
        }
        Ok(())
    }

    fn accept(&mut self, device: &dyn Hosted<Console>) -> io::Result<bool> {
        let client = match self.listener.accept() {
            Ok((client, _)) => client,
            Err(error) if passes(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        client.set_nonblocking(true)?;
        self.client = Some(client);
        device.with_device(&mut |console, rings| console.set_open(rings, self.number, true));
        Ok(true)
    }

    /// Bytes of the guest go to the client; without one they are lost. True if there may be more.
    fn send(&mut self, device: &dyn Hosted<Console>) -> io::Result<bool> {
        if self.out.is_empty() {
            let (out, number) = (&mut self.out, self.number);
            device.with_device(&mut |console, rings| *out = console.take_output(rings, number));
        }
        if self.out.is_empty() {
            return Ok(false);
        }
        let Some(client) = &mut self.client else {
            self.out.clear();
            return Ok(true);
        };
        match client.write(&self.out) {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            Ok(len) => {
                self.out.drain(..len);
                Ok(true)
            }
            Err(error) if passes(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Bytes of the client go to the guest; true if there may be more.
    fn receive(&mut self, device: &dyn Hosted<Console>) -> io::Result<bool> {
        let Some(client) = &mut self.client else { return Ok(false) };
        if self.incoming.is_empty() {
            let mut piece = [0; PIECE];
            match client.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.incoming.extend_from_slice(piece.get(..len).unwrap_or_default()),
                Err(error) if passes(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let (mut taken, number) = (0, self.number);
        let incoming = &self.incoming;
        let mut open = false;
        device.with_device(&mut |console, rings| {
            taken = console.input(rings, number, incoming);
            open = console.guest_has_open(number);
        });
        self.guest_open = open;
        self.incoming.drain(..taken);
        Ok(taken > 0)
    }

    fn wait(&mut self) {
        let mut fds = vec![PollFd::from_borrowed_fd(self.waker.fd(), PollFlags::IN)];
        match &self.client {
            None => fds.push(PollFd::new(&self.listener, PollFlags::IN)),
            Some(client) => {
                let mut wanted = PollFlags::empty();
                wanted.set(PollFlags::IN, self.incoming.is_empty());
                wanted.set(PollFlags::OUT, !self.out.is_empty());
                // Without any wish, it is only looked whether the client hangs up.
                if !wanted.is_empty() || !self.guest_open {
                    fds.push(PollFd::new(client, wanted));
                }
            }
        }
        // Interrupted: look again.
        let _ = poll(&mut fds, None);
        let waits = !self.incoming.is_empty();
        self.hung_up = waits && fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP));
    }
}

/// Whether there is nothing now, which may change.
fn passes(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}
