//! After the guest goes on in another VM, or later: the time of now, randomness of its own, its name and identities, its network card's
//! address.
use crate::card::Card;
use crate::hurry::Hurry;
use crate::{arrivals, identity, layers, sys};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use viv_api::agent::{Identity, NewCard};

/// Most bytes of randomness that are taken.
const ENTROPY_MAX: usize = 256;
/// The kernel's network interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Does what can be done; the first failure is told.
pub(crate) fn renew(
    unix_ns: u64,
    entropy: &[u8],
    hostname: &str,
    new_card: Option<&NewCard>,
    new_identity: Option<&Identity>,
) -> io::Result<()> {
    let time = sys::set_time(unix_ns);
    let random = OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .and_then(|pool| sys::add_entropy(pool.as_fd(), entropy.get(..ENTROPY_MAX).unwrap_or(entropy)));
    let name = sys::set_hostname(hostname).and(layers::rename(hostname));
    let who = new_identity.map_or(Ok(()), identity::take);
    let card = new_card.map_or(Ok(()), rebind);
    random.and(time).and(name).and(who).and(card)
}

/// Gives the card that has one of its addresses from before its new one, and has it set up anew: its link goes down and up,
/// which programs that manage networks notice, and our own client of DHCP asks again.
fn rebind(card: &NewCard) -> io::Result<()> {
    let text = |mac: &[u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let before: Vec<String> = card.before.iter().map(text).collect();
    for interface in fs::read_dir(INTERFACES)?.flatten() {
        let address = fs::read_to_string(interface.path().join("address")).unwrap_or_default();
        if before.iter().any(|before| *before == address.trim()) {
            let name = interface.file_name().to_string_lossy().to_string();
            let _hurry = Hurry::begin();
            Card::called(&name)?.set_hardware_address(card.mac)?;
            arrivals::lease_anew(&name);
            return Ok(());
        }
    }
    // It has it already.
    Ok(())
}
