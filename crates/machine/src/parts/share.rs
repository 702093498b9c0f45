//! The file system device's host side: one thread carries requests to the directory's server and replies back.
use super::{HostSide, Hosted, Work};
use crate::core::lock;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use viv_devices::virtio::fs::{Fs, FsRequest};
use viv_devices::virtio::{Rings, Segment, total};
use viv_mem::GuestMemory;
use viv_share::link::Caller;
use viv_share::protocol::error_reply;

/// What the guest hears when the server is gone: EIO.
const IO_ERROR: i32 = 5;

/// The sending end, in the device. Dropping it ends the thread.
pub(crate) struct ShareHost(Mutex<Sender<FsRequest>>);

/// The receiving end, until the thread starts.
pub(crate) struct ShareRequests(Receiver<FsRequest>);

impl ShareHost {
    pub(crate) fn new() -> (ShareHost, ShareRequests) {
        let (sender, receiver) = channel();
        (ShareHost(Mutex::new(sender)), ShareRequests(receiver))
    }
}

impl HostSide<Fs> for ShareHost {
    fn serve(&self, device: &mut Fs, _rings: &mut Rings<'_>) {
        for request in device.take_requests() {
            // The thread is gone only when the machine has ended: nobody waits for the answer.
            let _ = lock(&self.0).send(request);
        }
    }
}

impl ShareRequests {
    /// The thread's work: it goes on until the device is gone.
    pub(crate) fn work(self, server: UnixStream, device: &Arc<dyn Hosted<Fs>>, memory: &GuestMemory) -> Work {
        let (memory, device) = (memory.clone(), Arc::downgrade(device));
        Box::new(move || {
            let mut server = Some(Caller::new(server));
            let (mut bytes, mut reply) = (Vec::new(), Vec::new());
            while let Ok(request) = self.0.recv() {
                gather(&memory, &request.readable, &mut bytes);
                let room = total(&request.writable) as usize;
                let answered =
                    server.as_mut().is_some_and(|server| server.call(&bytes, room, &mut reply).is_ok());
                if !answered {
                    // It does not come back before the machine is built anew. Its own process says why.
                    server = None;
                    reply.clear();
                    reply.extend(error_reply(&bytes, IO_ERROR).into_iter().flatten());
                }
                let written = scatter(&memory, &request.writable, &reply);
                let Some(device) = device.upgrade() else { return };
                device.with_device(&mut |fs, rings| fs.complete(rings, request.tag, written));
            }
        })
    }
}

/// Copies segments out of guest memory. The device has checked that they are memory.
fn gather(memory: &GuestMemory, segments: &[Segment], bytes: &mut Vec<u8>) {
    bytes.clear();
    for segment in segments {
        let start = bytes.len();
        bytes.resize(start + segment.len as usize, 0);
        let _ = memory.read(segment.gpa, bytes.get_mut(start..).unwrap_or_default());
    }
}

/// Copies a reply into segments; gives how many bytes it has.
fn scatter(memory: &GuestMemory, segments: &[Segment], reply: &[u8]) -> u32 {
    let mut rest = reply;
    for segment in segments {
        let (piece, more) = rest.split_at(rest.len().min(segment.len as usize));
        if piece.is_empty() {
            break;
        }
        let _ = memory.write(segment.gpa, piece);
        rest = more;
    }
    (reply.len() - rest.len()) as u32
}
