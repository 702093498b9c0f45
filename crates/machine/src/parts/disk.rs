//! The block device's host side: one thread for each queue moves data between disk and guest memory.
use super::{HostSide, Hosted, Work};
use crate::core::lock;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use viv_block::{Disk, SECTOR};
use viv_devices::virtio::Rings;
use viv_devices::virtio::blk::{Blk, BlkKind, BlkOutcome, BlkRequest};
use viv_mem::GuestMemory;

/// Bytes that are moved at once.
const PIECE: usize = 1 << 20;

/// The sending end, in the device. Dropping a request's sender ends its thread.
pub(crate) struct DiskHost {
    queues: Mutex<Vec<Sender<BlkRequest>>>,
}

/// The receiving ends, until the threads start.
pub(crate) struct DiskThreads {
    queues: Vec<Receiver<BlkRequest>>,
    disk: Arc<dyn Disk>,
}

impl DiskHost {
    pub(crate) fn new(disk: Arc<dyn Disk>, queues: u16) -> (DiskHost, DiskThreads) {
        let (senders, receivers) = (0..queues.max(1)).map(|_| channel()).unzip();
        (DiskHost { queues: Mutex::new(senders) }, DiskThreads { queues: receivers, disk })
    }
}

impl HostSide<Blk> for DiskHost {
    fn serve(&self, device: &mut Blk, _rings: &mut Rings<'_>) {
        let requests = device.take_requests();
        if requests.is_empty() {
            return;
        }
        let queues = lock(&self.queues);
        for request in requests {
            if let Some(queue) = queues.get(usize::from(request.queue)) {
                // The thread is gone only when the machine has ended: nobody waits for the answer.
                let _ = queue.send(request);
            }
        }
    }
}

impl DiskThreads {
    /// The work of each thread: it goes on until `ended` says so, and looks after each request.
    pub(crate) fn work(
        self,
        device: &Arc<dyn Hosted<Blk>>,
        memory: &GuestMemory,
        ended: impl Fn() -> bool + Clone + Send + 'static,
    ) -> Vec<Work> {
        let disk = self.disk;
        let make = |queue: Receiver<BlkRequest>| {
            let (disk, memory, ended) = (disk.clone(), memory.clone(), ended.clone());
            let device = Arc::downgrade(device);
            Box::new(move || {
                let mut buffer = Vec::new();
                while let Ok(request) = queue.recv() {
                    if ended() {
                        return;
                    }
                    let outcome = perform(&*disk, &memory, &request, &mut buffer);
                    let Some(device) = device.upgrade() else { return };
                    device.with_device(&mut |blk, rings| blk.complete(rings, request.tag, outcome));
                }
            }) as Work
        };
        self.queues.into_iter().map(make).collect()
    }
}

fn perform(disk: &dyn Disk, memory: &GuestMemory, request: &BlkRequest, buffer: &mut Vec<u8>) -> BlkOutcome {
    disk.admit(request.segments.iter().map(|segment| u64::from(segment.len)).sum());
    let offset = request.sector.saturating_mul(SECTOR);
    let done = match request.kind {
        BlkKind::Read => transfer(request, buffer, |at, gpa, piece| {
            disk.read(offset + at, piece)?;
            memory.write(gpa, piece).map_err(io::Error::other)
        }),
        BlkKind::Write { durable } => transfer(request, buffer, |at, gpa, piece| {
            memory.read(gpa, piece).map_err(io::Error::other)?;
            disk.write(offset + at, piece)
        })
        .and_then(|()| if durable { disk.flush() } else { Ok(()) }),
        BlkKind::Flush => disk.flush(),
        BlkKind::Discard { sectors } => disk.discard(offset, u64::from(sectors) * SECTOR),
        BlkKind::WriteZeroes { sectors, unmap } => {
            disk.write_zeroes(offset, u64::from(sectors) * SECTOR, unmap)
        }
    };
    match done {
        Ok(()) => BlkOutcome::Ok,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => BlkOutcome::Unsupported,
        Err(_) => BlkOutcome::IoError,
    }
}

/// Goes through the segments in pieces; `at` counts bytes from the request's first sector.
fn transfer(
    request: &BlkRequest,
    buffer: &mut Vec<u8>,
    mut act: impl FnMut(u64, viv_mem::Gpa, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0u64;
    for segment in &request.segments {
        let mut done = 0u64;
        while done < u64::from(segment.len) {
            let len = (u64::from(segment.len) - done).min(PIECE as u64);
            if buffer.len() < len as usize {
                buffer.resize(len as usize, 0);
            }
            let piece = buffer.get_mut(..len as usize).unwrap_or_default();
            let gpa = segment.gpa.checked_add(done).ok_or(io::ErrorKind::InvalidInput)?;
            act(at, gpa, piece)?;
            done += len;
            at += len;
        }
    }
    Ok(())
}
