//! What passes a port: limited, counted, watched, and under another name.

use super::neighbours::{OTHER, Raw, ethernet, ipv4, shop, udp};
use super::tests::{GUEST, PATIENCE, attachment, mac};
use super::{Controls, Listeners};
use crate::capture::{RECORD_MAX, Record};
use crate::port::SocketPort;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::time::{Duration, Instant};
use viv_model::{NicLimits, PortCounters, SecGroup};

const FRAME: usize = 1000;
/// Frames on their way: fewer than may wait for a port with the least limit here.
const WINDOW: usize = 8;

/// A datagram of [`FRAME`] bytes to the other VM.
fn frame(from: &Raw, to: &Raw) -> Vec<u8> {
    let mut frame = ethernet(to.mac, from.mac, 0x0800);
    frame.extend(ipv4(from.address, to.address, 17, &udp(5000, 5001, &[7; FRAME - 14 - 20 - 8])));
    frame
}

fn counters(controls: &Controls, name: &str) -> PortCounters {
    let all = controls.counters().ports;
    all.into_iter().find(|port| port.vm == format!("id-of-{name}")).unwrap()
}

/// How long so many frames take that one VM sends and the other gets.
fn time(web: &Raw, db: &Raw, count: usize) -> Duration {
    let (frame, begin) = (frame(web, db), Instant::now());
    let (mut sent, mut got) = (0, 0);
    let packet = [&[0; 12][..], &frame].concat();
    while got < count {
        if sent < count && sent - got < WINDOW && web.port.send_one(&packet).unwrap() {
            sent += 1;
        } else if sent == count || sent - got == WINDOW {
            assert_eq!(db.frame(), frame);
            got += 1;
        }
    }
    begin.elapsed()
}

#[test]
fn no_more_passes_than_the_limit_of_either_side_lets_and_it_can_change() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let db = Raw::plugged_into(&controls, "db", OTHER);
    let bps = |vm: &str, bps| controls.limit(vm, NicLimits { bps, pps: None });
    // Half a second's worth. What a rest has saved up, 10 ms, and the frame that owes may be too early.
    for who in ["id-of-web", "id-of-db"] {
        assert!(bps(who, Some(200 * FRAME as u64)));
        let took = time(&web, &db, 100);
        assert!(took >= Duration::from_millis(480), "{took:?}");
        assert!(controls.limit(who, NicLimits { bps: None, pps: Some(400) }));
        let took = time(&web, &db, 100);
        assert!(took >= Duration::from_millis(235), "{took:?}");
        assert!(bps(who, None));
    }
    assert!(!bps("x", None));
    let counted = counters(&controls, "web");
    assert_eq!((counted.sent.packets, counted.sent.bytes), (400, 400 * FRAME as u64));
    let got = counters(&controls, "db").received;
    assert!(got.packets >= 400 && got.bytes >= 400 * FRAME as u64, "{got:?}");
}

#[test]
fn what_is_refused_and_denied_and_what_rules_decide_is_counted() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let db = Raw::plugged_into(&controls, "db", OTHER);
    web.send(&ethernet(db.mac, db.mac, 0x0800));
    let rules = vec!["in udp/5001".parse().unwrap(), "deny in udp/9".parse().unwrap()];
    controls.set_groups(vec![SecGroup { name: "db".to_string(), rules }]);
    controls.set_member("id-of-db", vec!["db".to_string()]);
    let mut denied = ethernet(db.mac, web.mac, 0x0800);
    denied.extend(ipv4(GUEST, OTHER, 17, &udp(5000, 9, b"x")));
    web.send(&denied);
    web.send(&denied);
    web.send(&frame(&web, &db));
    assert_eq!(db.frame(), frame(&web, &db));
    let counted = counters(&controls, "web");
    assert_eq!((counted.refused, counted.denied, counted.sent.packets), (1, 2, 4));
    let mut rules: Vec<(String, u64)> = controls
        .counters()
        .rules
        .into_iter()
        .map(|counter| (counter.rule.to_string(), counter.decided))
        .collect();
    rules.sort();
    let expected = [("allow in udp/5001 from any", 1), ("deny in udp/9 from any", 2)];
    assert_eq!(rules, expected.map(|(rule, count)| (rule.to_string(), count)));
}

/// Ten milliseconds are promised, and measured by `examples/switch_load.rs`; here a busy machine may take a hundred times as long.
#[test]
fn a_thousand_other_rules_take_effect_with_the_next_packet() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let db = Raw::plugged_into(&controls, "db", OTHER);
    controls.set_member("id-of-db", vec!["db".to_string()]);
    let groups = |last: &str| {
        let others = (1..1000).map(|port| format!("in tcp/{port} from 10.1.{}.0/24", port % 256));
        let rules = others.chain([last.to_string()]).map(|rule| rule.parse().unwrap()).collect();
        vec![SecGroup { name: "db".to_string(), rules }]
    };
    let (lets, denies) = (groups("in udp/5001"), groups("deny in udp/5001"));
    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        controls.set_groups(denies.clone());
        let before = counters(&controls, "web").denied;
        web.send(&frame(&web, &db));
        let begin = Instant::now();
        controls.set_groups(lets.clone());
        web.send(&frame(&web, &db));
        // The first was looked at under one set or the other, as it comes; the second under the other one for certain.
        assert_eq!(db.frame(), frame(&web, &db));
        longest = longest.max(begin.elapsed());
        if counters(&controls, "web").denied == before {
            assert_eq!(db.frame(), frame(&web, &db));
        }
    }
    println!("longest: {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[test]
fn whoever_watches_sees_both_ways_until_the_plug_is_pulled() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let db = Raw::plugged_into(&controls, "db", OTHER);
    let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let (ours, theirs) = pair();
    assert!(controls.capture("id-of-db", theirs));
    assert!(!controls.capture("x", pair().0));
    let mut buffer = vec![0; RECORD_MAX];
    // But for what the network says of itself by IPv6.
    let mut next = || loop {
        let (len, _) = recv(&ours, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
        let record = Record::parse(&buffer[..len]);
        if record.is_none_or(|record| record.frame[12..14] != [0x86, 0xdd]) {
            return record.map(|record| (record.by_guest, record.lost, record.frame.to_vec()));
        }
    };
    let spoofed = ethernet(web.mac, web.mac, 0x0800);
    db.send(&spoofed);
    assert_eq!(next(), Some((true, 0, spoofed)), "also what is refused");
    web.send(&frame(&web, &db));
    assert_eq!(next(), Some((false, 0, frame(&web, &db))));
    controls.unplug("id-of-db");
    assert_eq!(next(), None);
}

#[test]
fn a_guest_may_go_on_under_its_cards_earlier_address_and_nobody_sees_it() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let (port, theirs) = SocketPort::pair().unwrap();
    let before = [2, 7, 7, 7, 7, 7];
    let bound = viv_model::Attachment { aliases: vec![before], ..attachment("db", OTHER) };
    controls.plug(bound, theirs, Listeners::default()).unwrap();
    let as_before = Raw { port, incoming: Default::default(), mac: before, address: OTHER };
    let own = mac(OTHER);
    // Both announcements: it has the new address.
    let announced = web.frame();
    assert_eq!(announced[6..12], own);
    as_before.send(&frame(&as_before, &web));
    let mut seen = frame(&as_before, &web);
    seen[6..12].copy_from_slice(&own);
    assert_eq!(web.frame(), seen);
    let mut to_own = ethernet(own, web.mac, 0x0800);
    to_own.extend(ipv4(GUEST, OTHER, 17, &udp(1, 2, b"x")));
    web.send(&to_own);
    let mut got = to_own.clone();
    got[..6].copy_from_slice(&before);
    assert_eq!(as_before.frame(), got);
    // To the address from before nothing leads, and from the time that it uses the new one on it gets that.
    let mut to_before = to_own.clone();
    to_before[..6].copy_from_slice(&before);
    web.send(&to_before);
    let now = Raw { mac: own, ..as_before };
    now.send(&frame(&now, &web));
    assert_eq!(web.frame(), frame(&now, &web));
    web.send(&to_own);
    let begin = Instant::now();
    assert_eq!(now.frame(), to_own);
    assert!(begin.elapsed() < PATIENCE);
}
