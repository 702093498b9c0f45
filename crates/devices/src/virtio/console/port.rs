//! One port: bytes both ways, with bounds.
use crate::Unfit;
use crate::virtio::{Chain, Rings};
use std::collections::VecDeque;
use viv_arch::saved::ConsolePortSaved;

/// Output that waits for the machine; beyond it the transmit queue is left alone.
pub(super) const OUTPUT_MAX: usize = 256 << 10;
/// Input that waits for the guest; beyond it [`Port::input`] takes no more.
const INPUT_MAX: usize = 64 << 10;
/// Most times that [`Port::take_output`] empties the output.
const TAKE_MAX: usize = 16;
/// Bytes of a chain that are copied at once.
const PIECE: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Port {
    /// Its queues: for what the guest receives, and for what it sends.
    receiveq: u16,
    transmitq: u16,
    pub(super) output: Vec<u8>,
    input: VecDeque<u8>,
    /// The transmit queue was left alone because the output was full.
    stalled: bool,
    /// A chain whose rest, from this byte on, did not fit into the output.
    partial: Option<(Chain, u64)>,
    /// The guest has used its queues since the host looked.
    pub(super) moved: bool,
    /// Somebody on the host has it open.
    pub(super) host_open: bool,
    /// Somebody in the guest has it open.
    pub(super) guest_open: bool,
}

impl Port {
    pub(super) fn new(receiveq: u16) -> Port {
        Port {
            receiveq,
            transmitq: receiveq + 1,
            output: Vec::new(),
            input: VecDeque::new(),
            stalled: false,
            partial: None,
            moved: false,
            host_open: false,
            guest_open: false,
        }
    }

    pub(super) fn take_output(&mut self, rings: &mut Rings<'_>) -> Vec<u8> {
        let mut output = std::mem::take(&mut self.output);
        for _ in 0..TAKE_MAX {
            if !std::mem::take(&mut self.stalled) {
                break;
            }
            self.transmit(rings);
            output.append(&mut self.output);
        }
        output
    }

    pub(super) fn has_output(&self) -> bool {
        self.stalled || !self.output.is_empty()
    }

    pub(super) fn input(&mut self, rings: &mut Rings<'_>, bytes: &[u8]) -> usize {
        let room = self.input_room().min(bytes.len());
        self.input.extend(bytes.iter().take(room));
        self.receive(rings);
        room
    }

    pub(super) fn input_room(&self) -> usize {
        INPUT_MAX.saturating_sub(self.input.len())
    }

    /// Gives the guest what waits for it.
    pub(super) fn receive(&mut self, rings: &mut Rings<'_>) {
        while !self.input.is_empty() {
            let Some(chain) = rings.pop(self.receiveq) else { return };
            let mut written = 0;
            while !self.input.is_empty() {
                let (front, _) = self.input.as_slices();
                let done = chain.write_at(rings.memory(), written, front);
                if done == 0 {
                    break;
                }
                self.input.drain(..done);
                written += done as u64;
            }
            rings.push(self.receiveq, chain.head(), written as u32);
        }
    }

    /// Takes what the guest has sent, as far as there is room.
    pub(super) fn transmit(&mut self, rings: &mut Rings<'_>) {
        // A guest that refills the queue as fast as we empty it is stopped by the bound on output; one that
        // sends empty buffers only, by the count.
        for _ in 0..super::QUEUE_SIZE {
            let next = self.partial.take().or_else(|| rings.pop(self.transmitq).map(|chain| (chain, 0)));
            let Some((chain, mut offset)) = next else { return };
            let mut piece = [0; PIECE];
            while self.output.len() < OUTPUT_MAX {
                let done = chain.read_at(rings.memory(), offset, &mut piece);
                if done == 0 {
                    break;
                }
                self.output.extend_from_slice(piece.get(..done).unwrap_or_default());
                offset += done as u64;
            }
            if offset < chain.readable_len() {
                self.partial = Some((chain, offset));
                break;
            }
            rings.push(self.transmitq, chain.head(), 0);
        }
        self.stalled = true;
    }

    /// Somebody in the guest opens or closes it. What was not read is not for the next one.
    pub(super) fn set_guest_open(&mut self, open: bool) {
        (self.guest_open, self.moved) = (open, true);
        if !open {
            self.input.clear();
        }
    }

    pub(super) fn save(&self, name: &str) -> ConsolePortSaved {
        ConsolePortSaved {
            name: name.to_string(),
            output: self.output.clone(),
            input: self.input.iter().copied().collect(),
            stalled: self.stalled,
            partial: self.partial.as_ref().map(|(chain, taken)| (chain.save(), *taken)),
            host_open: self.host_open,
            guest_open: self.guest_open,
        }
    }

    /// Whoever had it open on the host is gone.
    pub(super) fn load(&mut self, saved: &ConsolePortSaved, rings: &Rings<'_>) -> Result<(), Unfit> {
        let load = |(chain, taken): &(_, u64)| Ok((Chain::load(chain, rings.memory())?, *taken));
        self.partial = saved.partial.as_ref().map(load).transpose()?;
        self.stalled = saved.stalled;
        self.output = saved.output.iter().copied().take(OUTPUT_MAX).collect();
        self.input = saved.input.iter().copied().take(INPUT_MAX).collect();
        self.guest_open = saved.guest_open;
        Ok(())
    }

    /// The guest begins anew; the host's side stays as it is.
    pub(super) fn reset(&mut self) {
        self.output.clear();
        self.input.clear();
        self.stalled = false;
        self.partial = None;
        self.guest_open = false;
    }
}
