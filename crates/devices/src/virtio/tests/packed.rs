//! Packed virtqueues (§2.8), with a driver of our own that plays the other side.

use super::*;
use crate::virtio::{Queue, RingFeatures, Rng};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use viv_arch::virtio::{feature, packed, split, status};

const RING: u64 = 0;
const DRIVER: u64 = 0x8000;
const DEVICE: u64 = 0x8100;
const RINGS: [Gpa; 3] = [Gpa(RING), Gpa(DRIVER), Gpa(DEVICE)];
const BUFFERS: u64 = 0x1_0000;
const TABLES: u64 = 0x10_0000;

/// The driver's side of one packed virtqueue.
struct Driver {
    memory: GuestMemory,
    size: u16,
    next: u16,
    wrap: bool,
    used: u16,
    used_wrap: bool,
    /// Places taken by each chain.
    chains: BTreeMap<u16, u16>,
}

type Buffer = (u64, u32, u16);

impl Driver {
    fn new(memory: &GuestMemory, size: u16) -> Driver {
        Driver {
            memory: memory.clone(),
            size,
            next: 0,
            wrap: true,
            used: 0,
            used_wrap: true,
            chains: BTreeMap::new(),
        }
    }

    fn free(&self) -> u16 {
        self.size - self.chains.values().sum::<u16>()
    }

    fn descriptor(&self, table: u64, index: u16, (addr, len, flags): Buffer, id: u16) {
        let raw = u128::from(addr) | u128::from(len) << 64 | u128::from(id) << 96 | u128::from(flags) << 112;
        self.memory.write(Gpa(table + 16 * u64::from(index)), &raw.to_le_bytes()).unwrap();
    }

    /// Makes a chain available: the first descriptor's flags last, though nobody looks meanwhile.
    fn offer(&mut self, id: u16, buffers: &[Buffer]) {
        let count = buffers.len() as u16;
        for (n, &(addr, len, flags)) in buffers.iter().enumerate() {
            let more = if n + 1 < buffers.len() { split::DESC_F_NEXT } else { 0 };
            let mark = if self.wrap { packed::DESC_F_AVAIL } else { packed::DESC_F_USED };
            self.descriptor(RING, self.next, (addr, len, flags | more | mark), id);
            self.next += 1;
            if self.next == self.size {
                (self.next, self.wrap) = (0, !self.wrap);
            }
        }
        self.chains.insert(id, count);
    }

    fn take_used(&mut self) -> Option<(u16, u32)> {
        let at = RING + 16 * u64::from(self.used);
        let flags = self.memory.load_u16(Gpa(at + 14)).unwrap();
        let (avail, used) = (flags & packed::DESC_F_AVAIL != 0, flags & packed::DESC_F_USED != 0);
        if avail != self.used_wrap || used != self.used_wrap {
            return None;
        }
        let id = self.memory.load_u16(Gpa(at + 12)).unwrap();
        let len = self.memory.load_u32(Gpa(at + 8)).unwrap();
        assert_eq!(flags & split::DESC_F_WRITE != 0, len != 0);
        self.used += self.chains.remove(&id).expect("an ID that the device holds");
        if self.used >= self.size {
            (self.used, self.used_wrap) = (self.used - self.size, !self.used_wrap);
        }
        Some((id, len))
    }

    fn want(&self, index: u16, wrap: bool, flags: u16) {
        self.memory.store_u16(Gpa(DRIVER), index | u16::from(wrap) << 15).unwrap();
        self.memory.store_u16(Gpa(DRIVER + 2), flags).unwrap();
    }
}

const ALL: RingFeatures = RingFeatures { indirect: true, event_idx: true, packed: true };

fn pair(size: u16) -> (Driver, Queue, GuestMemory) {
    let memory = memory();
    let mut queue = Queue::new(64);
    queue.set_size(size);
    queue.set_addresses(RINGS);
    queue.enable(&memory, ALL).unwrap();
    (Driver::new(&memory, size), queue, memory)
}

const W: u16 = split::DESC_F_WRITE;

fn one(id: u16) -> [Buffer; 1] {
    [(BUFFERS + 64 * u64::from(id), 16, W)]
}

proptest! {
    /// Whatever the size of the ring and the order of completion, each chain comes out as it went in, and goes back
    /// once.
    #[test]
    fn chains_go_through_in_any_order_of_completion(
        size in 1..20u16,
        steps in proptest::collection::vec((any::<u8>(), 0..6usize, 0..6usize, any::<bool>()), 1..200),
    ) {
        let (mut driver, mut queue, memory) = pair(size);
        let (mut ids, mut offered) = ((0..size).collect::<Vec<u16>>(), VecDeque::new());
        let mut held: Vec<(u16, u32)> = Vec::new();
        for (pick, readable, writable, indirect) in steps {
            let buffers: Vec<Buffer> = (0..readable + writable)
                .map(|n| (BUFFERS + 256 * n as u64, 1 + u32::from(pick), if n < readable { 0 } else { W }))
                .collect();
            let places = if indirect { 1 } else { buffers.len() as u16 };
            if pick % 3 != 0 && !buffers.is_empty() && places <= driver.free() {
                let id = ids.remove(usize::from(pick) % ids.len());
                if indirect {
                    let table = TABLES + 0x400 * u64::from(id);
                    for (n, buffer) in buffers.iter().enumerate() {
                        driver.descriptor(table, n as u16, *buffer, 0);
                    }
                    driver.offer(id, &[(table, 16 * buffers.len() as u32, split::DESC_F_INDIRECT)]);
                } else {
                    driver.offer(id, &buffers);
                }
                offered.push_back((id, readable, writable));
            } else if pick % 2 == 0 {
                let chain = queue.pop(&memory).unwrap();
                let expected = offered.pop_front();
                prop_assert_eq!(chain.is_some(), expected.is_some());
                if let Some((chain, (id, readable, writable))) = chain.zip(expected) {
                    prop_assert_eq!((chain.head(), chain.readable.len(), chain.writable.len()), (id, readable, writable));
                    held.push((id, chain.writable_len() as u32));
                }
            } else if !held.is_empty() {
                let (id, len) = held.remove(usize::from(pick) % held.len());
                queue.push(&memory, id, len).unwrap();
                prop_assert_eq!(driver.take_used(), Some((id, len)));
                prop_assert_eq!(driver.take_used(), None);
                ids.push(id);
            }
        }
    }
}

#[test]
fn what_breaks_the_rules_is_an_error() {
    let broken = |act: &dyn Fn(&mut Driver)| {
        let (mut driver, mut queue, memory) = pair(8);
        act(&mut driver);
        std::iter::from_fn(|| queue.pop(&memory).transpose()).take(9).any(|chain| chain.is_err())
    };
    assert!(!broken(&|driver| (0..8).for_each(|id| driver.offer(id, &one(id)))));
    let ring = packed::DESC_F_AVAIL | split::DESC_F_NEXT;
    assert!(
        broken(&|driver| (0..8).for_each(|n| driver.descriptor(RING, n, (BUFFERS, 1, ring), 0))),
        "endless"
    );
    assert!(broken(&|driver| (0..2).for_each(|_| driver.offer(5, &one(5)))), "an ID in use");
    assert!(
        broken(&|driver| driver.offer(0, &[(BUFFERS, 1, W), (BUFFERS, 1, 0)])),
        "readable after writable"
    );
    for (gpa, len) in [(MEMORY_LEN, 1), (MEMORY_LEN - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
        assert!(broken(&|driver| driver.offer(0, &[(gpa, len, W)])), "outside memory");
    }
    let table = |len| (TABLES, len, split::DESC_F_INDIRECT);
    assert!(broken(&|driver| driver.offer(0, &[table(8)])), "half an entry");
    assert!(broken(&|driver| driver.offer(0, &[table(0)])), "no entry");
    assert!(broken(&|driver| driver.offer(0, &[table(16), (BUFFERS, 1, W)])), "chained further");
    assert!(broken(&|driver| driver.offer(0, &[(BUFFERS, 1, W), table(16)])), "in a chain");
    assert!(broken(&|driver| driver.offer(0, &[table(16 * 1025)])), "longer than we take");
    assert!(broken(&|driver| {
        driver.descriptor(TABLES, 0, table(16), 0);
        driver.offer(0, &[table(16)]);
    }));
}

#[test]
fn a_driver_that_overwrites_what_the_device_holds_is_broken() {
    let (mut driver, mut queue, memory) = pair(4);
    (0..4).for_each(|id| driver.offer(id, &one(id)));
    assert_eq!(std::iter::from_fn(|| queue.pop(&memory).unwrap()).count(), 4);
    driver.offer(9, &one(9));
    assert!(queue.pop(&memory).is_err());
}

#[test]
fn an_interrupt_comes_when_the_driver_wants_one() {
    let (mut driver, mut queue, memory) = pair(4);
    // Descriptors used one by one, around the ring three times; where is an interrupt?
    let mut run = |flags: u16, wanted: u16, wrap: bool, count: usize| -> Vec<bool> {
        driver.want(wanted, wrap, flags);
        (0..count)
            .map(|_| {
                driver.offer(1, &one(1));
                let chain = queue.pop(&memory).unwrap().unwrap();
                queue.push(&memory, chain.head(), 16).unwrap();
                assert!(driver.take_used().is_some());
                queue.wants_interrupt(&memory).unwrap()
            })
            .collect()
    };
    assert_eq!(run(0, 0, true, 4), [true; 4], "always");
    assert_eq!(run(packed::EVENT_F_DISABLE, 0, true, 4), [false; 4], "never");
    // Now at place 0 with the wrap counter at its start value: two times round.
    assert_eq!(run(packed::EVENT_F_DESC, 2, true, 4), [false, false, true, false]);
    assert_eq!(run(packed::EVENT_F_DESC, 0, false, 4), [true, false, false, false]);
    assert_eq!(run(packed::EVENT_F_DESC, 1, false, 4), [false; 4], "of the round before");
}

#[test]
fn an_interrupt_is_wanted_when_several_passed_the_place() {
    let (mut driver, mut queue, memory) = pair(4);
    driver.want(3, true, packed::EVENT_F_DESC);
    let mut round = |from: u16, count: u16| {
        (0..count).for_each(|n| driver.offer(from + n, &one(n)));
        while let Some(chain) = queue.pop(&memory).unwrap() {
            queue.push(&memory, chain.head(), 1).unwrap();
        }
        while driver.take_used().is_some() {}
        queue.wants_interrupt(&memory).unwrap()
    };
    assert!(!round(0, 3));
    assert!(round(0, 3), "from place 3 around to 1");
    assert!(!round(0, 1));
}

#[test]
fn an_empty_ring_asks_for_a_notification_of_the_next_descriptor() {
    let (mut driver, mut queue, memory) = pair(3);
    for (place, wrap) in [(0, true), (1, true), (2, true), (0, false), (1, false)] {
        assert!(queue.pop(&memory).unwrap().is_none());
        assert_eq!(memory.load_u16(Gpa(DEVICE)).unwrap(), place | u16::from(wrap) << 15);
        assert_eq!(memory.load_u16(Gpa(DEVICE + 2)).unwrap(), packed::EVENT_F_DESC);
        driver.offer(0, &one(0));
        let chain = queue.pop(&memory).unwrap().unwrap();
        queue.push(&memory, chain.head(), 0).unwrap();
        driver.take_used().unwrap();
    }
}

#[test]
fn a_split_ring_has_a_power_of_two_and_a_packed_one_any_size() {
    for packed in [false, true] {
        let mut queue = Queue::new(64);
        queue.set_size(5);
        queue.set_addresses(RINGS);
        assert_eq!(queue.enable(&memory(), RingFeatures { packed, ..ALL }).is_ok(), packed);
    }
}

fn through<T: Registers>(mut transport: T, memory: &GuestMemory, provide: impl Fn(&mut T)) {
    let up = status::ACKNOWLEDGE | status::DRIVER;
    transport.set_status(up);
    assert_ne!(transport.device_features() & feature::RING_PACKED, 0);
    transport.set_driver_features(feature::VERSION_1 | feature::RING_PACKED);
    transport.set_status(up | status::FEATURES_OK);
    transport.enable_queue(0, 7, RINGS);
    transport.set_status(up | status::FEATURES_OK | status::DRIVER_OK);
    let mut driver = Driver::new(memory, 7);
    for round in 0..20u16 {
        driver.offer(round, &[(BUFFERS, 8, W), (BUFFERS + 64, 8, W)]);
        transport.notify(0);
        provide(&mut transport);
        assert_eq!(driver.take_used(), Some((round, 16)));
        assert_eq!(memory.load_u32(Gpa(BUFFERS + 68)).unwrap(), 0x0707_0707);
    }
    assert_eq!(transport.status() & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_device_does_not_notice_which_rings_it_has() {
    let ram = memory();
    through(function(Rng::new(), &ram), &ram, |function| {
        let (rng, mut rings) = function.device();
        rng.provide(&mut rings, &[7; 16]);
    });
    let ram = memory();
    through(VirtioMmio::new(Rng::new(), ram.clone()), &ram, |window| {
        let (rng, mut rings) = window.device();
        rng.provide(&mut rings, &[7; 16]);
    });
}

#[test]
fn chains_that_go_back_together_are_found_in_their_order() {
    let (mut driver, mut queue, memory) = pair(8);
    for _ in 0..5 {
        for id in 0..3 {
            driver.offer(id, &one(id));
        }
        for id in 0..3 {
            assert_eq!(queue.pop(&memory).unwrap().unwrap().head(), id);
        }
        queue.push_all(&memory, &[(2, 5), (0, 6), (1, 7)]).unwrap();
        let used: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
        assert_eq!(used, [(2, 5), (0, 6), (1, 7)]);
    }
}
