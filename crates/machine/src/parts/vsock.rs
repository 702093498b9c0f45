//! The vsock device's host side: wakes the muxer of `viv-net`, and is the guest that the muxer talks to.
use super::{HostSide, Hosted};
use std::sync::Arc;
use viv_devices::virtio::Rings;
use viv_devices::virtio::vsock::{StreamEnd as DeviceEnd, StreamId, Vsock, VsockEvent};
use viv_net::vsock::{GuestEvent, Stream, StreamEnd, VsockGuest, Waker};

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

/// The device as the muxer sees it.
pub(crate) struct VsockSide(pub(crate) Arc<dyn Hosted<Vsock>>);

impl VsockSide {
    fn with<R>(&self, act: impl FnOnce(&mut Vsock, &mut Rings<'_>) -> R) -> Option<R> {
        let (mut act, mut result) = (Some(act), None);
        self.0.with_device(&mut |device, rings| result = act.take().map(|act| act(device, rings)));
        result
    }
}

impl VsockGuest for VsockSide {
    fn connect(&self, port: u32) -> Option<Stream> {
        self.with(|device, rings| device.connect(rings, port)).flatten().map(|stream| stream.0)
    }
    fn accept(&self, stream: Stream) {
        self.with(|device, rings| device.accept(rings, StreamId(stream)));
    }
    fn send(&self, stream: Stream, bytes: &[u8]) -> usize {
        self.with(|device, rings| device.send(rings, StreamId(stream), bytes)).unwrap_or(0)
    }
    fn receive(&self, stream: Stream, max: usize) -> (Vec<u8>, Option<StreamEnd>) {
        let Some(received) = self.with(|device, rings| device.receive(rings, StreamId(stream), max)) else {
            return (Vec::new(), Some(StreamEnd::Closed));
        };
        let end = received.end.map(|end| match end {
            DeviceEnd::Finished => StreamEnd::Finished,
            DeviceEnd::Closed | DeviceEnd::Reset => StreamEnd::Closed,
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
        let events = self.with(|device, rings| {
            device.resume(rings);
            let events = device.take_events();
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
        });
        events.unwrap_or_default()
    }
}
