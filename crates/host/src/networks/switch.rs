//! The process of a network's switch, seen from outside: started, asked, found again.
use crate::runners::{first_word, this_program};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use viv_api::switch::{Ask, CONTROL, LINE_MAX, LOCK, LOG, REPLY_MAX, Reply, SPEC, Started, Status};
use viv_api::vm::Process;
use viv_api::{passed, socket};
use viv_model::{Attachment, Fault, Kind, NetworkSpec, NicLimits, PortSpec, SecGroup, SwitchCounters};
use viv_net::port::SocketPort;
use viv_net::switch::Listeners;

/// How long a switch may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A switch, by its directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Switch {
    dir: PathBuf,
}

impl Switch {
    pub(super) fn new(dir: impl Into<PathBuf>) -> Switch {
        Switch { dir: dir.into() }
    }

    /// Its process, if it lives.
    pub(crate) fn process(&self) -> Option<Process> {
        Process::recorded(&self.dir.join(LOCK))
    }

    /// How it is, if it lives.
    pub(crate) fn status(&self) -> Option<Status> {
        self.process()?;
        match self.exchange(&Ask::Status, &[]) {
            Ok(Reply::Ok(status)) => Some(status),
            _ => None,
        }
    }

    fn broken(&self, what: &'static str) -> impl Fn(io::Error) -> Fault {
        move |error| {
            Fault::new(
                Kind::Error,
                format!("cannot {what} of the network: {error}"),
                "see that there is memory and disk space for it: viv info",
            )
        }
    }

    /// Starts it, and waits until it serves.
    pub(super) fn start(&self, network: &NetworkSpec) -> Result<Process, Fault> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(self.broken("make the directory"))?;
        crate::store::write_whole(&self.dir.join(SPEC), network)
            .map_err(self.broken("write the description"))?;
        let log = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(self.dir.join(LOG))
            .map_err(self.broken("open the log"))?;
        let mut child = this_program()
            .arg("switch")
            .arg(&self.dir)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(self.broken("start the process"))?;
        match first_word(&mut child, LINE_MAX) {
            Ok(Started::Serving(status)) => Ok(status.process),
            Ok(Started::Refused(fault)) => {
                let _ = child.wait();
                Err(fault)
            }
            Err(how) => Err(Fault::new(
                Kind::Error,
                format!("the process of network {:?} broke off while it started ({how})", network.name),
                format!("see what it says: {}", self.dir.join(LOG).display()),
            )),
        }
    }

    /// Plugs a VM in; the outer error is that nobody answers.
    pub(super) fn plug(
        &self,
        port: Attachment,
        publish: &[PortSpec],
        socket: &SocketPort,
        listeners: &Listeners,
    ) -> io::Result<Result<(), Fault>> {
        let files: Vec<BorrowedFd<'_>> =
            [socket.descriptor()].into_iter().chain(listeners.descriptors()).collect();
        let reply = self.exchange(&Ask::Plug { port, publish: publish.to_vec() }, &files)?;
        Ok(match reply {
            Reply::Ok(_) | Reply::Counters(_) => Ok(()),
            Reply::Refused(fault) => Err(fault),
        })
    }

    /// Tells it the security groups; the outer error is that nobody answers.
    pub(super) fn set_groups(&self, groups: &[SecGroup]) -> io::Result<Result<(), Fault>> {
        self.told(&Ask::Groups { groups: groups.to_vec() })
    }

    /// Tells it where names are asked for that are not its own.
    pub(crate) fn set_resolver(&self, address: Option<SocketAddr>) -> io::Result<Result<(), Fault>> {
        self.told(&Ask::Resolver { address })
    }

    /// Tells it the groups that a VM is in.
    pub(super) fn set_member(&self, vm: &str, groups: &[String]) -> io::Result<Result<(), Fault>> {
        self.told(&Ask::Member { vm: vm.to_string(), groups: groups.to_vec() })
    }

    /// Tells it how much may pass a VM's card.
    pub(super) fn limit(&self, vm: &str, limits: NicLimits) -> io::Result<Result<(), Fault>> {
        self.told(&Ask::Limit { vm: vm.to_string(), limits })
    }

    /// Has it tell of what passes a VM's port on this socket; the outer error is that nobody answers.
    pub(crate) fn capture(&self, vm: &str, socket: BorrowedFd<'_>) -> io::Result<Result<(), Fault>> {
        Ok(match self.exchange(&Ask::Capture { vm: vm.to_string() }, &[socket])? {
            Reply::Ok(_) | Reply::Counters(_) => Ok(()),
            Reply::Refused(fault) => Err(fault),
        })
    }

    /// Has it lead a stream to a TCP port of a VM; the outer error is that nobody answers.
    pub(crate) fn connect(
        &self,
        vm: &str,
        port: u16,
        stream: BorrowedFd<'_>,
    ) -> io::Result<Result<(), Fault>> {
        Ok(match self.exchange(&Ask::Connect { vm: vm.to_string(), port }, &[stream])? {
            Reply::Ok(_) | Reply::Counters(_) => Ok(()),
            Reply::Refused(fault) => Err(fault),
        })
    }

    /// What it has counted, if it lives.
    pub(crate) fn counters(&self) -> Option<SwitchCounters> {
        self.process()?;
        match self.exchange(&Ask::Counters, &[]) {
            Ok(Reply::Counters(counters)) => Some(counters),
            _ => None,
        }
    }

    fn told(&self, ask: &Ask) -> io::Result<Result<(), Fault>> {
        Ok(match self.exchange(ask, &[])? {
            Reply::Ok(_) | Reply::Counters(_) => Ok(()),
            Reply::Refused(fault) => Err(fault),
        })
    }

    /// Pulls a VM's plug, if the switch lives.
    pub(crate) fn unplug(&self, vm: &str) -> Result<(), Fault> {
        if self.process().is_none() {
            return Ok(());
        }
        match self.exchange(&Ask::Unplug { vm: vm.to_string() }, &[]) {
            Ok(Reply::Ok(_) | Reply::Counters(_)) => Ok(()),
            Ok(Reply::Refused(fault)) => Err(fault),
            // It just ended.
            Err(_) if self.process().is_none() => Ok(()),
            Err(error) => Err(self.broken("ask the process")(error)),
        }
    }

    fn exchange(&self, ask: &Ask, files: &[BorrowedFd<'_>]) -> io::Result<Reply> {
        let socket = socket::connect(&self.dir.join(CONTROL))?;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        passed::send(&socket, &line, files)?;
        let mut answer = Vec::new();
        BufReader::new(socket).take(REPLY_MAX as u64).read_until(b'\n', &mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

/// The end of a new pair that a VM's process gets; the other one goes to its switch.
pub(super) fn pair() -> Result<(SocketPort, SocketPort), Fault> {
    SocketPort::pair().map_err(|error| {
        Fault::new(
            Kind::NoCapacity,
            format!("cannot make a socket for the VM's network card: {error}"),
            "end programs that use many files, and try again",
        )
    })
}

/// Its own descriptor, to be handed to another process.
pub(super) fn owned(port: &SocketPort) -> io::Result<std::os::fd::OwnedFd> {
    port.descriptor().as_fd().try_clone_to_owned()
}
