//! What a guest with a raw socket sends in others' names reaches nobody. And ten VMs of a network find each other.
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use viv_e2e::{Directory, Network, Outcome, Vm, run, until, viv};

const WAIT: Duration = Duration::from_secs(120);
/// What is in every frame that must not arrive, and in the one that must.
const LIE: &[u8] = b"a lie that nobody must hear";
const TRUTH: &[u8] = b"nothing but the truth";
/// How many VMs find each other; ten with `VIV_NETWORK_VMS=10`, as `cargo xtask nightly` does.
const VMS: usize = 3;

/// Sends each line of hexadecimal digits as a frame.
const SENDER: &str = r#"
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(void) {
    int socket_fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex("eth0"), .sll_halen = 6};
    static char line[8192];
    static unsigned char frame[4096];
    int sent = 0;
    while (fgets(line, sizeof line, stdin)) {
        size_t length = 0;
        unsigned byte;
        while (sscanf(line + 2 * length, "%2x", &byte) == 1) frame[length++] = byte;
        if (sendto(socket_fd, frame, length, 0, (struct sockaddr *)&to, sizeof to) != (long)length) { perror("sendto"); return 1; }
        sent++;
    }
    printf("sent %d\n", sent);
    return 0;
}
"#;

struct Capture(Child);

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn exec(vm: &str, command: &str, input: &str) -> Outcome {
    run(&["exec", "-i", vm, "--", "sh", "-c", command], input)
}

/// A VM as its neighbours know it.
#[derive(Clone, Copy)]
struct Known {
    mac: [u8; 6],
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

fn known(vm: &str, network: &str) -> Known {
    let shown = run(&["network", "show", network, "--json"], "").ok().out;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let vms = shown["vms"].as_array().unwrap();
    let vm = vms.iter().find(|shown| shown["name"] == vm).unwrap();
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(vm["mac"].as_str().unwrap().split(':')) {
        *byte = u8::from_str_radix(digits, 16).unwrap();
    }
    let text = |name: &str| vm[name].as_str().unwrap();
    Known { mac, v4: text("address").parse().unwrap(), v6: text("address6").parse().unwrap() }
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &kind.to_be_bytes(), payload].concat()
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header.extend(from.octets());
    header.extend(to.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    [&header[..], payload].concat()
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, len[0], len[1], protocol, hops][..], &from.octets(), &to.octets(), payload].concat()
}

fn arp(operation: u8, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, address) in [sender, target] {
        packet.extend(mac);
        packet.extend(address.octets());
    }
    // Behind its end nobody looks: there it says that it is a lie.
    packet.extend(LIE);
    packet
}

/// Frames in the name of `victim` or of the network, to `victim` or to all.
fn lies(own: Known, victim: Known, third: Ipv4Addr) -> Vec<Vec<u8>> {
    let (all, groups) = ([0xff; 6], [0x33, 0x33, 0, 0, 0, 1]);
    let gateway = Ipv4Addr::from_bits(own.v4.to_bits() & 0xffff_ff00 | 2);
    let [prefix @ .., _, _, _, _, _, _, _, _] = own.v6.octets();
    let gateway6 = Ipv6Addr::from_bits(u128::from(u64::from_be_bytes(prefix)) << 64 | 2);
    let all6: Ipv6Addr = "ff02::1".parse().unwrap();
    let router: Ipv6Addr = "fe80::76:69ff:fe76:2".parse().unwrap();
    let good = udp(7, 7, LIE);
    let mut lies = Vec::new();
    // Other cards.
    for from in [victim.mac, [2, 9, 9, 9, 9, 9], [0x02, 0x76, 0x69, 0x76, 0x00, 0x02], all] {
        lies.push(ethernet(victim.mac, from, 0x0800, &ipv4(own.v4, victim.v4, 17, &good)));
    }
    // Other addresses, to one and to all.
    for from in [
        victim.v4,
        gateway,
        third,
        Ipv4Addr::new(198, 51, 100, 1),
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(224, 0, 0, 1),
    ] {
        lies.push(ethernet(victim.mac, own.mac, 0x0800, &ipv4(from, victim.v4, 17, &good)));
        lies.push(ethernet(all, own.mac, 0x0800, &ipv4(from, Ipv4Addr::BROADCAST, 17, &good)));
    }
    for from in [victim.v6, gateway6, router, "2001:db8::1".parse().unwrap(), Ipv6Addr::LOCALHOST] {
        lies.push(ethernet(victim.mac, own.mac, 0x86dd, &ipv6(from, victim.v6, 17, 64, &good)));
    }
    // Who has which address.
    let (ours, theirs) = ((own.mac, gateway), (victim.mac, victim.v4));
    lies.push(ethernet(victim.mac, own.mac, 0x0806, &arp(2, ours, theirs)));
    lies.push(ethernet(all, own.mac, 0x0806, &arp(2, (own.mac, victim.v4), (all, victim.v4))));
    lies.push(ethernet(all, own.mac, 0x0806, &arp(1, (own.mac, gateway), ([0; 6], gateway))));
    for (kind, target) in [(136, gateway6), (136, victim.v6), (135, victim.v6)] {
        let message =
            [&[kind, 0, 0, 0, 0x60, 0, 0, 0][..], &target.octets(), &[2, 1], &own.mac, LIE].concat();
        lies.push(ethernet(victim.mac, own.mac, 0x86dd, &ipv6(own.v6, victim.v6, 58, 255, &message)));
        lies.push(ethernet(groups, own.mac, 0x86dd, &ipv6(own.v6, all6, 58, 255, &message)));
    }
    // Who is the router, and who gives leases.
    let advertisement =
        [&[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &own.mac, LIE].concat();
    lies.push(ethernet(groups, own.mac, 0x86dd, &ipv6(own.v6, all6, 58, 255, &advertisement)));
    lies.push(ethernet(
        victim.mac,
        own.mac,
        0x86dd,
        &ipv6(own.v6, victim.v6, 58, 255, &[&[137; 40][..], LIE].concat()),
    ));
    lies.push(ethernet(all, own.mac, 0x0800, &ipv4(own.v4, Ipv4Addr::BROADCAST, 17, &udp(67, 68, LIE))));
    lies.push(ethernet(victim.mac, own.mac, 0x86dd, &ipv6(own.v6, victim.v6, 17, 64, &udp(547, 546, LIE))));
    // Forms that could hide a sender.
    lies.push(ethernet(
        victim.mac,
        own.mac,
        0x8100,
        &[&[0, 1, 8, 0][..], &ipv4(victim.v4, victim.v4, 17, &good)].concat(),
    ));
    lies.push(ethernet(
        victim.mac,
        own.mac,
        0x86dd,
        &ipv6(own.v6, victim.v6, 44, 64, &[&[17, 0, 0, 1, 0, 0, 0, 0], &good[..]].concat()),
    ));
    lies.push(ethernet(
        victim.mac,
        own.mac,
        0x86dd,
        &ipv6(own.v6, victim.v6, 4, 64, &ipv4(victim.v4, victim.v4, 17, &good)),
    ));
    let mut fragment = ipv4(own.v4, victim.v4, 17, &good);
    fragment[6] = 0x20;
    lies.push(ethernet(victim.mac, own.mac, 0x0800, &fragment));
    lies.push(ethernet(victim.mac, own.mac, 0x9000, LIE));
    lies
}

#[test]
fn thirty_kinds_of_lies_from_a_raw_socket_reach_nobody() {
    let dir = Directory::new("spoof");
    let source = dir.0.join("sender.c");
    fs::write(&source, SENDER).unwrap();
    let built =
        Command::new("cc").args(["-static", "-O1", "-o"]).arg(dir.0.join("sender")).arg(&source).status();
    assert!(built.unwrap().success(), "the sender is not built: install gcc and libc6-dev");

    let network = Network::create("e2e-spoof", &[]);
    let share = format!("{}:/tools", dir.0.display());
    let (_liar, _victim) = (Vm("e2e-spoof-liar"), Vm("e2e-spoof-victim"));
    let (vms, options) = (["e2e-spoof-liar", "e2e-spoof-victim"], [vec!["-v", &share], vec![]]);
    for (vm, options) in vms.into_iter().zip(options) {
        let _ = run(&["rm", "-f", vm], "");
        let words = ["run", "-d", "--accel", "soft", "--name", vm, "--net", network.0];
        run(&[&words[..], &options].concat(), "").ok();
    }
    // Both have their addresses, and know each other's.
    until("an answer", WAIT, || exec(vms[0], "ping -c 1 -W 5 e2e-spoof-victim", "").status == 0);
    let [own, victim] = vms.map(|vm| known(vm, network.0));
    let third = Ipv4Addr::from_bits(own.v4.to_bits() & 0xffff_ff00 | 99);

    let file = dir.0.join("seen.pcapng");
    let _capture = Capture(
        viv(&["capture", vms[1], "-w", file.to_str().unwrap()]).stderr(Stdio::null()).spawn().unwrap(),
    );
    until("the capture's file", WAIT, || fs::metadata(&file).is_ok_and(|data| data.len() > 0));
    let mut frames = lies(own, victim, third);
    assert!(frames.len() >= 30, "{}", frames.len());
    frames.push(ethernet(victim.mac, own.mac, 0x0800, &ipv4(own.v4, victim.v4, 17, &udp(7, 7, TRUTH))));
    let count = frames.len();
    let hex = |frame: &Vec<u8>| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let sent = exec(vms[0], "/tools/sender", &frames.iter().map(hex).collect::<String>()).ok();
    assert_eq!(sent.out.trim(), format!("sent {count}"));
    // What was sent last arrives: so what was sent before it has not.
    let has = |text: &[u8]| fs::read(&file).unwrap().windows(text.len()).any(|window| window == text);
    until("the truth", WAIT, || has(TRUTH));
    assert!(!has(LIE), "a lie was heard");
    let port = run(&["port", "show", vms[0], "--json"], "").ok().out;
    let port: serde_json::Value = serde_json::from_str(&port).unwrap();
    assert!(port["counters"]["refused"].as_u64().unwrap() >= 25, "{port}");
    assert_eq!(
        exec(vms[1], "ping -c 1 -W 20 e2e-spoof-liar", "").status,
        0,
        "and nobody's neighbours are mixed up"
    );
}

#[test]
fn all_vms_of_a_network_find_each_other() {
    let count = std::env::var("VIV_NETWORK_VMS").ok().and_then(|count| count.parse().ok()).unwrap_or(VMS);
    let network = Network::create("e2e-many", &[]);
    let names: Vec<&'static str> = (0..count).map(|number| &*format!("e2e-many-{number}").leak()).collect();
    let _vms: Vec<Vm> = names.iter().map(|name| Vm(name)).collect();
    for name in &names {
        let _ = run(&["rm", "-f", name], "");
        run(&["run", "-d", "--accel", "soft", "--memory", "128M", "--name", name, "--net", network.0], "")
            .ok();
    }
    for from in &names {
        for to in &names {
            let ping = format!("ping -c 1 -W 20 {to}");
            until(&format!("{to} answers {from}"), WAIT, || exec(from, &ping, "").status == 0);
        }
    }
}
