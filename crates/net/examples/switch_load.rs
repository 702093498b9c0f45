//! What a switch costs: packets of one VM to another by themselves, without guests.
//!
//! `cargo run --release -p viv-net --example switch_load` sends small and large packets through a switch, without rules and
//! with 1,000 of them, and prints what passed in each second of the switch's own processor time.
use rustix::time::{ClockId, clock_gettime};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use viv_model::{Attachment, NetworkSpec, SecGroup};
use viv_net::port::{Message, NetPort, SocketPort};
use viv_net::switch::{Controls, Engine, Listeners};

/// How long each load lasts, and how often it is tried: a machine that does other things too is told from us by medians.
const TIME: Duration = Duration::from_millis(600);
const TRIES: usize = 9;
/// Changes of rules that are timed.
const CHANGES: usize = 200;
/// Round trips that are timed.
const ROUNDS: usize = 20_000;
/// Flows, so that not all packets are of one.
const FLOWS: u16 = 64;

fn attachment(last: u8, groups: &[&str]) -> Attachment {
    let groups = groups.iter().map(|group| group.to_string()).collect();
    Attachment {
        vm: last.to_string(),
        name: format!("vm{last}"),
        mac: [2, 0, 0, 0, 0, last],
        address: Ipv4Addr::new(10, 0, 2, last),
        groups,
        labels: Vec::new(),
        limits: Default::default(),
        aliases: Vec::new(),
    }
}

fn plug(controls: &Controls, attachment: Attachment) -> std::io::Result<SocketPort> {
    let (ours, theirs) = SocketPort::pair()?;
    controls.plug(attachment, theirs, Listeners::default()).map_err(std::io::Error::other)?;
    Ok(ours)
}

/// A UDP datagram of `len` bytes of Ethernet, from VM 15 to VM 16.
fn packet(len: usize, flow: u16) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet.extend([2, 0, 0, 0, 0, 16, 2, 0, 0, 0, 0, 15, 8, 0]);
    let ip = (len - 14) as u16;
    packet.extend([0x45, 0]);
    packet.extend(ip.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 16]);
    packet.extend((1000 + flow).to_be_bytes());
    packet.extend(5001u16.to_be_bytes());
    packet.extend((ip - 20).to_be_bytes());
    packet.resize(12 + len, 0);
    packet
}

/// A group with so many rules, of which the last allows what is sent here.
fn group(rules: usize) -> std::io::Result<SecGroup> {
    let rule = |number: usize| match number + 1 == rules {
        true => "in udp/5001".parse(),
        false => format!("in tcp/{} from 10.1.{}.0/24", 1 + number, number % 256).parse(),
    };
    let rules = (0..rules).map(rule).collect::<Result<_, _>>().map_err(std::io::Error::other)?;
    Ok(SecGroup { name: "all".to_string(), rules })
}

/// How long it takes until another set of 1,000 rules has taken effect: from the change to the end of a packet's way that was
/// not let through before. The median, and the longest.
fn changes() -> std::io::Result<[Duration; 2]> {
    let (mut engine, controls) = Engine::new(&NetworkSpec::user(false), None)?;
    thread::spawn(move || engine.serve());
    let from = plug(&controls, attachment(15, &[]))?;
    let to = plug(&controls, attachment(16, &["all"]))?;
    let (lets, packet) = (group(1000)?, packet(64, 0));
    let mut denies = lets.clone();
    denies.rules.pop();
    let mut message = Message::default();
    let mut times = Vec::new();
    for _ in 0..CHANGES {
        controls.set_groups(vec![denies.clone()]);
        from.send_one(&packet)?;
        // Whoever answers has looked at what was sent before.
        controls.list();
        while to.receive(&mut message)? {}
        let begin = Instant::now();
        controls.set_groups(vec![lets.clone()]);
        from.send_one(&packet)?;
        take(&to, &mut message)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    Ok([at(CHANGES / 2), at(CHANGES - 1)])
}

/// Packets that arrived, and the switch's processor time.
fn load(len: usize, rules: usize) -> std::io::Result<(u64, Duration)> {
    let (mut engine, controls) = Engine::new(&NetworkSpec::user(false), None)?;
    let switch = thread::spawn(move || {
        let served = engine.serve();
        let used = clock_gettime(ClockId::ThreadCPUTime);
        served.map(|()| Duration::new(used.tv_sec as u64, used.tv_nsec as u32))
    });
    let groups: &[&str] = if rules == 0 { &[] } else { &["all"] };
    let from = plug(&controls, attachment(15, groups))?;
    let to = plug(&controls, attachment(16, groups))?;
    if rules > 0 {
        controls.set_groups(vec![group(rules)?]);
    }
    let arrived = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let (counter, ended) = (arrived.clone(), over.clone());
    let sink = thread::spawn(move || {
        let mut message = Message::default();
        while !ended.load(Ordering::Relaxed) {
            match to.receive(&mut message) {
                Ok(true) => {
                    while message.front().is_some() {
                        message.pop();
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(false) => thread::yield_now(),
                Err(_) => return,
            }
        }
    });
    let packets: Vec<Vec<u8>> = (0..FLOWS).map(|flow| packet(len, flow)).collect();
    let begin = Instant::now();
    while begin.elapsed() < TIME {
        let mut sent = 0;
        while sent < packets.len() {
            let more = from.send(&mut packets.iter().skip(sent).map(Vec::as_slice))?;
            if more == 0 {
                thread::yield_now();
            }
            sent += more;
        }
    }
    over.store(true, Ordering::Relaxed);
    drop(from);
    sink.join().map_err(|_| std::io::Error::other("the sink panicked"))?;
    let used = switch.join().map_err(|_| std::io::Error::other("the switch panicked"))??;
    Ok((arrived.load(Ordering::Relaxed), used))
}

/// Waits for a packet.
fn take(port: &SocketPort, message: &mut Message) -> std::io::Result<()> {
    while message.front().is_none() {
        if !port.receive(message)? {
            port.wait(port.descriptor(), true, false);
        }
    }
    message.pop();
    Ok(())
}

/// The median time that a packet and its answer take between two threads.
fn round_trip(near: &SocketPort, far: SocketPort, packets: [Vec<u8>; 2]) -> std::io::Result<Duration> {
    let [ask, answer] = packets;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let mut message = Message::default();
        loop {
            take(&far, &mut message)?;
            far.send_one(&answer)?;
        }
    });
    let mut message = Message::default();
    // What a network says of itself at first.
    thread::sleep(Duration::from_millis(50));
    while near.receive(&mut message)? {}
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        near.send_one(&ask)?;
        take(near, &mut message)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    drop(echo);
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

/// What the switch adds to a round trip: with it, and without.
fn round_trips() -> std::io::Result<[Duration; 2]> {
    let (near, far) = SocketPort::pair()?;
    let without = round_trip(&near, far, [packet(64, 0), packet(64, 0)])?;
    let (mut engine, controls) = Engine::new(&NetworkSpec::user(false), None)?;
    thread::spawn(move || engine.serve());
    let near = plug(&controls, attachment(15, &[]))?;
    let far = plug(&controls, attachment(16, &[]))?;
    let mut answer = packet(64, 0);
    let (from, to) = ([2, 0, 0, 0, 0, 16], [2, 0, 0, 0, 0, 15]);
    answer[12..24].copy_from_slice(&[to, from].concat());
    (answer[41], answer[45]) = (16, 15);
    let with = round_trip(&near, far, [packet(64, 0), answer])?;
    Ok([with, without])
}

fn main() -> std::io::Result<()> {
    let [with, without] = round_trips()?;
    println!(
        "a round trip between two threads takes {with:?} through the switch, {without:?} without it (medians)"
    );
    let [usual, longest] = changes()?;
    println!(
        "another set of 1,000 rules has taken effect after {usual:?} (median), {longest:?} (longest of {CHANGES})"
    );
    println!("of each second of the switch's processor time (medians of {TRIES}):");
    for (len, name) in [(64, "64 bytes"), (65_000, "65,000 bytes")] {
        // In turns, so that what else the machine does meets both.
        let mut rates = [const { Vec::new() }; 2];
        for _ in 0..TRIES {
            for (rates, rules) in rates.iter_mut().zip([0, 1000]) {
                let (packets, used) = load(len, rules)?;
                rates.push(packets as f64 / used.as_secs_f64());
            }
        }
        let [without, with] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates.get(rates.len() / 2).copied().unwrap_or_default()
        });
        for (rules, rate) in [(0, without), (1000, with)] {
            let gigabits = rate * len as f64 * 8.0 / 1e9;
            println!("{name:>13}, {rules:>4} rules: {rate:>9.0} packets, {gigabits:>6.2} Gbit");
        }
        println!("{name:>13}: {:.1} % less with rules", 100.0 * (1.0 - with / without));
    }
    Ok(())
}
