//! The socket device (virtio 1.2 §5.10): packets on rings, and the streams that they make up.
//!
//! ```text
//!  guest ─ tx ring ─► Vsock ─ Header + bytes ─► Connections ─ events, bytes ─► host side (viv-net)
//!  guest ◄─ rx ring ─ Vsock ◄─ next_packet ──── Connections ◄─ connect, send, finish, reset ─┘
//! ```
//! [`Vsock`] moves packets, [`Connections`] knows the protocol and never sees a ring. The methods of
//! [`Vsock`] that take [`Rings`] are the same calls, followed by filling the rx ring.
//!
//! Who holds up whom: bytes from the guest wait in a buffer of [`BUFFER_LEN`] for each stream, which is
//! the credit that the guest has; bytes for the guest wait in another one, and [`Vsock::send`] takes no
//! more than fits. Streams take turns. Nothing else queues without bound.

mod connections;
mod packet;

pub use connections::{BUFFER_LEN, CONNECTIONS_MAX, Connections, Received, StreamEnd, StreamId, VsockEvent};
pub use packet::Header;

use super::{Rings, VirtioDevice, another_kind, read_config_bytes};
use crate::{Unfit, Unsaved};
use viv_arch::pci::CLASS_COMMUNICATION;
use viv_arch::saved::VirtioDeviceSaved;
use viv_arch::virtio::{device_type, vsock as reg};

const QUEUE_SIZE: u16 = 128;
/// Bytes of the largest packet that we take from the guest or give to it.
const PAYLOAD_MAX: usize = 64 << 10;
/// Packets that the guest may make us handle in one call; the rest waits for [`Vsock::resume`].
const BATCH: usize = 2 * QUEUE_SIZE as usize;

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    cid: u64,
    connections: Connections,
    /// There may be packets on the tx ring that we have left there.
    stalled: bool,
    /// The driver has not been told yet that its streams are gone.
    owes_reset: bool,
}

impl Vsock {
    /// A device for the guest with context ID `cid`: at least 3, below 2^32 (§5.10.4).
    pub fn new(cid: u64) -> Vsock {
        Vsock { cid, connections: Connections::new(cid), stalled: false, owes_reset: false }
    }

    /// The host wants a stream to `guest_port`. An event tells how it went. `None` if the guest has no
    /// driver or there are too many streams.
    pub fn connect(&mut self, rings: &mut Rings<'_>, guest_port: u32) -> Option<StreamId> {
        let stream = if rings.live() { self.connections.connect(guest_port) } else { None };
        self.fill(rings);
        stream
    }

    /// The host takes the stream that [`VsockEvent::Incoming`] offered. Refuse it with [`Vsock::reset_stream`].
    pub fn accept(&mut self, rings: &mut Rings<'_>, stream: StreamId) {
        self.connections.accept(stream);
        self.fill(rings);
    }

    /// Bytes for the guest; returns how many were taken. After a short count [`VsockEvent::Writable`] comes.
    pub fn send(&mut self, rings: &mut Rings<'_>, stream: StreamId, bytes: &[u8]) -> usize {
        let taken = self.connections.send(stream, bytes);
        self.fill(rings);
        taken
    }

    /// Takes up to `max` bytes from the guest, which gives it room to send more.
    pub fn receive(&mut self, rings: &mut Rings<'_>, stream: StreamId, max: usize) -> Received {
        let received = self.connections.receive(stream, max);
        self.resume(rings);
        received
    }

    /// The host sends no more on this stream, but still receives: half-close.
    pub fn finish(&mut self, rings: &mut Rings<'_>, stream: StreamId) {
        self.connections.finish(stream);
        self.fill(rings);
    }

    /// The host is done with the stream in both directions; what was sent still arrives. The ID is void.
    pub fn close(&mut self, rings: &mut Rings<'_>, stream: StreamId) {
        self.connections.close(stream);
        self.fill(rings);
    }

    /// The host drops the stream at once. The ID is void.
    pub fn reset_stream(&mut self, rings: &mut Rings<'_>, stream: StreamId) {
        self.connections.reset(stream);
        self.fill(rings);
    }

    /// Whether [`Vsock::take_events`] has something, or [`Vsock::resume`] should be called: wake the host side.
    pub fn wants_host(&self) -> bool {
        self.stalled || self.connections.has_events()
    }

    /// Goes on with what was left on the rings. The host side calls it when it was woken.
    pub fn resume(&mut self, rings: &mut Rings<'_>) {
        self.fill(rings);
        self.drain(rings);
    }

    /// Takes what happened since the last call.
    pub fn take_events(&mut self) -> Vec<VsockEvent> {
        self.connections.take_events()
    }

    /// Moves packets to the rx ring as far as there are buffers.
    fn fill(&mut self, rings: &mut Rings<'_>) {
        for _ in 0..BATCH {
            if !self.connections.has_packet() {
                return;
            }
            let Some(chain) = rings.pop(reg::QUEUE_RX) else { return };
            let room = chain.writable_len().checked_sub(reg::HEADER_LEN as u64);
            let Some(room) = room.filter(|room| *room > 0) else {
                rings.fail();
                return;
            };
            let room = usize::try_from(room).unwrap_or(PAYLOAD_MAX).min(PAYLOAD_MAX);
            let mut written = 0;
            if let Some((header, payload)) = self.connections.next_packet(room) {
                written = chain.write_at(rings.memory(), 0, &header.to_bytes());
                written += chain.write_at(rings.memory(), reg::HEADER_LEN as u64, &payload);
            }
            rings.push(reg::QUEUE_RX, chain.head(), written as u32);
        }
    }

    /// The streams from before a restore are nobody's: has the driver end them (§5.10.6.7). It listens on.
    fn tell_reset(&mut self, rings: &mut Rings<'_>) {
        if self.owes_reset
            && let Some(chain) = rings.pop(reg::QUEUE_EVENT)
        {
            let written = chain.write_at(rings.memory(), 0, &reg::EVENT_TRANSPORT_RESET.to_le_bytes());
            rings.push(reg::QUEUE_EVENT, chain.head(), written as u32);
            self.owes_reset = false;
        }
    }

    /// Handles packets from the tx ring, as long as their answers have somewhere to go (§5.10.6.1.2).
    fn drain(&mut self, rings: &mut Rings<'_>) {
        self.stalled = false;
        for _ in 0..BATCH {
            if self.connections.must_answer_first() {
                self.fill(rings);
                if self.connections.must_answer_first() {
                    // Goes on when the guest gives rx buffers.
                    return;
                }
            }
            let Some(chain) = rings.pop(reg::QUEUE_TX) else {
                self.fill(rings);
                return;
            };
            let mut raw = [0; reg::HEADER_LEN];
            if chain.read_at(rings.memory(), 0, &mut raw) != raw.len() {
                rings.fail();
                return;
            }
            let header = Header::from_bytes(&raw);
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            if len as u64 > chain.readable_len() - reg::HEADER_LEN as u64 || len > PAYLOAD_MAX {
                rings.fail();
                return;
            }
            let mut payload = vec![0; len];
            chain.read_at(rings.memory(), reg::HEADER_LEN as u64, &mut payload);
            self.connections.handle(&header, &payload);
            rings.push(reg::QUEUE_TX, chain.head(), 0);
        }
        self.fill(rings);
        self.stalled = true;
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        device_type::VSOCK
    }
    fn pci_class(&self) -> u32 {
        CLASS_COMMUNICATION
    }
    fn features(&self) -> u64 {
        reg::F_STREAM
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.cid.to_le_bytes(), offset, data);
    }
    fn activate(&mut self, rings: &mut Rings<'_>) {
        self.resume(rings);
    }
    fn notified(&mut self, queue: u16, rings: &mut Rings<'_>) {
        match queue {
            reg::QUEUE_RX | reg::QUEUE_TX => self.resume(rings),
            // Other buffers for events stay where they are: the CID never changes.
            _ => self.tell_reset(rings),
        }
    }
    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved> {
        Ok(VirtioDeviceSaved::Vsock)
    }
    fn load(&mut self, saved: &VirtioDeviceSaved, rings: &mut Rings<'_>) -> Result<(), Unfit> {
        if *saved != VirtioDeviceSaved::Vsock {
            return Err(another_kind());
        }
        self.owes_reset = true;
        self.tell_reset(rings);
        Ok(())
    }
    fn reset(&mut self) {
        self.connections.guest_reset();
        (self.stalled, self.owes_reset) = (false, false);
    }
}
