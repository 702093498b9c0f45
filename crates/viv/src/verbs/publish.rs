//! What `-p` publishes, as tools of containers write it: one port or several, at a port of the host that is said, or at a free one.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use viv_model::{Fault, Kind, PORTS_MAX, PortSpec};

/// `[[IP:][HOST]:]GUEST[/tcp|udp]`; `HOST` and `GUEST` may be ranges of the same length: `8000-8009:80-89`.
pub(super) fn published(text: &str) -> Result<Vec<PortSpec>, Fault> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (outer, guest) = ports.rsplit_once(':').unwrap_or(("", ports));
    let (ip, host) = outer.rsplit_once(':').map_or((None, outer), |(ip, host)| (Some(ip), host));
    if !host.is_empty() && !host.contains('-') && !guest.contains('-') {
        return text.parse().map(|port| vec![port]);
    }
    let wrong = |why: &str| {
        let fix = "write -p GUEST, -p HOST:GUEST, -p IP:HOST:GUEST or -p 8000-8009:80-89, and /udp behind it for datagrams";
        Fault::new(Kind::Usage, format!("cannot publish {text:?}: {why}"), fix)
    };
    let range = |text: &str| -> Result<(u16, u16), Fault> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok((first, last)),
            _ => Err(wrong(&format!("{text:?} is no port or range of ports, of 1 to 65535"))),
        }
    };
    let (first, last) = range(guest)?;
    if usize::from(last - first) >= PORTS_MAX {
        return Err(wrong(&format!("a VM publishes {PORTS_MAX} ports at most")));
    }
    let hosts = if host.is_empty() { None } else { Some(range(host)?) };
    if hosts.is_some_and(|(from, to)| to - from != last - first) {
        return Err(wrong("there are as many ports of the host as of the guest, or none"));
    }
    let address = ip.map_or_else(String::new, |ip| format!("{ip}:"));
    (first..=last)
        .map(|guest| {
            let host = match hosts {
                Some((from, _)) => from + (guest - first),
                None => {
                    free(ip, protocol).map_err(|error| wrong(&format!("no free port was found: {error}")))?
                }
            };
            format!("{address}{host}:{guest}/{protocol}").parse()
        })
        .collect()
}

/// A port that nobody has, of those that the host's kernel gives away.
fn free(ip: Option<&str>, protocol: &str) -> std::io::Result<u16> {
    let addresses = match ip.map(|ip| ip.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>()) {
        Some(ip) => vec![SocketAddr::new(ip.map_err(std::io::Error::other)?, 0)],
        // A host may have no IPv6.
        None => vec![(Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::UNSPECIFIED, 0).into()],
    };
    Ok(match protocol {
        "udp" => UdpSocket::bind(addresses.as_slice())?.local_addr()?.port(),
        _ => TcpListener::bind(addresses.as_slice())?.local_addr()?.port(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_as_with_containers() {
        let texts = |text: &str| {
            let ports = published(text).unwrap();
            ports.iter().map(|port| port.to_string()).collect::<Vec<_>>()
        };
        let one = |text: &str| text.parse::<PortSpec>().unwrap().to_string();
        assert_eq!(texts("127.0.0.1:8080:80/udp"), [one("127.0.0.1:8080:80/udp")]);
        assert_eq!(texts("8000-8001:80-81"), [one("8000:80"), one("8001:81")]);
        assert_eq!(texts("[::1]:8000-8001:80-81"), [one("[::1]:8000:80"), one("[::1]:8001:81")]);
        for text in ["80", "127.0.0.1::80", "80/udp", ":80"] {
            let ports = published(text).unwrap();
            assert!(ports.len() == 1 && ports[0].guest == 80 && ports[0].host > 0, "{text}: {ports:?}");
        }
        assert_eq!(published("80-82").unwrap().len(), 3);
        for bad in [
            "",
            "0",
            "80-79",
            "1-65535",
            "8000-8002:80-81",
            "8000:80-81",
            "x",
            "1.2.3::80",
            "80/sctp",
            "-",
            "80:",
        ] {
            assert_eq!(published(bad).unwrap_err().kind, Kind::Usage, "{bad}");
        }
    }
}
