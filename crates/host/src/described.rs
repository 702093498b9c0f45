//! The document that describes a VM, from its record: what `viv create -f` makes another one like it from.
use crate::seed;
use crate::store::VmRecord;
use crate::volumes;
use std::path::{Path, PathBuf};
use viv_api::vm::VmCreate;
use viv_model::{DiskSpec, Fault, ImageDiskSpec, Kind, NetKind, NicCreate, NicSpec};

/// What the VM in `dir` is made from. What lies in `dir` came with its image, and comes with it again.
pub(crate) fn spec_of(record: &VmRecord, dir: &Path) -> VmCreate {
    let machine = &record.machine;
    let own = |path: &PathBuf| (!path.starts_with(dir)).then(|| path.clone());
    let (of_image, others): (Vec<DiskSpec>, Vec<DiskSpec>) = machine
        .disks
        .iter()
        .filter(|disk| !seed::is_seed(disk) && !volumes::is_one(disk, dir))
        .cloned()
        .partition(|disk| disk.path.starts_with(dir));
    let mut image_disks: Vec<ImageDiskSpec> = of_image.iter().map(ImageDiskSpec::of).collect();
    if image_disks.iter().all(|disk| *disk == ImageDiskSpec::default()) {
        image_disks.clear();
    }
    let cards = machine.nics.iter().map(|NicSpec { net, limits, groups, address, .. }| NicCreate {
        net: net.clone(),
        limits: *limits,
        groups: groups.clone(),
        ip: address.filter(|_| net.is_of_kernel()),
    });
    let mut nics: Vec<NicCreate> = cards.collect();
    // One alone has a short form.
    let short = match nics.as_slice() {
        [] => Some((NetKind::None, Default::default())),
        [NicCreate { net, limits, groups, ip: None }] if groups.is_empty() => Some((net.clone(), *limits)),
        _ => None,
    };
    if short.is_some() {
        nics.clear();
    }
    let (net, nic_limits) = short.map_or((None, Default::default()), |(net, limits)| (Some(net), limits));
    VmCreate {
        schema: None,
        name: Some(record.name.clone()),
        image: record.image.clone(),
        project: Some(record.project.clone()).filter(|project| !project.is_default()),
        cpus: Some(machine.cpus),
        memory_mib: Some(machine.memory_mib),
        memory_max_mib: machine.memory_max_mib,
        cpu_limit_milli: machine.cpu_limit_milli,
        cpu_weight: machine.cpu_weight,
        accel: machine.accel,
        soft: machine.soft,
        program: record.program.clone(),
        kernel: Some(&machine.kernel).filter(|_| record.program.is_none()).and_then(own),
        initrd: machine.initrd.as_ref().and_then(own),
        append: match &record.image {
            None if record.program.is_some() => None,
            None => Some(machine.append.clone()),
            Some(_) => record.append.clone(),
        },
        image_disks,
        disks: others,
        cloud_init: seed::settings(dir).unwrap_or_default(),
        shares: machine.shares.clone(),
        net,
        nic_limits,
        nics,
        ports: machine.published().cloned().collect(),
        console_ports: machine.console_ports.clone(),
        groups: record.groups.clone(),
        labels: record.labels.clone(),
        start: false,
        remove: record.remove,
        on_reboot: record.on_reboot,
        restart: record.restart,
        attended_by: None,
        command: record.command.clone(),
        entrypoint: record.entrypoint.clone(),
        health: record.health.clone(),
        volumes: record.volumes.clone(),
        files: record.files.clone(),
        publish_all: false,
    }
}

/// Sets what was asked of an image's disks.
pub(crate) fn set_image_disks(disks: &mut [DiskSpec], asked: &[ImageDiskSpec]) -> Result<(), Fault> {
    if asked.len() > disks.len() {
        let text = format!("image_disks names {} disks, and the image has {}", asked.len(), disks.len());
        return Err(Fault::new(Kind::Usage, text, "name other disks in: disks"));
    }
    for (disk, asked) in disks.iter_mut().zip(asked) {
        asked.set(disk);
        disk.check()?;
    }
    Ok(())
}
