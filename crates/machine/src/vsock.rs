//! The guest's vsock device as the Unix-socket muxer of `viv-net` sees it, and how the device wakes the muxer.

use crate::parts::{HostSide, Hosted};
use std::sync::Arc;
use viv_devices::virtio::vsock::{StreamEnd, StreamId, VsockEvent};
use viv_devices::virtio::{Rings, Vsock};
use viv_net::vsock::{self, GuestEvent, Stream, VsockGuest, Waker};

/// The vsock device behind its lock. After `act` its interrupts are delivered, and the muxer is woken if the
/// device has something for it ([`Vsock::wants_host`]).
pub trait SocketDevice: Send + Sync {
    /// Does something to the device.
    fn with(&self, act: &mut dyn FnMut(&mut Vsock, &mut Rings<'_>));
}

impl SocketDevice for Arc<dyn Hosted<Vsock>> {
    fn with(&self, act: &mut dyn FnMut(&mut Vsock, &mut Rings<'_>)) {
        self.with_device(act);
    }
}

/// In the device: wakes the muxer.
pub(crate) struct VsockHost(pub(crate) Option<Waker>);

impl HostSide<Vsock> for VsockHost {
    fn serve(&self, device: &mut Vsock, _rings: &mut Rings<'_>) {
        if let Some(waker) = &self.0
            && device.wants_host()
        {
            waker.wake();
        }
    }
}

/// A vsock device for [`viv_net::vsock::VsockMuxer`].
pub struct GuestSockets<D>(pub D);

impl<D: SocketDevice> GuestSockets<D> {
    fn with<R: Default>(&self, act: impl FnOnce(&mut Vsock, &mut Rings<'_>) -> R) -> R {
        let (mut act, mut result) = (Some(act), None);
        self.0.with(&mut |device, rings| result = act.take().map(|act| act(device, rings)));
        result.unwrap_or_default()
    }
}

impl<D: SocketDevice> VsockGuest for GuestSockets<D> {
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
        self.with(|device, rings| {
            let received = device.receive(rings, StreamId(stream), max);
            let end = received.end.map(|end| match end {
                StreamEnd::Finished => vsock::StreamEnd::Finished,
                StreamEnd::Closed | StreamEnd::Reset => vsock::StreamEnd::Closed,
            });
            (received.bytes, end)
        })
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
        let events = self.with(|device, rings| {
            device.resume(rings);
            device.take_events()
        });
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
