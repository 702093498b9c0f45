//! What a switch is told while it runs, from other threads.

use super::listen::Listeners;
use crate::port::SocketPort;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use viv_model::{Attachment, NicLimits, SecGroup, SwitchCounters};

/// Commands that wait.
const WAITING_MAX: usize = 16;

/// Why a VM was not plugged in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlugError {
    /// The address is not one for VMs.
    #[error("{0} is no address for a VM in this network")]
    NotOurs(Ipv4Addr),
    /// Another VM has the address or the card's address.
    #[error("VM {0:?} has the same address")]
    Taken(String),
    /// The switch has broken off.
    #[error("the switch has broken off")]
    Gone,
    /// The host refused.
    #[error("the host refused: {0}")]
    Host(String),
}

/// What to do.
pub(super) enum Command {
    Plug(Box<Attachment>, SocketPort, Listeners, SyncSender<Result<(), PlugError>>),
    Unplug(String, SyncSender<bool>),
    Groups(Vec<SecGroup>, SyncSender<()>),
    Resolver(Option<SocketAddr>, SyncSender<()>),
    Member(String, Vec<String>, SyncSender<bool>),
    List(SyncSender<Vec<Attachment>>),
    Limit(String, NicLimits, SyncSender<bool>),
    Capture(String, OwnedFd, SyncSender<bool>),
    Connect(String, u16, OwnedFd, SyncSender<bool>),
    Counters(SyncSender<SwitchCounters>),
}

/// Tells a switch what to do.
#[derive(Clone)]
pub struct Controls {
    commands: SyncSender<Command>,
    waker: Arc<OwnedFd>,
}

/// The switch's end.
pub(super) struct Commands {
    pub(super) waker: Arc<OwnedFd>,
    pub(super) receiver: Receiver<Command>,
}

impl Commands {
    pub(super) fn new() -> io::Result<(Controls, Commands)> {
        let (commands, receiver) = sync_channel(WAITING_MAX);
        let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok((Controls { commands, waker: waker.clone() }, Commands { waker, receiver }))
    }

    /// Lets the next command wake the switch again.
    pub(super) fn clear(&self) {
        let _ = rustix::io::read(&self.waker, &mut [0u8; 8]);
    }
}

impl Controls {
    fn send<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Option<T> {
        let (answer, answered) = sync_channel(1);
        self.commands.send(command(answer)).ok()?;
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
        answered.recv().ok()
    }

    /// Plugs a VM in, in place of its earlier port if it has one.
    pub fn plug(
        &self,
        attachment: Attachment,
        socket: SocketPort,
        listeners: Listeners,
    ) -> Result<(), PlugError> {
        let plugged = self.send(|answer| Command::Plug(Box::new(attachment), socket, listeners, answer));
        plugged.unwrap_or(Err(PlugError::Gone))
    }

    /// Pulls a VM's plug; false if it had none.
    pub fn unplug(&self, vm: &str) -> bool {
        self.send(|answer| Command::Unplug(vm.to_string(), answer)).unwrap_or(false)
    }

    /// Other security groups from now on, also for open flows.
    pub fn set_groups(&self, groups: Vec<SecGroup>) {
        self.send(|answer| Command::Groups(groups, answer));
    }

    /// Names that are not ours are asked for there from now on.
    pub fn set_resolver(&self, resolver: Option<SocketAddr>) {
        self.send(|answer| Command::Resolver(resolver, answer));
    }

    /// The groups that a VM is in from now on; false if it is not plugged in.
    pub fn set_member(&self, vm: &str, groups: Vec<String>) -> bool {
        self.send(|answer| Command::Member(vm.to_string(), groups, answer)).unwrap_or(false)
    }

    /// How much may pass a VM's card from now on; false if it is not plugged in.
    pub fn limit(&self, vm: &str, limits: NicLimits) -> bool {
        self.send(|answer| Command::Limit(vm.to_string(), limits, answer)).unwrap_or(false)
    }

    /// Tells on `socket` of what passes a VM's port ([`crate::capture`]), until it is closed; false if the VM is not
    /// plugged in, or too many watch it.
    pub fn capture(&self, vm: &str, socket: OwnedFd) -> bool {
        self.send(|answer| Command::Capture(vm.to_string(), socket, answer)).unwrap_or(false)
    }

    /// Leads what is said on `stream` to a TCP port of a VM, as a published port would; false if the VM is not plugged in.
    pub fn connect(&self, vm: &str, port: u16, stream: OwnedFd) -> bool {
        self.send(|answer| Command::Connect(vm.to_string(), port, stream, answer)).unwrap_or(false)
    }

    /// What was counted.
    pub fn counters(&self) -> SwitchCounters {
        self.send(Command::Counters).unwrap_or_default()
    }

    /// Who is plugged in.
    pub fn list(&self) -> Vec<Attachment> {
        self.send(Command::List).unwrap_or_default()
    }
}
