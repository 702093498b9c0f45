//! The control queue (virtio 1.3 §5.1.6.5): class, command, data, and one byte for the answer.

use super::{CONTROL_QUEUE_SIZE, Net};
use crate::virtio::{Chain, Rings};
use viv_arch::virtio::net as reg;

/// Most bytes of a command that are looked at.
const COMMAND_MAX: usize = 16 << 10;

impl Net {
    pub(super) fn command(&mut self, queue: u16, rings: &mut Rings<'_>) {
        // Beyond its queue gets only a guest that refills it while we empty it.
        for _ in 0..CONTROL_QUEUE_SIZE {
            let Some(chain) = rings.pop(queue) else { return };
            let done = self.carry_out(rings, &chain).is_some();
            let answer = if done { reg::CTRL_OK } else { reg::CTRL_ERR };
            let written = chain.write_at(rings.memory(), 0, &[answer]);
            rings.push(queue, chain.head(), written as u32);
        }
        rings.fail();
    }

    /// `None`: refused.
    fn carry_out(&mut self, rings: &Rings<'_>, chain: &Chain) -> Option<()> {
        let len = usize::try_from(chain.readable_len()).ok().filter(|len| *len <= COMMAND_MAX)?;
        let mut bytes = vec![0; len];
        if chain.read_at(rings.memory(), 0, &mut bytes) != len {
            return None;
        }
        let ([class, command], data) = bytes.split_first_chunk()?;
        let has = |feature| (rings.features() & feature != 0).then_some(());
        match (*class, *command) {
            (reg::CTRL_RX, command) => {
                has(reg::F_CTRL_RX)?;
                let [on] = *data.first_chunk()?;
                if command > reg::CTRL_RX_ALLMULTI {
                    has(reg::F_CTRL_RX_EXTRA)?;
                }
                self.filter.set_mode(command, on != 0).then_some(())
            }
            (reg::CTRL_MAC, reg::CTRL_MAC_TABLE_SET) => {
                has(reg::F_CTRL_RX)?;
                self.filter.set_tables(data).then_some(())
            }
            (reg::CTRL_MAC, reg::CTRL_MAC_ADDR_SET) => {
                has(reg::F_CTRL_MAC_ADDR)?;
                self.mac = *data.first_chunk()?;
                Some(())
            }
            (reg::CTRL_MQ, reg::CTRL_MQ_VQ_PAIRS_SET) => {
                has(reg::F_MQ)?;
                let pairs = u16::from_le_bytes(*data.first_chunk()?);
                if pairs == 0 || pairs > self.settings.pairs {
                    return None;
                }
                self.pairs = pairs;
                self.next_pair = 0;
                self.wanted = true;
                Some(())
            }
            _ => None,
        }
    }
}
