//! A VM for the builder of images: a runner in a directory of its own, which ends with the service.
use crate::images::RunVm;
use crate::networks::Networks;
use crate::places::Places;
use crate::plugs::card;
use crate::runners::Runner;
use crate::store::VmRecord;
use crate::{names, store};
use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;
use viv_api::agent::Exec;
use viv_api::runner::{CONSOLE, RunnerSpec};
use viv_api::socket;
use viv_api::vm::{OnReboot, Process};
use viv_model::{End, Fault, MachineSpec};

/// How often it is looked whether the build was given up.
const LOOK: Duration = Duration::from_millis(200);

/// Where builder VMs live.
fn root(places: &Places) -> PathBuf {
    places.state.join("builders")
}

/// Clears away what builder VMs of a service that was killed left behind.
pub(crate) fn clear(places: &Places) {
    if let Ok(entries) = fs::read_dir(root(places)) {
        for entry in entries.flatten() {
            Runner::new(entry.path()).kill(None);
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs builder VMs.
pub(crate) struct BuilderVm<'a> {
    pub(crate) places: &'a Places,
    pub(crate) networks: &'a Networks,
    /// Whether the build was given up.
    pub(crate) cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl RunVm for BuilderVm<'_> {
    fn run(
        &self,
        spec: &MachineSpec,
        command: Option<&Exec>,
        console: &mut dyn FnMut(&[u8]),
    ) -> Result<End, Fault> {
        let broken = |source| store::StoreError::Io { what: "make", path: root(self.places), source };
        let id = names::identity().map_err(broken)?;
        // The switches of its cards look for it among the VMs; no VM is known there by this identity.
        let home = if spec.nics.is_empty() { root(self.places) } else { self.places.vms() };
        let dir = home.join(&id);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(broken)?;
        let runner = Runner::new(&dir);
        let ended = self.run_in(&id, &runner, spec, command, console);
        runner.kill(None);
        let _ = fs::remove_dir_all(&dir);
        ended
    }
}

impl BuilderVm<'_> {
    /// Plugs its cards in, which get their addresses.
    fn plug_in(&self, id: &str, machine: &mut MachineSpec) -> Result<Vec<OwnedFd>, Fault> {
        for (number, nic) in (0..).zip(&mut machine.nics) {
            (nic.id, nic.mac) = (number, card(id, number));
        }
        let record = VmRecord::new(id, "builder", machine.clone());
        let ports = machine.nics.iter().map(|nic| self.networks.plug(&record, nic, &[]));
        Ok(ports.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    fn run_in(
        &self,
        id: &str,
        runner: &Runner,
        spec: &MachineSpec,
        command: Option<&Exec>,
        console: &mut dyn FnMut(&[u8]),
    ) -> Result<End, Fault> {
        let this = Process::current().map_err(|source| store::StoreError::Io {
            what: "look at",
            path: "/proc/self/stat".into(),
            source,
        })?;
        let mut spec = RunnerSpec {
            name: "builder".into(),
            machine: spec.clone(),
            on_reboot: OnReboot::End,
            attended_by: Some(this),
            command: command.cloned(),
            attend: false,
            health: None,
            program: None,
            resume: false,
            beside_kvm: false,
            is_copy: false,
        };
        let ports = self.plug_in(id, &mut spec.machine)?;
        runner.start(&spec, &ports, None)?;
        let mut socket = socket::connect(&runner.dir().join(CONSOLE)).ok();
        let mut piece = [0; 16 * 1024];
        while let Some(stream) = &mut socket {
            if (self.cancelled)() {
                runner.kill(None);
            }
            let _ = stream.set_read_timeout(Some(LOOK));
            match stream.read(&mut piece) {
                Ok(0) => socket = None,
                Ok(length) => console(piece.get(..length).unwrap_or_default()),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(_) => socket = None,
            }
        }
        while !runner.wait(Some(LOOK)) {
            if (self.cancelled)() {
                runner.kill(None);
            }
        }
        Ok(runner.end().map_or_else(
            || End::Failed {
                message: format!("the builder VM's process ended without a word; killed from outside (does dmesg speak of memory?), or a crash{}", runner.own_words()),
            },
            |(end, _)| end,
        ))
    }
}
