//! What this host is and can.
use crate::control_groups::ControlGroups;
use crate::places::Places;
use crate::runners;
use std::fs;
use std::os::unix::fs::MetadataExt;
use viv_api::info::{Host, Kvm, KvmState};
use viv_api::process::look;
use viv_api::runner::Probe;
use viv_model::Room;

/// How much memory there is.
pub(crate) fn room() -> Room {
    let nothing = Room { total_mib: 0, available_mib: 0, is_limited: false };
    Room::of(|path| String::from_utf8(look(path.as_ref())?).ok()).unwrap_or(nothing)
}

/// Processors, memory and kernel.
pub(crate) fn host(groups: &ControlGroups) -> Host {
    let room = room();
    Host {
        cpus: std::thread::available_parallelism().map_or(1, |number| number.get() as u32),
        memory_mib: room.total_mib,
        memory_available_mib: room.available_mib,
        control_groups: groups.version().ok(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string(),
    }
}

/// What a probe's result depends on: this program, the host's boot, and the device's number and rights.
fn probe_key() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let device = fs::metadata("/dev/kvm").map_or_else(
        |error| format!("{:?}", error.kind()),
        |data| format!("{:x} {:o} {}:{}", data.rdev(), data.mode(), data.uid(), data.gid()),
    );
    let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let program = fs::metadata("/proc/self/exe")
        .map_or_else(|_| String::new(), |data| format!("{} {}", data.ino(), data.mtime()));
    format!("{program} {} {device} {opens}", boot.trim())
}

/// What KVM is worth here: probed once for each boot of the host.
pub(crate) fn kvm(places: &Places) -> Kvm {
    let cache = places.state.join("kvm.json");
    let key = probe_key();
    let cached = fs::read(&cache).ok().and_then(|text| serde_json::from_slice::<(String, Probe)>(&text).ok());
    if let Some((cached_key, probe)) = cached
        && cached_key == key
    {
        return probe.kvm;
    }
    match runners::probe() {
        Ok(probe) => {
            let entry = (key, probe);
            let _ = crate::store::write_whole(&cache, &entry); // it is only slower without
            entry.1.kvm
        }
        Err(error) => Kvm {
            state: KvmState::Unusable,
            detail: format!("the probe of /dev/kvm broke off: {error}"),
            fix: "use --accel soft; to see why, run: viv runner --probe".into(),
        },
    }
}
