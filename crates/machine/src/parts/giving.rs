//! The host side of devices by which the guest gives memory back: one thread hands its pages to the host, which may take
//! milliseconds.
use super::{HostSide, Hosted, Work};
use crate::core::lock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use viv_devices::virtio::{Given, Giving, Rings};
use viv_mem::GuestMemory;

/// The sending end, in the device.
pub(crate) struct Giver(Mutex<Sender<Given>>);

impl Giver {
    /// With the receiving end for [`take`].
    pub(crate) fn new() -> (Giver, Receiver<Given>) {
        let (sender, receiver) = channel();
        (Giver(Mutex::new(sender)), receiver)
    }
}

impl<D: Giving> HostSide<D> for Giver {
    fn serve(&self, device: &mut D, _rings: &mut Rings<'_>) {
        for given in device.take_given() {
            // The thread is gone only when the machine has ended.
            let _ = lock(&self.0).send(given);
        }
    }
}

/// What the thread does, until `ended` says so.
pub(crate) fn take<D: Giving + 'static>(
    given: Receiver<Given>,
    device: &Arc<dyn Hosted<D>>,
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
            device.with_device(&mut |device, rings| device.taken(rings, tag));
        }
    })
}
