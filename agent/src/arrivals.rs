//! Devices of the default guest as they come, at boot and later: each network card is set up by DHCP, each named port of the
//! console has a link.
use crate::users::User;
use crate::{children, lease, ports, say, sys};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};

/// What the DHCP client calls: this program (see [`lease`]).
const AGENT: &str = "/init";
/// What the kernel itself gives a router that advertises itself (`IP6_RT_PRIO_USER`).
const ROUTER_METRIC: u32 = 1024;
/// Where the kernel shows network cards.
const CARDS: &str = "/sys/class/net";
/// Bytes of a device's event that are looked at (the kernel's own bound is 2048 and the path).
const EVENT_MAX: usize = 8192;

/// Has all cards set up before anything wants to use them, and from then on those that come, in a thread of its own.
pub(crate) fn keep_up() {
    // First this: a card may come any time.
    let events = sys::device_events();
    ports::link_all();
    let mut up = BTreeSet::new();
    for card in present() {
        lease_address(&card);
        up.insert(card);
    }
    match events {
        Ok(events) => drop(std::thread::spawn(move || follow(File::from(events), up))),
        Err(error) => say(format_args!("network cards that come later are not set up: {error}")),
    }
}

/// The names of the network cards.
fn present() -> BTreeSet<String> {
    let names = fs::read_dir(CARDS).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| is_card(name)).collect()
}

/// What the kernel calls an Ethernet card.
fn is_card(name: &str) -> bool {
    name.strip_prefix("eth")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn follow(mut events: File, mut up: BTreeSet<String>) {
    let mut event = [0; EVENT_MAX];
    loop {
        // So many events that some are lost (ENOBUFS) leave one to look for what is there.
        let (about_a_card, about_a_port) = match events.read(&mut event) {
            Ok(length) => {
                let event = event.get(..length).unwrap_or_default();
                (is_about(event, b"net"), is_about(event, b"virtio-ports"))
            }
            Err(_) => (true, true),
        };
        if about_a_port {
            ports::link_all();
        }
        if !about_a_card {
            continue;
        }
        let now = present();
        for gone in up.difference(&now) {
            end_client(gone);
            if let Err(error) = lease::forget(gone) {
                say(format_args!("name servers of {gone} are still asked: {error}"));
            }
        }
        for come in now.difference(&up) {
            lease_address(come);
        }
        up = now;
    }
}

/// Whether a device of this kind comes, goes or changes: `ACTION@PATH`, then variables, each with a zero byte behind it.
fn is_about(event: &[u8], kind: &[u8]) -> bool {
    let mut words = event.split(|byte| *byte == 0);
    let what = words.next().unwrap_or_default();
    let actions = [&b"add@"[..], b"remove@", b"move@", b"change@"];
    actions.iter().any(|action| what.starts_with(action))
        && words.any(|word| word.strip_prefix(b"SUBSYSTEM=") == Some(kind))
}

fn pid_file(card: &str) -> String {
    format!("/run/udhcpc.{card}.pid")
}

/// Has a card set up by DHCP. The client then stays, to renew its lease.
fn lease_address(card: &str) {
    // As with IPv4: of several routers that advertise themselves, the first card's is used, while it is there.
    if let Some(number) = card.strip_prefix("eth").and_then(|number| number.parse::<u32>().ok()) {
        let metric = ROUTER_METRIC.saturating_add(number).to_string();
        // A kernel without IPv6, or one before 5.12, has no such thing.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{card}/ra_defrtr_metric"), metric);
    }
    let mut client = Command::new("/bin/udhcpc");
    // Three tries of a second; then it goes on in the background.
    client.args(["-b", "-t", "3", "-T", "1", "-i", card, "-s", AGENT, "-p", &pid_file(card)]);
    client.env_clear().env("PATH", crate::exec::DEFAULT_PATH);
    client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // As a session of its own it takes signals, which we block.
    let started = sys::as_session(&mut client, false, User::root().identity("/"));
    match started.and_then(|()| children::run(&mut client)) {
        Ok(0) => {}
        Ok(status) => say(format_args!("no network address: the DHCP client ended with status {status}")),
        Err(error) => say(format_args!("no network address: cannot start the DHCP client: {error}")),
    }
}

/// Has a card that has another address now set up anew: its client knows the one from before.
pub(crate) fn lease_anew(card: &str) {
    if !fs::exists(pid_file(card)).unwrap_or(false) {
        // Somebody else has set it up.
        return;
    }
    end_client(card);
    lease_address(card);
}

/// The client of a card that has gone would ask for ever.
fn end_client(card: &str) {
    let pid = fs::read_to_string(pid_file(card)).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = pid.filter(|pid| *pid > 1) {
        // It may have ended by itself.
        let _ = sys::kill(pid, libc::SIGTERM);
    }
    let _ = fs::remove_file(pid_file(card));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_about_cards_are_known() {
        let event = |what: &str, subsystem: &str| {
            format!(
                "{what}@/devices/pci0000:00/0000:00:05.0/virtio4/net/eth0\0ACTION={what}\0SUBSYSTEM={subsystem}\0"
            )
        };
        let about = |event: &str| is_about(event.as_bytes(), b"net");
        assert!(about(&event("add", "net")) && about(&event("remove", "net")));
        assert!(!about(&event("bind", "net")) && !about(&event("add", "pci")) && !about(""));
        assert!(!about("add@") && !is_about(&[0; 100], b"net"));
        let names = ["eth0", "eth12", "eth", "lo", "ethx", "sit0", "eth0.5"].map(is_card);
        assert_eq!(names, [true, true, false, false, false, false, false]);
    }
}
