use super::*;
use crate::virtio::net::{Net, NetSettings, Received};
use viv_arch::virtio::{net as reg, status};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
const HEADER: usize = reg::HEADER_LEN;

fn card(pairs: u16) -> Net {
    Net::new(NetSettings { mac: MAC, mtu: 9000, pairs })
}

/// A frame for `to` of so many bytes after the addresses.
fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [to.as_slice(), &[2, 0, 0, 0, 0, 9], &[0x88, 0xb5]].concat();
    frame.extend((0..len).map(|n| n as u8));
    frame
}

/// A packet with nothing left to do.
fn packet(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER], frame].concat()
}

/// A header: flags, gso_type, gso_size, csum_start, csum_offset.
fn header(flags: u8, gso_type: u8, gso_size: u16, start: u16, offset: u16) -> [u8; HEADER] {
    let [g0, g1] = gso_size.to_le_bytes();
    let [s0, s1] = start.to_le_bytes();
    let [o0, o1] = offset.to_le_bytes();
    [flags, gso_type, 54, 0, g0, g1, s0, s1, o0, o1, 0, 0]
}

type Driver = MockDriver<VirtioPci<Net>>;

fn with(features: u64, pairs: u16) -> Driver {
    let memory = memory();
    let queues = card(pairs).queue_sizes().len() as u16;
    MockDriver::new(function(card(pairs), &memory), memory, features, queues, 64)
}

fn transmit(driver: &mut Driver) -> Option<Vec<u8>> {
    let (net, mut rings) = driver.transport.device();
    let mut packet = Vec::new();
    net.transmit(&mut rings, &mut packet).then_some(packet)
}

fn receive(driver: &mut Driver, packet: &[u8]) -> Received {
    let (net, mut rings) = driver.transport.device();
    net.receive(&mut rings, packet)
}

fn command(driver: &mut Driver, queue: u16, class: u8, command: u8, data: &[u8]) -> u8 {
    let request = driver.buffer(&[&[class, command], data].concat());
    let answer = driver.buffer(&[0xee]);
    driver.submit(queue, &[request], &[answer]).unwrap();
    assert!(driver.queues[usize::from(queue)].take_used().is_some());
    driver.content(answer)[0]
}

#[test]
fn the_configuration_says_address_link_queues_and_mtu() {
    let mut driver = with(SPLIT, 4);
    let bytes: Vec<u8> = (0..12).map(|at| driver.transport.config(at)).collect();
    assert_eq!(bytes, [MAC.as_slice(), &[1, 0], &[4, 0], &9000u16.to_le_bytes()].concat());
    let (net, mut rings) = driver.transport.device();
    net.set_link(&mut rings, false);
    assert_eq!(driver.transport.config(6), 0);
    assert_eq!(receive(&mut driver, &packet(&frame(MAC, 100))), Received::Dropped, "the cable is out");
}

#[test]
fn a_frame_goes_out_as_it_was_whatever_its_pieces() {
    let mut driver = with(SPLIT, 1);
    let sent = packet(&frame(BROADCAST, 200));
    let pieces = [&sent[..5], &sent[5..13], &sent[13..]].map(|piece| driver.buffer(piece));
    driver.submit(1, &pieces, &[]).unwrap();
    assert!(driver.transport.device().0.take_wanted());
    assert_eq!(transmit(&mut driver), Some(sent));
    assert_eq!(transmit(&mut driver), None);
    assert_eq!(driver.queues[1].take_used().map(|used| used.1), Some(0));
}

#[test]
fn what_is_no_packet_goes_back_and_nowhere_else() {
    let mut driver = with(SPLIT, 1);
    let long = vec![0; HEADER + 65535 + 19];
    let whole = |header: [u8; HEADER], len| [header.as_slice(), &frame(MAC, len)].concat();
    let wrong = [
        vec![0; HEADER],
        vec![0; HEADER + 13],
        long,
        whole(header(1, 0, 0, 113, 0), 100),
        whole(header(1, 0, 0, 0xffff, 0xffff), 100),
        whole(header(0, 1, 1460, 34, 16), 100),
        whole(header(1, 1, 0, 34, 16), 100),
        whole(header(1, 3, 1460, 34, 16), 100),
        whole(header(1, 0x81, 1460, 34, 16), 100),
    ];
    for bytes in &wrong {
        let buffer = driver.buffer(bytes);
        driver.submit(1, &[buffer], &[]).unwrap();
    }
    let good = driver.buffer(&whole(header(1, 1, 1460, 34, 16), 3000));
    driver.submit(1, &[good], &[]).unwrap();
    assert_eq!(transmit(&mut driver), Some(driver.content(good)));
    assert_eq!(transmit(&mut driver), None);
    assert_eq!(std::iter::from_fn(|| driver.queues[1].take_used()).count(), wrong.len() + 1);
    assert_eq!(driver.transport.status() & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn without_offloads_a_driver_may_leave_nothing_unfinished() {
    let mut driver = with(0, 1);
    let buffer = driver.buffer(&[header(1, 0, 0, 34, 16).as_slice(), &frame(MAC, 100)].concat());
    driver.submit(1, &[buffer], &[]).unwrap();
    assert_eq!(transmit(&mut driver), None);
    let large = [header(1, 1, 1460, 34, 16).as_slice(), &frame(MAC, 100)].concat();
    assert_eq!(receive(&mut driver, &large), Received::Unfinished);
}

#[test]
fn a_packet_is_spread_over_merged_buffers_that_appear_together() {
    let mut driver = with(SPLIT, 1);
    let buffers: Vec<_> = (0..4).map(|_| driver.buffer(&[0; 100])).collect();
    for buffer in &buffers[..2] {
        driver.submit(0, &[], &[*buffer]).unwrap();
    }
    let sent = packet(&frame(MAC, 300 - HEADER - 14));
    assert_eq!(receive(&mut driver, &sent), Received::NoBuffers);
    assert_eq!(driver.queues[0].take_used(), None, "half a packet is none");
    for buffer in &buffers[2..] {
        driver.submit(0, &[], &[*buffer]).unwrap();
    }
    assert_eq!(receive(&mut driver, &sent), Received::Done);
    let lengths: Vec<u32> = std::iter::from_fn(|| driver.queues[0].take_used()).map(|used| used.1).collect();
    assert_eq!(lengths, [100, 100, 100]);
    let got: Vec<u8> = buffers[..3].iter().flat_map(|buffer| driver.content(*buffer)).collect();
    assert_eq!(got[..10], [0; 10]);
    assert_eq!(got[10..12], 3u16.to_le_bytes());
    assert_eq!(got[12..], sent[12..]);
    assert_eq!(receive(&mut driver, &packet(&frame(MAC, 10))), Received::Done, "the fourth buffer is left");
}

#[test]
fn without_merging_a_packet_needs_one_buffer() {
    let mut driver = with(SPLIT & !reg::F_MRG_RXBUF, 1);
    let (small, large) = (driver.buffer(&[0; 60]), driver.buffer(&[0; 1600]));
    driver.submit(0, &[], &[small]).unwrap();
    driver.submit(0, &[], &[large]).unwrap();
    let sent = packet(&frame(MAC, 500));
    assert_eq!(receive(&mut driver, &sent), Received::Dropped, "the small buffer goes back empty");
    assert_eq!(driver.queues[0].take_used().map(|used| used.1), Some(0));
    assert_eq!(receive(&mut driver, &sent), Received::Done);
    assert_eq!(driver.queues[0].take_used().map(|used| used.1), Some(sent.len() as u32));
    assert_eq!(driver.content(large)[10..12], 1u16.to_le_bytes());
}

#[test]
fn the_driver_chooses_what_it_receives() {
    let mut driver = with(SPLIT, 1);
    let (other, group) = ([2, 0, 0, 0, 0, 7], [1, 0, 0x5e, 0, 0, 1]);
    for _ in 0..8 {
        let buffer = driver.buffer(&[0; 200]);
        driver.submit(0, &[], &[buffer]).unwrap();
    }
    let gets = |driver: &mut Driver, to| receive(driver, &packet(&frame(to, 60))) == Received::Done;
    assert_eq!([MAC, BROADCAST, other, group].map(|to| gets(&mut driver, to)), [true, true, false, false]);
    let table = [&1u32.to_le_bytes(), other.as_slice(), &1u32.to_le_bytes(), &group].concat();
    assert_eq!(command(&mut driver, 2, reg::CTRL_MAC, reg::CTRL_MAC_TABLE_SET, &table), reg::CTRL_OK);
    assert_eq!([other, group].map(|to| gets(&mut driver, to)), [true, true]);
    for mode in [reg::CTRL_RX_NOBCAST, reg::CTRL_RX_NOMULTI, reg::CTRL_RX_NOUNI] {
        assert_eq!(command(&mut driver, 2, reg::CTRL_RX, mode, &[1]), reg::CTRL_OK);
    }
    assert_eq!([MAC, BROADCAST, other, group].map(|to| gets(&mut driver, to)), [false; 4]);
    assert_eq!(command(&mut driver, 2, reg::CTRL_RX, reg::CTRL_RX_PROMISC, &[1]), reg::CTRL_OK);
    assert!(gets(&mut driver, [2, 0, 0, 0, 0, 8]));
    assert_eq!(command(&mut driver, 2, reg::CTRL_MAC, reg::CTRL_MAC_ADDR_SET, &other), reg::CTRL_OK);
    assert_eq!(driver.transport.device().0.mac(), other);
    driver.transport.set_status(0);
    assert_eq!(driver.transport.device().0.mac(), MAC, "a reset forgets it");
}

#[test]
fn wrong_commands_are_refused_and_harm_nothing() {
    let mut driver = with(SPLIT, 2);
    let huge = [u32::MAX.to_le_bytes(), 0u32.to_le_bytes()].concat();
    let wrong: [(u8, u8, &[u8]); 9] = [
        (reg::CTRL_RX, 6, &[1]),
        (reg::CTRL_RX, 0, &[]),
        (reg::CTRL_MAC, reg::CTRL_MAC_TABLE_SET, &huge),
        (reg::CTRL_MAC, reg::CTRL_MAC_TABLE_SET, &[0; 7]),
        (reg::CTRL_MAC, reg::CTRL_MAC_ADDR_SET, &[1; 5]),
        (reg::CTRL_MQ, reg::CTRL_MQ_VQ_PAIRS_SET, &[0, 0]),
        (reg::CTRL_MQ, reg::CTRL_MQ_VQ_PAIRS_SET, &[3, 0]),
        (reg::CTRL_MQ, 1, &[1, 0]),
        (9, 0, &[1, 0]),
    ];
    for (class, number, data) in wrong {
        assert_eq!(command(&mut driver, 4, class, number, data), reg::CTRL_ERR, "{class} {number} {data:?}");
    }
    assert_eq!(driver.transport.status() & status::DEVICE_NEEDS_RESET, 0);
}

/// IPv4, TCP, from 10.0.0.1:1 to 10.0.0.2:2, or back.
fn segment(back: bool) -> Vec<u8> {
    let mut frame = frame(MAC, 60);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let (from, to) = if back { (2, 1) } else { (1, 2) };
    frame[26..38].copy_from_slice(&[10, 0, 0, from, 10, 0, 0, to, 0, from, 0, to]);
    frame
}

#[test]
fn a_flow_comes_back_on_the_pair_that_it_went_out_on() {
    let mut driver = with(SPLIT, 2);
    for queue in [0, 2] {
        let buffer = driver.buffer(&[0; 200]);
        driver.submit(queue, &[], &[buffer]).unwrap();
    }
    assert_eq!(command(&mut driver, 4, reg::CTRL_MQ, reg::CTRL_MQ_VQ_PAIRS_SET, &[2, 0]), reg::CTRL_OK);
    let out = driver.buffer(&packet(&segment(false)));
    driver.submit(3, &[out], &[]).unwrap();
    assert!(transmit(&mut driver).is_some());
    assert_eq!(receive(&mut driver, &packet(&segment(true))), Received::Done);
    assert!(driver.queues[0].take_used().is_none());
    assert!(driver.queues[2].take_used().is_some());
}
