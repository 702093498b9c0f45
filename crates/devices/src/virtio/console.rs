//! The console (virtio 1.2 §5.3): one port, with its size.

use std::collections::VecDeque;

use super::{Chain, Rings, VirtioDevice, another_kind, read_config_bytes};
use crate::{Unfit, Unsaved};
use viv_arch::pci::CLASS_COMMUNICATION;
use viv_arch::saved::VirtioDeviceSaved;
use viv_arch::virtio::{console as reg, device_type};

const QUEUE_SIZE: u16 = 128;
/// Output that waits for the machine; beyond it the transmit queue is left alone.
const OUTPUT_MAX: usize = 256 << 10;
/// Input that waits for the guest; beyond it [`Console::input`] takes no more.
const INPUT_MAX: usize = 64 << 10;
/// Most times that [`Console::take_output`] empties the output.
const TAKE_MAX: usize = 16;
/// Bytes of a chain that are copied at once.
const PIECE: usize = 4096;

/// A console with one port.
#[derive(Debug)]
pub struct Console {
    cols: u16,
    rows: u16,
    output: Vec<u8>,
    input: VecDeque<u8>,
    /// The transmit queue was left alone because the output was full.
    stalled: bool,
    /// A chain whose rest, from this byte on, did not fit into the output.
    partial: Option<(Chain, u64)>,
}

impl Console {
    /// A console of this size in characters.
    pub fn new(cols: u16, rows: u16) -> Console {
        Console { cols, rows, output: Vec::new(), input: VecDeque::new(), stalled: false, partial: None }
    }

    /// Takes what the guest wrote since the last call; more may wait, see [`Console::has_output`].
    pub fn take_output(&mut self, rings: &mut Rings<'_>) -> Vec<u8> {
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

    /// Whether the guest wrote something that was not taken.
    pub fn has_output(&self) -> bool {
        self.stalled || !self.output.is_empty()
    }

    /// Bytes for the guest; returns how many were taken. The rest waits for the guest to read.
    pub fn input(&mut self, rings: &mut Rings<'_>, bytes: &[u8]) -> usize {
        let room = INPUT_MAX.saturating_sub(self.input.len()).min(bytes.len());
        self.input.extend(bytes.iter().take(room));
        self.receive(rings);
        room
    }

    /// Bytes that [`Console::input`] would take now.
    pub fn input_room(&self) -> usize {
        INPUT_MAX.saturating_sub(self.input.len())
    }

    /// The window of the user has another size.
    pub fn resize(&mut self, rings: &mut Rings<'_>, cols: u16, rows: u16) {
        if (self.cols, self.rows) != (cols, rows) {
            (self.cols, self.rows) = (cols, rows);
            rings.config_changed();
        }
    }

    fn receive(&mut self, rings: &mut Rings<'_>) {
        while !self.input.is_empty() {
            let Some(chain) = rings.pop(reg::QUEUE_RECEIVE) else { return };
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
            rings.push(reg::QUEUE_RECEIVE, chain.head(), written as u32);
        }
    }

    fn transmit(&mut self, rings: &mut Rings<'_>) {
        // A guest that refills the queue as fast as we empty it is stopped by the bound on output; one that
        // sends empty buffers only, by the count.
        for _ in 0..QUEUE_SIZE {
            let next = self.partial.take().or_else(|| rings.pop(reg::QUEUE_TRANSMIT).map(|chain| (chain, 0)));
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
            rings.push(reg::QUEUE_TRANSMIT, chain.head(), 0);
        }
        self.stalled = true;
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        device_type::CONSOLE
    }
    fn pci_class(&self) -> u32 {
        CLASS_COMMUNICATION
    }
    fn features(&self) -> u64 {
        reg::F_SIZE | reg::F_EMERG_WRITE
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; reg::CONFIG_LEN];
        config[..2].copy_from_slice(&self.cols.to_le_bytes());
        config[2..4].copy_from_slice(&self.rows.to_le_bytes());
        config[4..8].copy_from_slice(&1u32.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (reg::CONFIG_EMERG_WR, Some(&byte)) = (offset, data.first())
            && self.output.len() < OUTPUT_MAX
        {
            self.output.push(byte);
        }
    }
    fn activate(&mut self, rings: &mut Rings<'_>) {
        self.receive(rings);
        self.transmit(rings);
    }
    fn notified(&mut self, queue: u16, rings: &mut Rings<'_>) {
        match queue {
            reg::QUEUE_RECEIVE => self.receive(rings),
            _ => self.transmit(rings),
        }
    }
    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved> {
        Ok(VirtioDeviceSaved::Console {
            cols: self.cols,
            rows: self.rows,
            output: self.output.clone(),
            input: self.input.iter().copied().collect(),
            stalled: self.stalled,
            partial: self.partial.as_ref().map(|(chain, taken)| (chain.save(), *taken)),
        })
    }
    fn load(&mut self, saved: &VirtioDeviceSaved, rings: &mut Rings<'_>) -> Result<(), Unfit> {
        let VirtioDeviceSaved::Console { cols, rows, output, input, stalled, partial } = saved else {
            return Err(another_kind());
        };
        let partial =
            partial.as_ref().map(|(chain, taken)| Ok((Chain::load(chain, rings.memory())?, *taken)));
        self.partial = partial.transpose()?;
        (self.cols, self.rows, self.stalled) = (*cols, *rows, *stalled);
        self.output = output.iter().copied().take(OUTPUT_MAX).collect();
        self.input = input.iter().copied().take(INPUT_MAX).collect();
        Ok(())
    }
    fn reset(&mut self) {
        self.output.clear();
        self.input.clear();
        self.stalled = false;
        self.partial = None;
    }
}
