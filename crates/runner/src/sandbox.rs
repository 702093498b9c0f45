//! The host's files that a VM's process needs besides its own.
use std::path::PathBuf;
use viv_api::runner::RunnerSpec;
use viv_cell::sandbox::Files;
use viv_machine::{PerfMap, files_below};
use viv_model::Fault;

/// What it boots, its disks with what is below them, and what its processor is made of.
pub(crate) fn files(spec: &RunnerSpec) -> Result<Files, Fault> {
    let machine = &spec.machine;
    let mut files = Files { devices: vec![PathBuf::from("/dev/kvm")], ..Files::default() };
    files.read.push(machine.kernel.clone());
    files.read.extend(machine.initrd.clone());
    files.read.extend(spec.translated.clone());
    for disk in &machine.disks {
        if disk.read_only { &mut files.read } else { &mut files.write }.push(disk.path.clone());
        files.read.extend(files_below(disk)?);
    }
    if machine.soft.perf_map {
        files.write.push(PerfMap::path());
    }
    Ok(files)
}
