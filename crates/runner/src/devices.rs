//! The guest's devices that may come and go: which it has now, so that it has them again when it boots anew.
use crate::guest::{Guest, Parts};
use crate::life::Life;
use crate::share::Server;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use viv_api::runner::{ApartDisk, Ask};
use viv_machine::{HandedFiles, files_below};
use viv_model::{DiskFormat, DiskLimits, DiskSpec, Fault, Kind, MachineSpec, NicSpec, ShareMount, ShareSpec};
use viv_net::port::{NetPort, Plug};

/// A disk that the guest has.
struct HeldDisk {
    spec: DiskSpec,
    /// Its open files, if it was attached while the VM ran: the sandbox opens none of them again.
    files: Option<HandedFiles>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Devices {
    disks: Vec<HeldDisk>,
    shares: Vec<Server>,
    /// The network cards, and what each is plugged into.
    cards: Vec<(NicSpec, Arc<Plug>)>,
    /// The console's named ports, which stay, and the sockets for their clients.
    console_ports: Vec<(String, UnixListener)>,
    /// The kernel's command line, which has the agent mount shared directories.
    append: String,
}

impl Devices {
    /// Those of the start.
    pub(crate) fn new(
        machine: &MachineSpec,
        shares: Vec<Server>,
        plugs: Vec<Arc<Plug>>,
        console_ports: Vec<(String, UnixListener)>,
    ) -> Devices {
        let disks = machine.disks.iter().map(|disk| HeldDisk { spec: disk.clone(), files: None });
        Devices {
            disks: disks.collect(),
            shares,
            cards: machine.nics.iter().cloned().zip(plugs).collect(),
            console_ports,
            append: machine.append.clone(),
        }
    }

    /// `machine` with these devices instead of its own.
    pub(crate) fn of(&self, machine: &MachineSpec) -> MachineSpec {
        MachineSpec {
            disks: self.disks.iter().map(|disk| disk.spec.clone()).collect(),
            ..self.before_disks_come(machine)
        }
    }

    /// The same, but without the disks that were attached while the VM ran: those come after its build.
    pub(crate) fn before_disks_come(&self, machine: &MachineSpec) -> MachineSpec {
        let first = self.disks.iter().filter(|disk| disk.files.is_none());
        MachineSpec {
            disks: first.map(|disk| disk.spec.clone()).collect(),
            shares: self.shares.iter().map(|server| server.share.clone()).collect(),
            nics: self.cards.iter().map(|(nic, _)| nic.clone()).collect(),
            append: self.append.clone(),
            ..machine.clone()
        }
    }

    /// The disks that were attached while the VM ran.
    pub(crate) fn later_disks(&self) -> Vec<(DiskSpec, HandedFiles)> {
        self.disks.iter().filter_map(|disk| Some((disk.spec.clone(), disk.files.clone()?))).collect()
    }

    /// What a new guest is connected to.
    pub(crate) fn connect(&self) -> Result<Parts, Fault> {
        let listener = |(name, listener): &(String, UnixListener)| Ok((name.clone(), listener.try_clone()?));
        let listeners = self.console_ports.iter().map(listener).collect::<io::Result<_>>();
        Ok(Parts {
            shares: self.shares.iter().map(Server::connect).collect::<Result<_, _>>()?,
            ports: self.cards.iter().map(|(_, plug)| plug.clone() as Arc<dyn NetPort>).collect(),
            console_ports: listeners.map_err(|_| out_of_files())?,
        })
    }

    /// Disks with the images that are to come above them.
    pub(crate) fn above(&self, apart: &[ApartDisk]) -> Result<Vec<(usize, DiskSpec)>, Fault> {
        let each = |ApartDisk { index, above }: &ApartDisk| {
            let refused = || {
                let text = format!("the VM has no disk {index} of its own below {}", above.display());
                Fault::new(Kind::Conflict, text, "try again")
            };
            let own = |held: &&HeldDisk| held.files.is_none() && !held.spec.read_only;
            let held = self.disks.get(*index).filter(own).ok_or_else(refused)?;
            let (path, format) = (above.clone(), Some(DiskFormat::Qcow2));
            let spec = DiskSpec { path, format, ..held.spec.clone() };
            // Another image may have been meant to come between.
            let below = files_below(&spec)?;
            let fits = below.iter().any(|file| file.file_name() == held.spec.path.file_name());
            fits.then_some((*index, spec)).ok_or_else(refused)
        };
        apart.iter().map(each).collect()
    }

    /// These disks are others now, with the same content.
    pub(crate) fn set_disks(&mut self, disks: Vec<(usize, DiskSpec)>) {
        for (index, spec) in disks {
            if let Some(held) = self.disks.get_mut(index) {
                held.spec = spec;
            }
        }
    }

    /// Plugs the card with this number into this port, or into none.
    pub(crate) fn plug(&self, id: u8, files: Vec<OwnedFd>) -> Result<(), Fault> {
        let (_, plug) = self.cards.iter().find(|(nic, _)| nic.id == id).ok_or_else(no_card)?;
        plug.set(files.into_iter().next());
        Ok(())
    }
}

impl Life {
    /// Lets a device come or go.
    pub(crate) fn change_device(&self, ask: Ask, files: Vec<OwnedFd>) -> Result<(), Fault> {
        let guest = self.guest()?;
        match ask {
            Ask::LimitDisk { disk, limits } => self.limit_disk(&*guest, disk, limits),
            Ask::ResizeDisk { disk, size } => guest.resize_disk(disk, size),
            Ask::AttachDisk { disk, files: paths } => {
                if paths.len() != files.len() {
                    return Err(out_of_files());
                }
                let files: HandedFiles = paths.into_iter().zip(files.into_iter().map(File::from)).collect();
                guest.attach_disk(&disk, files.clone())?;
                self.devices(|all| all.disks.push(HeldDisk { spec: disk, files: Some(files) }));
                Ok(())
            }
            Ask::DetachDisk { disk } => {
                guest.detach_disk(disk)?;
                self.devices(|all| {
                    if disk < all.disks.len() {
                        all.disks.remove(disk); // closes its files, which lets go of their locks
                    }
                });
                Ok(())
            }
            Ask::AttachShare { share, mount } => self.attach_share(&*guest, share, mount, files),
            Ask::DetachShare { tag } => {
                guest.detach_share(&tag)?;
                self.devices(|all| {
                    all.shares.retain(|server| server.share.tag.as_ref() != Some(&tag)); // which ends it
                    all.append = ShareMount::taken_off(&all.append, &tag);
                });
                Ok(())
            }
            Ask::AttachCard { nic } => self.attach_card(&*guest, nic, files),
            Ask::DetachCard { id } => {
                guest.detach_card(id)?;
                self.devices(|all| all.cards.retain(|(nic, _)| nic.id != id));
                Ok(())
            }
            other => {
                let text = format!("{other:?} is not about a device");
                Err(Fault::new(Kind::Usage, text, "use the command of this version"))
            }
        }
    }

    fn limit_disk(&self, guest: &dyn Guest, disk: usize, limits: DiskLimits) -> Result<(), Fault> {
        guest.limit_disk(disk, &limits)?;
        self.devices(|all| {
            if let Some(held) = all.disks.get_mut(disk) {
                held.spec.limits = limits;
            }
        });
        Ok(())
    }

    fn attach_share(
        &self,
        guest: &dyn Guest,
        share: ShareSpec,
        mount: bool,
        files: Vec<OwnedFd>,
    ) -> Result<(), Fault> {
        let count = self.devices(|all| all.shares.len());
        let share = ShareSpec { tag: Some(share.tag_of(count)), ..share };
        let server = Server::new(share.clone(), files.into_iter().next().ok_or_else(out_of_files)?);
        guest.attach_share(&share.tag_of(count), server.connect()?)?;
        self.devices(|all| {
            if mount {
                all.append = format!("{} {}", all.append, ShareMount::new(count, &share).to_word());
            }
            all.shares.push(server);
        });
        Ok(())
    }

    fn attach_card(&self, guest: &dyn Guest, nic: NicSpec, files: Vec<OwnedFd>) -> Result<(), Fault> {
        if self.devices(|all| all.cards.iter().any(|(other, _)| other.id == nic.id)) {
            let text = format!("the VM has a network card {} already", nic.id);
            return Err(Fault::new(Kind::Conflict, text, "use the command of this version"));
        }
        let plug = Plug::new(files.into_iter().next()).map_err(|error| {
            Fault::new(
                Kind::NoCapacity,
                format!("the VM's process cannot make a network card: {error}"),
                "detach disks that it does not need, or let it have more open files: ulimit -n",
            )
        })?;
        let plug = Arc::new(plug);
        guest.attach_card(&nic, plug.clone())?;
        self.devices(|all| all.cards.push((nic, plug)));
        Ok(())
    }
}

fn no_card() -> Fault {
    Fault::new(Kind::Conflict, "the VM has no such network card", "give it one: viv attach VM --net NETWORK")
}

/// Files that were sent have not come (SCM_RIGHTS of unix(7), RLIMIT_NOFILE).
fn out_of_files() -> Fault {
    Fault::new(
        Kind::NoCapacity,
        "the VM's process may have no more open files",
        "detach disks that it does not need, or let it have more before it starts: ulimit -n",
    )
}
