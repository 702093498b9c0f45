//! The file system device's host side: one thread carries requests to the directory's server and replies back.
use super::{HostSide, Hosted, Work};
use crate::core::lock;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use viv_devices::virtio::fs::{Fs, FsRequest};
use viv_devices::virtio::{Rings, Segment, total};
use viv_mem::GuestMemory;
use viv_model::{Fault, Kind};
use viv_share::link::Caller;
use viv_share::protocol::error_reply;

/// How long a server may take to say what the guest knows.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the guest hears when the server is gone: EIO.
const IO_ERROR: i32 = 5;

/// What the thread does for others.
enum Job {
    Request(FsRequest),
    /// What the guest knows by now, or why that cannot be had.
    Save(SyncSender<Result<Vec<u8>, String>>),
}

/// The sending end, in the device. Dropping it ends the thread.
pub(crate) struct ShareHost(Arc<Mutex<Sender<Job>>>);

/// The receiving end, until the thread starts.
pub(crate) struct ShareRequests(Receiver<Job>);

/// Asks the server of a directory what the guest knows of it.
pub(crate) struct ShareSaver(Weak<Mutex<Sender<Job>>>);

/// What a guest knows of a shared directory at one moment. The guest may go on: whatever it asks then comes after.
pub struct ShareState {
    tag: String,
    answered: Receiver<Result<Vec<u8>, String>>,
}

impl ShareSaver {
    /// What it knows now. No request may be under way.
    pub(crate) fn save(&self, tag: &str) -> ShareState {
        let (answer, answered) = sync_channel(1);
        if let Some(thread) = self.0.upgrade() {
            // Whoever does not get it drops it: then there is no answer.
            let _ = lock(&*thread).send(Job::Save(answer));
        }
        ShareState { tag: tag.to_string(), answered }
    }
}

impl ShareState {
    /// The directory's tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Waits for it: what [`viv_share::link::Caller::load`] takes.
    pub fn take(self) -> Result<Vec<u8>, Fault> {
        let state = match self.answered.recv_timeout(PATIENCE) {
            Ok(state) => state,
            Err(RecvTimeoutError::Timeout) => Err("its server does not answer".to_string()),
            Err(RecvTimeoutError::Disconnected) => Err("it is not in the machine any more".to_string()),
        };
        state.map_err(|why| {
            Fault::new(
                Kind::Conflict,
                format!("cannot save what the guest knows of the shared directory {}: {why}", self.tag),
                "see viv logs; stop the VM and start it, then it has a server for it again",
            )
        })
    }
}

impl ShareHost {
    pub(crate) fn new() -> (ShareHost, ShareRequests) {
        let (sender, receiver) = channel();
        (ShareHost(Arc::new(Mutex::new(sender))), ShareRequests(receiver))
    }

    pub(crate) fn saver(&self) -> ShareSaver {
        ShareSaver(Arc::downgrade(&self.0))
    }
}

impl HostSide<Fs> for ShareHost {
    fn serve(&self, device: &mut Fs, _rings: &mut Rings<'_>) {
        for request in device.take_requests() {
            // The thread is gone only when the machine has ended: nobody waits for the answer.
            let _ = lock(&*self.0).send(Job::Request(request));
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
            while let Ok(job) = self.0.recv() {
                let request = match job {
                    Job::Request(request) => request,
                    Job::Save(answer) => {
                        let _ = answer.send(state(&mut server));
                        continue;
                    }
                };
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

/// What the guest knows of a directory, from its server if there is one.
fn state(server: &mut Option<Caller>) -> Result<Vec<u8>, String> {
    let gone = || "its server has ended (viv logs says why)".to_string();
    match server.as_mut().ok_or_else(gone)?.save() {
        Ok(state) => state,
        Err(_) => {
            *server = None;
            Err(gone())
        }
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
