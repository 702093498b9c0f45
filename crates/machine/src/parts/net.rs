//! The network card's host side: one thread moves packets between the card and the port that it is plugged into.
use super::{HostSide, Hosted, Work};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Weak};
use viv_devices::virtio::Rings;
use viv_devices::virtio::net::{Net, Received};
use viv_net::offload;
use viv_net::port::{Message, NetPort};
use viv_net::vsock::Waker;

/// Packets that are taken from the guest at once.
const BATCH: usize = 64;

/// In the device: wakes the thread.
pub(crate) struct CardHost(pub(crate) Waker);

impl HostSide<Net> for CardHost {
    fn serve(&self, device: &mut Net, _rings: &mut Rings<'_>) {
        if device.take_wanted() {
            self.0.wake();
        }
    }
}

impl Drop for CardHost {
    fn drop(&mut self) {
        // The port may have another card soon: the thread must not take its packets.
        self.0.wake();
    }
}

/// What the thread holds.
pub(crate) struct CardThread {
    device: Weak<dyn Hosted<Net>>,
    port: Arc<dyn NetPort>,
    waker: Waker,
    /// Whether the guest's cable is plugged in.
    up: bool,
    /// From the guest, without room in the port yet.
    out: VecDeque<Vec<u8>>,
    /// For the guest, which perhaps has no buffers yet.
    incoming: Message,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
}

/// What to wait for.
struct Idle {
    readable: bool,
    writable: bool,
}

impl CardThread {
    /// The thread's work: until the device is gone, or `ended` says so.
    pub(crate) fn work(
        device: &Arc<dyn Hosted<Net>>,
        port: Arc<dyn NetPort>,
        waker: Waker,
        ended: impl Fn() -> bool + Send + 'static,
    ) -> Work {
        let mut thread = CardThread {
            device: Arc::downgrade(device),
            port,
            waker,
            up: true,
            out: VecDeque::new(),
            incoming: Message::default(),
            spare: Vec::new(),
        };
        Box::new(move || {
            // A network that is gone is a cable that leads nowhere.
            while !ended() && thread.round().is_ok() {}
        })
    }

    fn round(&mut self) -> io::Result<()> {
        self.waker.clear();
        let idle = {
            let device = self.device.upgrade().ok_or(io::ErrorKind::NotConnected)?;
            let up = self.port.is_up();
            if up != std::mem::replace(&mut self.up, up) {
                device.with_device(&mut |net, rings| net.set_link(rings, up));
            }
            let sent = self.send(&*device)?;
            let received = self.receive(&*device)?;
            if sent || received {
                return Ok(());
            }
            Idle { readable: self.incoming.front().is_none(), writable: !self.out.is_empty() }
        };
        self.port.wait(self.waker.fd(), idle.readable, idle.writable);
        Ok(())
    }

    /// Packets of the guest go to the port; true if there may be more.
    fn send(&mut self, device: &dyn Hosted<Net>) -> io::Result<bool> {
        if self.out.is_empty() {
            let (out, spare) = (&mut self.out, &mut self.spare);
            device.with_device(&mut |net, rings| {
                while out.len() < BATCH {
                    let mut packet = spare.pop().unwrap_or_default();
                    if !net.transmit(rings, &mut packet) {
                        spare.push(packet);
                        break;
                    }
                    out.push_back(packet);
                }
            });
        }
        let mut any = false;
        while !self.out.is_empty() {
            let sent = self.port.send(&mut self.out.iter().map(Vec::as_slice))?;
            if sent == 0 {
                return Ok(false);
            }
            any = true;
            self.spare.extend(self.out.drain(..sent.min(self.out.len())));
        }
        Ok(any)
    }

    /// Packets of the port go to the guest; true if there may be more.
    fn receive(&mut self, device: &dyn Hosted<Net>) -> io::Result<bool> {
        if self.incoming.front().is_none() && !self.port.receive(&mut self.incoming)? {
            return Ok(false);
        }
        let incoming = &mut self.incoming;
        device.with_device(&mut |net, rings| {
            while let Some(packet) = incoming.front_mut() {
                let mut received = net.receive(rings, packet);
                if received == Received::Unfinished && offload::finish_checksum(packet) {
                    received = net.receive(rings, packet);
                }
                if received == Received::NoBuffers {
                    break;
                }
                incoming.pop();
            }
        });
        Ok(self.incoming.front().is_none())
    }
}
