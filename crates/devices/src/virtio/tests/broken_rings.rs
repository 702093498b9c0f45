//! Whatever the guest writes into its rings: no panic, no endless loop, nothing touched outside memory.

use super::*;
use crate::virtio::blk::{BlkKind, BlkOutcome};
use crate::virtio::mock::MockQueue;
use crate::virtio::net::PACKET_MAX;
use crate::virtio::{Balloon, MEM_BLOCK, Mem, Rng};
use proptest::prelude::*;
use viv_arch::virtio::{split, status};

fn needs_reset<T: Registers>(driver: &mut MockDriver<T>) -> bool {
    driver.transport.status() & status::DEVICE_NEEDS_RESET != 0
}

fn rng_with(write: impl Fn(&mut MockQueue)) -> bool {
    let mut driver = on_pci(Rng::new());
    write(&mut driver.queues[0]);
    driver.transport.notify(0);
    needs_reset(&mut driver)
}

const BUFFER: Gpa = Gpa(0x10_0000);

#[test]
fn a_chain_that_loops_needs_a_reset() {
    assert!(rng_with(|queue| {
        queue.descriptor(0, BUFFER, 1, split::DESC_F_NEXT | split::DESC_F_WRITE, 1);
        queue.descriptor(1, BUFFER, 1, split::DESC_F_NEXT | split::DESC_F_WRITE, 0);
        queue.make_available(0);
    }));
}

#[test]
fn a_descriptor_outside_the_table_needs_a_reset() {
    assert!(rng_with(|queue| queue.make_available(64)));
    assert!(rng_with(|queue| {
        queue.descriptor(0, BUFFER, 1, split::DESC_F_NEXT, 64);
        queue.make_available(0);
    }));
}

#[test]
fn a_buffer_outside_memory_needs_a_reset() {
    for (gpa, len) in [(MEMORY_LEN, 1), (MEMORY_LEN - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
        assert!(rng_with(|queue| {
            queue.descriptor(0, Gpa(gpa), len, split::DESC_F_WRITE, 0);
            queue.make_available(0);
        }));
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one_needs_a_reset() {
    assert!(rng_with(|queue| {
        queue.descriptor(0, BUFFER, 1, split::DESC_F_NEXT | split::DESC_F_WRITE, 1);
        queue.descriptor(1, BUFFER, 1, 0, 0);
        queue.make_available(0);
    }));
}

#[test]
fn more_available_entries_than_the_queue_has_needs_a_reset() {
    let mut driver = on_pci(Rng::new());
    driver.memory.store_u16(Gpa(driver.queues[0].rings[1].0 + 2), 65).unwrap();
    driver.transport.notify(0);
    assert!(needs_reset(&mut driver));
}

#[test]
fn an_indirect_table_is_one_whole_table_and_the_end_of_its_chain() {
    let indirect = |len: u32, flags: u16, inner_flags: u16| {
        rng_with(move |queue| {
            let table = MockQueue::new(queue.memory(), Gpa(0x20_0000), 16);
            table.descriptor(0, BUFFER, 8, split::DESC_F_WRITE | inner_flags, 1);
            table.descriptor(1, BUFFER, 8, split::DESC_F_WRITE, 0);
            queue.descriptor(0, Gpa(0x20_0000), len, split::DESC_F_INDIRECT | flags, 1);
            queue.make_available(0);
        })
    };
    assert!(!indirect(16, 0, 0));
    assert!(!indirect(32, 0, split::DESC_F_NEXT));
    assert!(indirect(16, 0, split::DESC_F_NEXT), "next is beyond the table");
    assert!(indirect(0, 0, 0) && indirect(17, 0, 0), "no whole entries");
    assert!(indirect(16, split::DESC_F_NEXT, 0), "chained further");
    assert!(indirect(32, 0, split::DESC_F_INDIRECT), "nested");
}

#[test]
fn a_long_indirect_table_is_followed_but_an_endless_one_is_not() {
    let run = |count: u16, last_next: Option<u16>| {
        rng_with(move |queue| {
            let table = MockQueue::new(queue.memory(), Gpa(0x20_0000), count);
            for index in 0..count {
                let next = if index + 1 == count { last_next } else { Some(index + 1) };
                let flags = split::DESC_F_WRITE | if next.is_some() { split::DESC_F_NEXT } else { 0 };
                table.descriptor(index, BUFFER, 1, flags, next.unwrap_or(0));
            }
            queue.descriptor(0, Gpa(0x20_0000), u32::from(count) * 16, split::DESC_F_INDIRECT, 0);
            queue.make_available(0);
        })
    };
    assert!(!run(256, None), "longer than the queue, as Linux does");
    assert!(run(256, Some(0)));
    assert!(run(1100, None), "longer than we take");
}

#[test]
fn rings_outside_memory_or_misaligned_need_a_reset() {
    for rings in [
        [Gpa(8), Gpa(0x2000), Gpa(0x3000)],
        [Gpa(0), Gpa(0x2001), Gpa(0x3000)],
        [Gpa(0), Gpa(0x2000), Gpa(0x3002)],
        [Gpa(MEMORY_LEN), Gpa(0x2000), Gpa(0x3000)],
        [Gpa(0), Gpa(MEMORY_LEN - 16), Gpa(0x3000)],
        [Gpa(0), Gpa(0x2000), Gpa(u64::MAX - 3)],
    ] {
        let mut function = function(Rng::new(), &memory());
        function.set_status(3);
        function.set_driver_features(1 << 32);
        function.set_status(11);
        function.enable_queue(0, 64, rings);
        assert_eq!(function.status() & status::DEVICE_NEEDS_RESET, status::DEVICE_NEEDS_RESET, "{rings:?}");
        function.set_status(0);
        assert_eq!(function.status(), 0, "a reset mends it");
    }
}

/// Fills both the rings and a part of memory with noise that is likely to mean something.
fn noise() -> impl Strategy<Value = Vec<(u16, u64, u32, u16, u16)>> {
    let address = prop_oneof![0..MEMORY_LEN, MEMORY_LEN - 64..MEMORY_LEN + 64, any::<u64>()];
    let len = prop_oneof![0..64u32, Just(16), Just(512), any::<u32>()];
    proptest::collection::vec((0..64u16, address, len, 0..8u16, 0..66u16), 1..64)
}

/// A device with random descriptors, random available entries and random register writes.
fn run_wild<D: VirtioDevice>(
    device: D,
    descriptors: &[(u16, u64, u32, u16, u16)],
    heads: &[(u16, u16)],
    writes: &[(u64, u8, u64)],
    mut host: impl FnMut(&mut VirtioPci<D>),
) {
    let mut driver = on_pci(device);
    let count = driver.queues.len();
    for &(index, addr, len, flags, next) in descriptors {
        driver.queues[usize::from(next) % count].descriptor(index, Gpa(addr), len, flags, next);
    }
    for &(queue, head) in heads {
        let queue = usize::from(queue) % count;
        driver.queues[queue].make_available(head);
        driver.transport.notify(queue as u16);
        host(&mut driver.transport);
        PciFunction::take_interrupts(&mut driver.transport);
    }
    for &(offset, size, value) in writes {
        driver.transport.bar_write(0, offset, 1 << (size % 4), value);
        driver.transport.bar_read(0, offset, 1 << (size % 4));
        driver.transport.config_write((offset % 0x100) as u16, 1 << (size % 3), value as u32);
        host(&mut driver.transport);
        PciFunction::take_interrupts(&mut driver.transport);
    }
}

type Heads = Vec<(u16, u16)>;
type Writes = Vec<(u64, u8, u64)>;

fn actions() -> impl Strategy<Value = (Heads, Writes)> {
    let value = prop_oneof![0..16u64, any::<u64>()];
    (
        proptest::collection::vec((0..4u16, 0..70u16), 0..80),
        proptest::collection::vec((0..0x6000u64, any::<u8>(), value), 0..60),
    )
}

proptest! {
    #[test]
    fn a_wild_driver_never_breaks_blk(descriptors in noise(), (heads, writes) in actions()) {
        let settings = BlkSettings { bytes: 1 << 20, read_only: false, block_size: 512, queues: 2, id: String::new() };
        run_wild(Blk::new(settings), &descriptors, &heads, &writes, |function| {
            let (blk, mut rings) = function.device();
            for request in blk.take_requests() {
                let bytes = total(&request.segments);
                if matches!(request.kind, BlkKind::Read | BlkKind::Write { .. }) {
                    assert!(request.sector + bytes / 512 <= 2048 && bytes.is_multiple_of(512));
                }
                for segment in &request.segments {
                    assert!(rings.memory().host_range(segment.gpa, segment.len.into()).is_ok());
                }
                blk.complete(&mut rings, request.tag, BlkOutcome::Ok);
            }
        });
    }

    #[test]
    fn a_wild_driver_never_breaks_the_console(descriptors in noise(), (heads, writes) in actions()) {
        run_wild(Console::with_ports(80, 25, &["one".to_string()]), &descriptors, &heads, &writes, |function| {
            let (console, mut rings) = function.device();
            console.input(&mut rings, 0, b"some input");
            assert!(console.take_output(&mut rings, 0).len() <= 8 << 20);
        });
    }

    #[test]
    fn a_wild_driver_never_breaks_rng(descriptors in noise(), (heads, writes) in actions()) {
        run_wild(Rng::new(), &descriptors, &heads, &writes, |function| {
            let (rng, mut rings) = function.device();
            if let Some(count) = rng.demand() {
                rng.provide(&mut rings, &vec![1; count]);
            }
        });
    }

    #[test]
    fn a_wild_driver_never_breaks_the_balloon(descriptors in noise(), (heads, writes) in actions()) {
        run_wild(Balloon::new(), &descriptors, &heads, &writes, |function| {
            let (balloon, mut rings) = function.device();
            balloon.ask_stats(&mut rings);
            for given in balloon.take_given() {
                assert!(given.ranges.iter().all(|(gpa, len)| gpa.0 % 4096 == 0 && len % 4096 == 0));
                balloon.taken(&mut rings, given.tag);
            }
        });
    }

    #[test]
    fn a_wild_driver_never_breaks_mem(descriptors in noise(), (heads, writes) in actions(), wanted in 0..9u64) {
        run_wild(Mem::new(Gpa(1 << 30), 8 * MEM_BLOCK), &descriptors, &heads, &writes, |function| {
            let (mem, mut rings) = function.device();
            mem.want(&mut rings, wanted * MEM_BLOCK);
            for given in mem.take_given() {
                mem.taken(&mut rings, given.tag);
            }
            assert!(mem.plugged() <= 8 * MEM_BLOCK);
        });
    }

    #[test]
    fn a_wild_driver_never_breaks_vsock(descriptors in noise(), (heads, writes) in actions()) {
        run_wild(Vsock::new(3), &descriptors, &heads, &writes, |function| {
            let (vsock, mut rings) = function.device();
            if let Some(stream) = vsock.connect(&mut rings, 1024) {
                vsock.send(&mut rings, stream, b"data");
            }
            vsock.resume(&mut rings);
            vsock.take_events();
        });
    }

    #[test]
    fn a_wild_driver_never_breaks_the_network_card(descriptors in noise(), (heads, writes) in actions()) {
        let settings = NetSettings { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, pairs: 2 };
        let mut packet = Vec::new();
        run_wild(Net::new(settings), &descriptors, &heads, &writes, |function| {
            let (net, mut rings) = function.device();
            for _ in 0..4 {
                if net.transmit(&mut rings, &mut packet) {
                    assert!((26..=PACKET_MAX).contains(&packet.len()));
                    let word = |at: usize| usize::from(u16::from_le_bytes([packet[at], packet[at + 1]]));
                    let end = word(6) + word(8) + 2;
                    assert!(packet[0] & 1 == 0 || end <= packet.len() - 12, "an unfinished checksum lies in the frame");
                }
            }
            packet.clear();
            packet.resize(12 + 3000, 0xff);
            packet[..12].fill(0);
            net.receive(&mut rings, &packet);
        });
    }
}
