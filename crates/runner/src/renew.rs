//! Tells a guest that goes on from a snapshot what has changed without it: the time, and who it is.
use crate::command::connect;
use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use viv_api::agent::{Identity, LINE_MAX, NewCard, Reply, Request, to_line};
use viv_model::NicSpec;

/// How long an agent is waited for: a guest without one cannot be told.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(5);
/// How long its answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of randomness that it gets.
const ENTROPY_LEN: usize = 64;

/// Tells the guest's agent, if there is one, that it is in the VM called `name` now, with these network cards, and as a copy with
/// identities of its own.
pub(crate) fn run(name: &str, nics: &[NicSpec], is_copy: bool) {
    let identity = if is_copy {
        identity()
            .inspect_err(|error| viv_api::complain!("viv runner: no identity for the guest: {error}"))
            .ok()
    } else {
        None
    };
    let new = nics.iter().filter(|nic| !nic.aliases.is_empty());
    let mut cards = new.map(|nic| NewCard { before: nic.aliases.clone(), mac: nic.mac });
    // One at a time, each with an answer, for getting an address takes a while.
    let mut card = cards.next();
    let begin = Instant::now();
    loop {
        match tell(name, card.clone(), identity.clone()) {
            Ok(reply) => {
                if let Some(error) = reply.error {
                    viv_api::complain!("viv runner: {error}");
                }
                card = cards.next();
                if card.is_none() {
                    return;
                }
            }
            Err(_) if begin.elapsed() < PATIENCE => thread::sleep(RETRY),
            Err(error) => return viv_api::complain!("viv runner: no agent to renew the guest: {error}"),
        }
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// One that nobody else has.
fn identity() -> io::Result<Identity> {
    let machine = u128::from_ne_bytes(random()?);
    // Version 4, variant 1 (RFC 9562 §5.4): the other bits are random.
    let boot = (u128::from_ne_bytes(random()?) & !(0xf << 76 | 0x3 << 62)) | 0x4 << 76 | 0x2 << 62;
    let four = |shift: u32| boot >> shift & 0xffff_u128;
    let (first, last) = (boot >> 96, boot & 0xffff_ffff_ffff);
    let boot_id = format!("{first:08x}-{:04x}-{:04x}-{:04x}-{last:012x}", four(80), four(64), four(48));
    Ok(Identity { machine_id: format!("{machine:032x}"), boot_id })
}

fn tell(name: &str, card: Option<NewCard>, identity: Option<Identity>) -> io::Result<Reply> {
    let entropy = random::<ENTROPY_LEN>()?.to_vec();
    let mut stream = connect(ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    let hostname = name.to_string();
    stream.write_all(&to_line(&Request::Renew { unix_ns, entropy, hostname, card, identity })?)?;
    let mut answer = Vec::new();
    stream.take(LINE_MAX as u64).read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_have_their_forms_and_differ() {
        let (one, other) = (identity().unwrap(), identity().unwrap());
        assert_ne!(one, other);
        assert!(one.machine_id.len() == 32 && one.machine_id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let parts: Vec<&str> = one.boot_id.split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(parts[2].starts_with('4') && "89ab".contains(&parts[3][..1]), "{one:?}");
    }
}
