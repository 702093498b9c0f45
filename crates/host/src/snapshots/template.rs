//! Templates: snapshots by whose name VMs are made, as from images, but with memory.
use super::Snapshots;
use crate::store::{Request, VmRecord};
use viv_api::snapshot::SnapshotRestore;
use viv_api::vm::{Vm, VmCreate, VmStart};
use viv_model::{Accel, Fault, Kind, ProjectName};

impl Snapshots {
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
        let left = VmCreate {
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
        };
        if *ask != left {
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
        let restore = SnapshotRestore {
            name: ask.name.clone(),
            remove: ask.remove,
            ports: Vec::new(),
            accel: Some(ask.accel).filter(|accel| *accel != Accel::Auto),
        };
        let mut record = self.record(&manifest, &restore)?;
        ask.health.over(record.process.as_ref().and_then(|process| process.health.as_ref()))?;
        self.verify_disks(&dir, &manifest)?;
        record = VmRecord {
            snapshot: Some(manifest.id.clone()),
            request,
            on_reboot: ask.on_reboot,
            command: ask.command.clone().or(record.command),
            health: if ask.health.is_usual() { record.health } else { ask.health.clone() },
            groups: crate::secgroups::distinct(&[record.groups, ask.groups.clone()].concat())?,
            labels: [record.labels, ask.labels.clone()].concat(),
            ..record
        };
        let start = VmStart { attended_by: ask.attended_by };
        self.go_on(&dir, &manifest, record, &ask.ports, &start, ask.command.is_some())
    }
}
