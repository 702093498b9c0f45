//! The balloon's host side: one thread gives the guest's free pages back to the host, which may take milliseconds.
use super::{HostSide, Hosted, Work};
use crate::core::lock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use viv_devices::virtio::{Balloon, Given, Rings};
use viv_mem::GuestMemory;

/// The sending end, in the device.
pub(crate) struct BalloonHost(Mutex<Sender<Given>>);

impl BalloonHost {
    /// With the receiving end for [`work`].
    pub(crate) fn new() -> (BalloonHost, Receiver<Given>) {
        let (sender, receiver) = channel();
        (BalloonHost(Mutex::new(sender)), receiver)
    }
}

impl HostSide<Balloon> for BalloonHost {
    fn serve(&self, device: &mut Balloon, _rings: &mut Rings<'_>) {
        for given in device.take_given() {
            // The thread is gone only when the machine has ended.
            let _ = lock(&self.0).send(given);
        }
    }
}

/// What the thread does, until `ended` says so.
pub(crate) fn work(
    given: Receiver<Given>,
    device: &Arc<dyn Hosted<Balloon>>,
    memory: &GuestMemory,
    ended: impl Fn() -> bool + Send + 'static,
) -> Work {
    let (device, memory) = (Arc::downgrade(device), memory.clone());
    Box::new(move || {
        while let Ok(Given { tag, ranges }) = given.recv() {
            if ended() {
                return;
            }
            for (gpa, len) in ranges {
                // What is no memory is the guest's mistake; a host that keeps the pages loses nothing of the guest's.
                let _ = memory.give_back(gpa, len);
            }
            let Some(device) = device.upgrade() else { return };
            device.with_device(&mut |balloon, rings| balloon.taken(rings, tag));
        }
    })
}
