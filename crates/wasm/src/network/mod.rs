//! The network of a component: the kernel's own TCP and UDP, in a namespace in which there is nothing but itself and a card of the VM's.
//!
//! ```text
//!   component ── sockets ──► kernel, in the namespace ── tap device ──► [`Wire`] ── socket pair ──► the network's switch
//! ```
//! So it is in its network as any VM is: what it reaches, who reaches it and which ports of the host lead to it is for the switch to say,
//! by the same rules. A program that breaks out of its machine finds this namespace, and no socket of the host.
mod enter;
mod lease;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use viv_model::{Fault, Kind, NetKind, NicSpec};
use viv_net::port::{Message, NetPort, PACKET_MAX, SocketPort};

/// What the device is called in its namespace.
const DEVICE: &str = "eth0";
/// Where programs find their name server. The namespace has its own.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Both ends of what connects a namespace with its switch.
pub(crate) struct Wire {
    tap: OwnedFd,
    port: SocketPort,
}

/// Leaves the host's network for one that is behind this card, whose port of its switch is given. To be called while the process has one
/// thread.
pub(crate) fn enter(nics: &[NicSpec], ports: Vec<Option<OwnedFd>>) -> Result<Wire, Fault> {
    let ([nic], Some(port)) = (nics, ports.into_iter().next().flatten()) else {
        let text = "a component has one network card, which is plugged in";
        return Err(Fault::new(Kind::Usage, text, "use --net once: --net user, or --net NETWORK"));
    };
    if !matches!(nic.net, NetKind::User { .. } | NetKind::Named(_)) {
        let text = "a component has no place on a tap device or a bridge of the host";
        return Err(Fault::new(Kind::Usage, text, "use --net user, or --net NETWORK"));
    }
    let port = SocketPort::from(port);
    let lease = lease::ask(&port, nic.mac).map_err(|error| {
        Fault::new(
            Kind::Error,
            format!("its network gives the component no address: {error}"),
            "start it again; see the network with: viv network ls",
        )
    })?;
    let tap = enter::namespace()
        .and_then(|()| viv_net::tap::open(DEVICE))
        .and_then(|tap| enter::configure(DEVICE, nic, &lease).map(|()| tap));
    let tap = tap.map_err(|error| {
        Fault::new(
            Kind::of_file(&error),
            format!("this host lets the component have no network of its own: {error}"),
            "it takes root, or user namespaces (sysctl user.max_user_namespaces) and a /dev/net/tun that you may open; or leave out --net",
        )
    })?;
    Ok(Wire { tap, port })
}

impl Wire {
    /// Carries packets from now on, in threads of its own, for as long as the process lives.
    pub(crate) fn start(self) -> io::Result<()> {
        let (out, back) = (Arc::new(self), thread::Builder::new().name("network".into()));
        let wire = out.clone();
        back.spawn(move || wire.inwards())?;
        thread::Builder::new().name("network".into()).spawn(move || out.outwards()).map(drop)
    }

    /// What the component sends, until its network has gone.
    fn outwards(&self) {
        let mut packet = vec![0; PACKET_MAX];
        loop {
            let sent = match rustix::io::read(&self.tap, &mut *packet) {
                Ok(length) => self.send(packet.get(..length).unwrap_or_default()),
                Err(Errno::AGAIN) => wait(&self.tap, PollFlags::IN),
                Err(Errno::INTR) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        while !self.port.send_one(packet)? {
            wait(self.port.descriptor(), PollFlags::OUT)?;
        }
        Ok(())
    }

    /// What comes to it.
    fn inwards(&self) {
        let mut message = Message::default();
        loop {
            let came = match self.port.receive(&mut message) {
                Ok(true) => Ok(()),
                Ok(false) => wait(self.port.descriptor(), PollFlags::IN),
                Err(error) => Err(error),
            };
            if came.is_err() {
                return;
            }
            while let Some(packet) = message.front() {
                let _ = rustix::io::write(&self.tap, packet); // what the kernel has no room for is lost, as on a wire
                message.pop();
            }
        }
    }
}

fn wait(at: impl AsFd, flags: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(&at, flags)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
