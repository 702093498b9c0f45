//! What the DHCP client (udhcpc(8)) calls with what it was told, in its variables: this program, so that its code is there already. A
//! shell with the programs that it needs would take three times as long.
use crate::card::Card;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the client says has happened, as the first argument.
pub(crate) const EVENTS: [&str; 5] = ["deconfig", "bound", "renew", "nak", "leasefail"];
/// The name servers of each card.
const SERVERS: &str = "/run/resolv";
/// Where programs look for them.
const RESOLV: &str = "/etc/resolv.conf";

/// Does what the client says.
pub(crate) fn main(event: &str) -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    match act(event, &variable) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::say(format_args!("the network card {} is not set up: {error}", variable("interface")));
            ExitCode::FAILURE
        }
    }
}

fn act(event: &str, variable: &dyn Fn(&str) -> String) -> io::Result<()> {
    let name = variable("interface");
    let card = Card::called(&name)?;
    match event {
        "deconfig" => card.up().and(card.set_address(None)),
        "bound" | "renew" => {
            let lease = Lease::of(variable).ok_or(io::ErrorKind::InvalidData)?;
            card.set_address(Some((lease.ip, lease.mask)))?;
            if let Some(router) = lease.router {
                card.set_router(router, metric(&name))?;
            }
            fs::create_dir_all(SERVERS)?;
            let lines = lease.servers.iter().map(|server| format!("nameserver {server}\n"));
            fs::write(servers_of(&name), lines.collect::<String>())?;
            name_servers()
        }
        _ => Ok(()),
    }
}

/// The first card's router is the one that is used, while that is there.
fn metric(card: &str) -> u16 {
    let number = card.trim_start_matches(|char: char| !char.is_ascii_digit()).parse::<u16>();
    number.unwrap_or_default().saturating_add(1)
}

fn servers_of(card: &str) -> PathBuf {
    Path::new(SERVERS).join(card)
}

/// Nobody asks the name servers of a card that has gone.
pub(crate) fn forget(card: &str) -> io::Result<()> {
    match fs::remove_file(servers_of(card)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => name_servers(),
    }
}

/// Writes down those of all cards, the first card's first. The file stays the same one: guests of images have it mounted.
fn name_servers() -> io::Result<()> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(SERVERS).into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.sort();
    fs::write(RESOLV, files.iter().flat_map(fs::read).flatten().collect::<Vec<u8>>())
}

/// What a server gave.
#[derive(Debug, PartialEq, Eq)]
struct Lease {
    ip: Ipv4Addr,
    mask: Ipv4Addr,
    router: Option<Ipv4Addr>,
    servers: Vec<Ipv4Addr>,
}

impl Lease {
    /// Of the client's variables; what is no address in them counts as not said.
    fn of(variable: &dyn Fn(&str) -> String) -> Option<Lease> {
        let all = |name: &str| -> Vec<Ipv4Addr> {
            variable(name).split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        Some(Lease {
            ip: *all("ip").first()?,
            mask: all("subnet").first().copied().unwrap_or(Ipv4Addr::BROADCAST),
            router: all("router").first().copied(),
            servers: all("dns"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_what_the_client_says() {
        let told = |name: &str| {
            let value = match name {
                "ip" => "10.0.2.15",
                "subnet" => "255.255.255.0",
                "router" => "10.0.2.2 10.0.2.3",
                "dns" => "10.0.2.3 x 10.0.2.4",
                _ => "",
            };
            value.to_string()
        };
        let lease = Lease::of(&told).unwrap();
        assert_eq!((lease.ip, lease.mask), (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(255, 255, 255, 0)));
        assert_eq!((lease.router, lease.servers.len()), (Some(Ipv4Addr::new(10, 0, 2, 2)), 2));
        assert_eq!(Lease::of(&|_| String::new()), None);
        assert_eq!(["eth0", "eth12", "x"].map(metric), [1, 13, 1]);
    }
}
