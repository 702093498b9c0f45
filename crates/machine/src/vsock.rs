//! The guest's vsock device as the Unix-socket muxer sees it: each call locks the device, and what comes
//! out of it is delivered after the lock is free.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use viv_devices::Interrupt;
use viv_devices::virtio::vsock::{StreamEnd, StreamId, VsockEvent};
use viv_devices::virtio::{Rings, VirtioTransport, Vsock};
use viv_net::vsock::{self, GuestEvent, Stream, VsockGuest, Waker};

/// Delivers the interrupts of one device.
pub type Deliver = Box<dyn Fn(Vec<Interrupt>) + Send + Sync>;

/// A vsock device on any transport, for [`viv_net::vsock::VsockMuxer`].
///
/// The board must wake the muxer with the same [`Waker`] when a call of its own leaves
/// [`Vsock::wants_host`] true: see [`wake_if_needed`].
pub struct GuestSockets<T> {
    transport: Arc<Mutex<T>>,
    deliver: Deliver,
    waker: Waker,
}

/// Wakes the muxer if the device has something for it: after each access of the guest to the device.
pub fn wake_if_needed<T: VirtioTransport<Vsock>>(transport: &mut T, waker: &Waker) {
    if transport.device().0.wants_host() {
        waker.wake();
    }
}

impl<T: VirtioTransport<Vsock>> GuestSockets<T> {
    /// The device, how its interrupts are delivered, and its muxer's waker.
    pub fn new(transport: Arc<Mutex<T>>, deliver: Deliver, waker: Waker) -> GuestSockets<T> {
        GuestSockets { transport, deliver, waker }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Vsock, &mut Rings<'_>) -> R) -> R {
        let mut transport: MutexGuard<'_, T> = self.transport.lock().unwrap_or_else(PoisonError::into_inner);
        let (device, mut rings) = transport.device();
        let result = act(device, &mut rings);
        let interrupts = transport.take_interrupts();
        drop(transport);
        if !interrupts.is_empty() {
            (self.deliver)(interrupts);
        }
        result
    }
}

impl<T: VirtioTransport<Vsock>> VsockGuest for GuestSockets<T> {
    fn connect(&self, port: u32) -> Option<Stream> {
        self.with(|device, rings| device.connect(rings, port)).map(|stream| stream.0)
    }

    fn accept(&self, stream: Stream) {
        self.with(|device, rings| device.accept(rings, StreamId(stream)));
    }

    fn send(&self, stream: Stream, bytes: &[u8]) -> usize {
        self.with(|device, rings| device.send(rings, StreamId(stream), bytes))
    }

    fn receive(&self, stream: Stream, max: usize) -> (Vec<u8>, Option<vsock::StreamEnd>) {
        let received = self.with(|device, rings| device.receive(rings, StreamId(stream), max));
        let end = received.end.map(|end| match end {
            StreamEnd::Finished => vsock::StreamEnd::Finished,
            StreamEnd::Closed | StreamEnd::Reset => vsock::StreamEnd::Closed,
        });
        (received.bytes, end)
    }

    fn finish(&self, stream: Stream) {
        self.with(|device, rings| device.finish(rings, StreamId(stream)));
    }

    fn close(&self, stream: Stream) {
        self.with(|device, rings| device.close(rings, StreamId(stream)));
    }

    fn reset(&self, stream: Stream) {
        self.with(|device, rings| device.reset_stream(rings, StreamId(stream)));
    }

    fn events(&self) -> Vec<GuestEvent> {
        let (events, more) = self.with(|device, rings| {
            device.resume(rings);
            (device.take_events(), device.wants_host())
        });
        if more {
            self.waker.wake();
        }
        events
            .into_iter()
            .map(|event| match event {
                VsockEvent::Incoming { stream, port } => GuestEvent::Incoming { stream: stream.0, port },
                VsockEvent::Connected { stream, host_port } => {
                    GuestEvent::Connected { stream: stream.0, host_port }
                }
                VsockEvent::Refused(stream) => GuestEvent::Refused(stream.0),
                VsockEvent::Readable(stream) => GuestEvent::Readable(stream.0),
                VsockEvent::Writable(stream) => GuestEvent::Writable(stream.0),
            })
            .collect()
    }
}
