//! The ports of this host that lead into VMs: taken by the service, which says why if it cannot, and then handed to the
//! VM's switch.
use std::io::ErrorKind;
use viv_model::{Fault, Kind, NicSpec, Protocol};
use viv_net::switch::{ListenError, Listeners};

/// Opens a card's published ports.
pub(super) fn listen(nic: &NicSpec) -> Result<Listeners, Fault> {
    Listeners::open(&nic.ports).map_err(|error| fault(&error))
}

fn fault(failed: &ListenError) -> Fault {
    let ListenError { port, error } = failed;
    let protocol = if port.protocol == Protocol::Udp { "UDP" } else { "TCP" };
    let what = format!("cannot publish {port}");
    let host = port.host;
    match error.kind() {
        ErrorKind::AddrInUse => Fault::new(
            Kind::Conflict,
            format!("{what}: {protocol} port {host} of the host is in use"),
            "use another port with -p, or end what uses it: viv ps shows VMs' ports, ss -lntup all",
        ),
        ErrorKind::PermissionDenied => Fault::new(
            Kind::Denied,
            format!("{what}: the host lets only root have port {host}"),
            "use a port from 1024 on, or allow it with: sysctl net.ipv4.ip_unprivileged_port_start",
        ),
        ErrorKind::AddrNotAvailable => Fault::new(
            Kind::Usage,
            format!("{what}: {} is no address of this host", port.ip),
            "use one that ip address shows, or leave it out for all of them",
        ),
        _ => Fault::new(Kind::Error, format!("{what}: {error}"), "use another port with -p, or leave it out"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_fail_has_a_way_out() {
        let port: viv_model::PortSpec = "127.0.0.1:80:80".parse().unwrap();
        for (kind, is) in [
            (ErrorKind::AddrInUse, Kind::Conflict),
            (ErrorKind::PermissionDenied, Kind::Denied),
            (ErrorKind::AddrNotAvailable, Kind::Usage),
            (ErrorKind::OutOfMemory, Kind::Error),
        ] {
            let fault = fault(&ListenError { port: port.clone(), error: kind.into() });
            assert_eq!(fault.kind, is);
            assert!(fault.message.contains("127.0.0.1:80:80"), "{fault}");
        }
    }
}
