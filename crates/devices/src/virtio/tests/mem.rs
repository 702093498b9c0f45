use super::*;
use crate::virtio::{Giving, MEM_BLOCK, Mem};
use viv_arch::virtio::{mem as reg, status};

/// Behind the driver's own memory.
const START: u64 = 2 << 30;

struct Guest(MockDriver<VirtioPci<Mem>>);

impl Guest {
    fn new(blocks: u64) -> Guest {
        Guest(on_pci(Mem::new(Gpa(START), blocks * MEM_BLOCK)))
    }

    fn want(&mut self, blocks: u64) {
        let (mem, mut rings) = self.0.transport.device();
        mem.want(&mut rings, blocks * MEM_BLOCK);
    }

    /// Sends a request and returns response and state; the machine takes what it is given.
    fn ask(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        let mut bytes = [0; reg::REQUEST_LEN];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
        let (request, response) = (self.0.buffer(&bytes), self.0.buffer(&[0xff; reg::RESPONSE_LEN]));
        self.0.submit(0, &[request], &[response]).unwrap();
        let (mem, mut rings) = self.0.transport.device();
        for given in mem.take_given() {
            mem.taken(&mut rings, given.tag);
        }
        self.0.queues[0].take_used().expect("an answer");
        let content = self.0.content(response);
        (u16::from_le_bytes([content[0], content[1]]), u16::from_le_bytes([content[8], content[9]]))
    }

    fn word(&mut self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|n| self.0.transport.config((at + n) as u64)))
    }
}

const ACK: (u16, u16) = (reg::RESP_ACK, 0);

#[test]
fn the_driver_plugs_what_the_host_wants_and_not_more() {
    let mut guest = Guest::new(8);
    assert_eq!(guest.ask(reg::REQ_PLUG, START, 1).0, reg::RESP_NACK);
    guest.want(3);
    assert_eq!(guest.word(reg::CONFIG_REQUESTED_SIZE), 3 * MEM_BLOCK);
    assert_eq!(guest.ask(reg::REQ_PLUG, START + 2 * MEM_BLOCK, 3), ACK);
    assert_eq!(guest.word(reg::CONFIG_PLUGGED_SIZE), 3 * MEM_BLOCK);
    assert_eq!(guest.ask(reg::REQ_PLUG, START, 1).0, reg::RESP_NACK);
    guest.want(100);
    assert_eq!(guest.word(reg::CONFIG_REQUESTED_SIZE), 8 * MEM_BLOCK, "no more than there is");
}

#[test]
fn what_is_unplugged_is_given_to_the_machine() {
    let mut guest = Guest::new(8);
    guest.want(4);
    assert_eq!(guest.ask(reg::REQ_PLUG, START, 4), ACK);
    assert_eq!(guest.ask(reg::REQ_UNPLUG, START + MEM_BLOCK, 2), ACK);
    let state =
        |guest: &mut Guest, first: u64, count| guest.ask(reg::REQ_STATE, START + first * MEM_BLOCK, count).1;
    assert_eq!(state(&mut guest, 0, 1), reg::STATE_PLUGGED);
    assert_eq!(state(&mut guest, 1, 2), reg::STATE_UNPLUGGED);
    assert_eq!(state(&mut guest, 0, 4), reg::STATE_MIXED);
    assert_eq!(guest.ask(reg::REQ_UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(guest.word(reg::CONFIG_PLUGGED_SIZE), 0);
}

#[test]
fn blocks_outside_or_in_the_wrong_state_are_an_error() {
    let mut guest = Guest::new(4);
    guest.want(4);
    assert_eq!(guest.ask(reg::REQ_PLUG, START, 2), ACK);
    for (kind, address, count) in [
        (reg::REQ_PLUG, START, 1),
        (reg::REQ_PLUG, START + MEM_BLOCK, 2),
        (reg::REQ_UNPLUG, START + 2 * MEM_BLOCK, 1),
        (reg::REQ_UNPLUG, START, 3),
        (reg::REQ_PLUG, START + 3 * MEM_BLOCK, 2),
        (reg::REQ_PLUG, START - MEM_BLOCK, 1),
        (reg::REQ_PLUG, START + 2 * MEM_BLOCK + 4096, 1),
        (reg::REQ_PLUG, START + 2 * MEM_BLOCK, 0),
        (reg::REQ_STATE, u64::MAX, u16::MAX),
        (77, START, 1),
    ] {
        assert_eq!(guest.ask(kind, address, count).0, reg::RESP_ERROR, "{kind} {address:#x} {count}");
    }
}

#[test]
fn a_reset_keeps_what_is_plugged_and_waits_for_what_goes() {
    let mut guest = Guest::new(4);
    guest.want(2);
    assert_eq!(guest.ask(reg::REQ_PLUG, START, 2), ACK);
    let mut bytes = [0; reg::REQUEST_LEN];
    bytes[0] = reg::REQ_UNPLUG as u8;
    bytes[8..16].copy_from_slice(&START.to_le_bytes());
    bytes[16] = 1;
    let (request, response) = (guest.0.buffer(&bytes), guest.0.buffer(&[0; reg::RESPONSE_LEN]));
    guest.0.submit(0, &[request], &[response]).unwrap();
    let tag = guest.0.transport.device().0.take_given()[0].tag;
    guest.0.transport.set_status(0);
    assert_ne!(guest.0.transport.status(), 0);
    let (mem, mut rings) = guest.0.transport.device();
    mem.taken(&mut rings, tag);
    assert_eq!(guest.0.transport.status() & !status::DEVICE_NEEDS_RESET, 0);
    assert_eq!(guest.word(reg::CONFIG_PLUGGED_SIZE), MEM_BLOCK);
}
