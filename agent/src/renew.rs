//! After the guest goes on in another VM, or later: the time of now, randomness of its own, its name.
use crate::sys;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;

/// Most bytes of randomness that are taken.
const ENTROPY_MAX: usize = 256;

/// Does what can be done; the first failure is told.
pub(crate) fn renew(unix_ns: u64, entropy: &[u8], hostname: &str) -> io::Result<()> {
    let time = sys::set_time(unix_ns);
    let random = OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .and_then(|pool| sys::add_entropy(pool.as_fd(), entropy.get(..ENTROPY_MAX).unwrap_or(entropy)));
    let name = sys::set_hostname(hostname);
    random.and(time).and(name)
}
