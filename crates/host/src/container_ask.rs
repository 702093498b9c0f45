//! What is asked of a VM that only an image of containers can give: volumes, files, and all of its ports.
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use viv_api::image::ImageProcess;
use viv_api::vm::VmCreate;
use viv_model::{
    Fault, FileSpec, Kind, PortSpec, Protocol, VolumeMount, check_volume, check_volumes, volume_word,
};

/// Refuses it for other images.
pub(crate) fn check(ask: &VmCreate, process: Option<&ImageProcess>) -> Result<(), Fault> {
    FileSpec::check_all(&ask.files)?;
    if process.is_some() || ask.volumes.is_empty() && ask.files.is_empty() && !ask.publish_all {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Usage,
        "volumes without a directory of the host, files in the image, and the ports that an image names, are those of images of containers",
        "share a directory: -v ./DIR:PATH; publish ports: -p HOST:GUEST",
    ))
}

/// The words of the kernel's command line for the volumes of the image and of the user. Where a directory of the host is, it wins.
pub(crate) fn volume_words(ask: &VmCreate, process: &ImageProcess) -> Result<String, Fault> {
    let asked = ask.volumes.iter().map(|text| text.parse()).collect::<Result<Vec<VolumeMount>, Fault>>()?;
    // Those with names are disks.
    let (named, plain): (Vec<_>, Vec<_>) = asked.iter().partition(|mount| mount.name.is_some());
    // What an image names that is no path of a guest has no meaning.
    let of_image = process.volumes.iter().filter(|path| check_volume(path).is_ok());
    let mut paths: Vec<&str> = Vec::new();
    for path in of_image.chain(plain.iter().map(|mount| &mount.path)) {
        let path = path.trim_end_matches('/');
        let others =
            ask.shares.iter().map(|share| &share.target).chain(named.iter().map(|mount| &mount.path));
        let is_shared = others.into_iter().any(|other| other.trim_end_matches('/') == path);
        if !is_shared && !paths.contains(&path) {
            paths.push(path);
        }
    }
    check_volumes(paths.len() + named.len())?;
    Ok(paths.into_iter().map(volume_word).collect::<Vec<_>>().join(" "))
}

/// Free ports of this host for those that the image names and nobody has published.
pub(crate) fn all_ports(ask: &VmCreate, process: &ImageProcess) -> Result<Vec<PortSpec>, Fault> {
    let mut ports = ask.ports.clone();
    for text in process.ports.iter().filter(|_| ask.publish_all) {
        let (number, protocol) = match text.split_once('/') {
            Some((number, "udp")) => (number, Protocol::Udp),
            Some((number, "tcp")) => (number, Protocol::Tcp),
            None => (text.as_str(), Protocol::Tcp),
            Some(_) => continue,
        };
        let Some(guest) = number.parse().ok().filter(|guest: &u16| *guest > 0) else { continue };
        if ports.iter().any(|port| port.guest == guest && port.protocol == protocol) {
            continue;
        }
        let host = free(protocol).map_err(|error| {
            Fault::new(
                Kind::NoCapacity,
                format!("the host has no free port for {text}: {error}"),
                "name one: -p HOST:GUEST",
            )
        })?;
        ports.push(PortSpec { ip: Ipv6Addr::UNSPECIFIED.into(), host, guest, protocol });
    }
    Ok(ports)
}

/// A port that nobody has, of those that the host's kernel gives away.
fn free(protocol: Protocol) -> std::io::Result<u16> {
    // A host may have no IPv6.
    let (six, four) = ((Ipv6Addr::UNSPECIFIED, 0), ("0.0.0.0", 0));
    let address = match protocol {
        Protocol::Udp => UdpSocket::bind(six).or_else(|_| UdpSocket::bind(four))?.local_addr()?,
        _ => TcpListener::bind(six).or_else(|_| TcpListener::bind(four))?.local_addr()?,
    };
    Ok(address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(ports: &[&str], volumes: &[&str]) -> ImageProcess {
        let owned = |all: &[&str]| all.iter().map(|text| text.to_string()).collect();
        ImageProcess { ports: owned(ports), volumes: owned(volumes), ..ImageProcess::default() }
    }

    #[test]
    fn ports_that_an_image_names_are_published_once() {
        let mut ask = VmCreate { ports: vec!["8080:80".parse().unwrap()], ..VmCreate::default() };
        let process = process(&["80/tcp", "53/udp", "53/tcp", "9/sctp", "x/tcp", "0/tcp", "443"], &[]);
        assert_eq!(all_ports(&ask, &process).unwrap().len(), 1, "nobody asked");
        ask.publish_all = true;
        let ports = all_ports(&ask, &process).unwrap();
        let guests: Vec<(u16, Protocol)> = ports.iter().map(|port| (port.guest, port.protocol)).collect();
        let tcp = Protocol::Tcp;
        assert_eq!(guests, [(80, tcp), (53, Protocol::Udp), (53, tcp), (443, tcp)]);
        assert!(ports.iter().all(|port| port.host >= 1024));
    }

    #[test]
    fn volumes_of_image_and_user_are_named_once() {
        let ask = VmCreate {
            volumes: vec!["/data/".into(), "/more".into()],
            shares: vec!["/srv:/shared".parse().unwrap()],
            ..VmCreate::default()
        };
        let image = process(&[], &["/data", "/shared", "relative", "/"]);
        assert_eq!(volume_words(&ask, &image).unwrap(), "viv.volume=/data viv.volume=/more");
        let bad = VmCreate { volumes: vec!["data".into()], ..VmCreate::default() };
        assert_eq!(volume_words(&bad, &image).unwrap_err().kind, Kind::Usage);
        assert!(check(&ask, Some(&image)).is_ok());
        assert_eq!(check(&ask, None).unwrap_err().kind, Kind::Usage);
        assert!(check(&VmCreate::default(), None).is_ok());
    }
}
