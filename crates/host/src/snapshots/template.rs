//! Templates: snapshots by whose name VMs are made, as from images, but with memory.
use super::Snapshots;
use crate::container_ask;
use crate::creation;
use crate::guest_commands::Runs;
use crate::store::{Request, VmRecord};
use crate::vms::lock;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::SystemTime;
use viv_api::snapshot::SnapshotRestore;
use viv_api::vm::{Vm, VmCreate, VmStart};
use viv_model::{Accel, Fault, Kind, MachineSpec, Manifest, ProjectName, hostname_in};

/// What can be asked for of a VM whose guest has booted: the rest is the template's.
pub(crate) fn of_one_vm(ask: &VmCreate) -> VmCreate {
    VmCreate {
        schema: ask.schema.clone(),
        name: ask.name.clone(),
        project: ask.project.clone(),
        image: ask.image.clone(),
        accel: ask.accel,
        ports: ask.ports.clone(),
        groups: ask.groups.clone(),
        labels: ask.labels.clone(),
        on_reboot: ask.on_reboot,
        remove: ask.remove,
        command: ask.command.clone(),
        health: ask.health.clone(),
        attended_by: ask.attended_by,
        start: ask.start,
        ..VmCreate::default()
    }
}

impl Snapshots {
    /// When somebody last went on from a template for warm starts.
    pub(crate) fn used_at(&self, id: &str) -> Option<SystemTime> {
        fs::metadata(self.places.snapshots().join(id)).and_then(|data| data.modified()).ok()
    }

    /// Whether there is a template for warm starts of this name.
    pub(crate) fn is_warm(&self, project: &ProjectName, name: &str) -> bool {
        self.find_warm(project, name).is_ok()
    }

    fn find_warm(&self, project: &ProjectName, name: &str) -> Result<(PathBuf, Manifest), Fault> {
        let fresh = lock(&self.fresh).get(&(project.clone(), name.to_string())).cloned();
        fresh.map_or_else(|| self.find(project, name), Ok)
    }

    /// Whether a template of a project is called so.
    pub(crate) fn is_template(&self, project: &ProjectName, name: &str) -> bool {
        self.find(project, name).is_ok_and(|(_, manifest)| manifest.template && manifest.name == name)
    }

    /// A new VM from a template, as it was asked for. What the template has decided cannot be asked for.
    pub(crate) fn create_from(
        &self,
        project: &ProjectName,
        template: &str,
        ask: &VmCreate,
        request: Option<Request>,
    ) -> Result<Vm, Fault> {
        let (dir, manifest) = self.find(project, template)?;
        if *ask != of_one_vm(ask) {
            return Err(Fault::new(
                Kind::Usage,
                format!(
                    "{template} is a template: processors, memory, disks, network and kernel are those of its VM"
                ),
                "leave these options out, or start a VM from an image: viv images",
            ));
        }
        if !ask.start {
            return Err(Fault::new(
                Kind::Usage,
                format!("{template} is a template: a VM from it runs as soon as it is there"),
                format!("use: viv run -d {template}"),
            ));
        }
        let record = self.record_from(&manifest, ask, request)?;
        self.verify_disks(&dir, &manifest)?;
        let start = VmStart { attended_by: ask.attended_by };
        let runs = if ask.command.is_some() { Runs::AllBut } else { Runs::All };
        self.go_on(&dir, &manifest, record, &ask.ports, &start, runs)
    }

    /// A new VM from a template in which nothing runs yet, which was made for what is asked for.
    pub(crate) fn create_warm(
        &self,
        project: &ProjectName,
        template: &str,
        ask: &VmCreate,
        request: Option<Request>,
    ) -> Result<Vm, Fault> {
        ask.check_restart()?;
        let (dir, manifest) = self.find_warm(project, template)?;
        let record = self.record_from(&manifest, ask, request)?;
        let ports =
            record.process.as_ref().map(|process| container_ask::all_ports(ask, process)).transpose()?;
        // The guest is called as its VM is, unless it was asked for with a name of its own.
        let called = ask.append.as_deref().and_then(hostname_in).unwrap_or(&record.name);
        let machine =
            MachineSpec { append: creation::named(&record.machine.append, called), ..record.machine };
        let record = VmRecord {
            machine,
            process: record.process.map(|process| process.with_entrypoint(ask.entrypoint.as_deref())),
            entrypoint: ask.entrypoint.clone(),
            restart: ask.restart,
            wanted: !ask.restart.is_never(),
            ..record
        };
        // The image's files are compared by nobody who boots from them, either.
        self.verify_contents(&dir, &manifest)?;
        // For who removes what is not used.
        let _ = File::open(&dir).and_then(|dir| dir.set_modified(SystemTime::now()));
        let start = VmStart { attended_by: ask.attended_by };
        self.go_on(&dir, &manifest, record, ports.as_ref().unwrap_or(&ask.ports), &start, Runs::Nothing)
    }

    /// What is known of a VM from a template before it has a machine.
    fn record_from(
        &self,
        manifest: &Manifest,
        ask: &VmCreate,
        request: Option<Request>,
    ) -> Result<VmRecord, Fault> {
        let restore = SnapshotRestore {
            name: ask.name.clone(),
            remove: ask.remove,
            ports: Vec::new(),
            accel: Some(ask.accel).filter(|accel| *accel != Accel::Auto),
        };
        let record = self.record(manifest, &restore)?;
        ask.health.over(record.process.as_ref().and_then(|process| process.health.as_ref()))?;
        Ok(VmRecord {
            snapshot: Some(manifest.id.clone()),
            request,
            on_reboot: ask.on_reboot,
            command: ask.command.clone().or(record.command),
            health: if ask.health.is_usual() { record.health } else { ask.health.clone() },
            groups: crate::secgroups::distinct(&[record.groups, ask.groups.clone()].concat())?,
            labels: [record.labels, ask.labels.clone()].concat(),
            ..record
        })
    }
}
