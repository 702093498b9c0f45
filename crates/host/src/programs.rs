//! VMs that are a program, and no whole computer.
use crate::creation::{fits, no_random};
use crate::guest_commands::Runs;
use crate::names;
use crate::places::Places;
use crate::store::{Request, VmRecord};
use crate::vms::{Vms, absolute};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use viv_api::endpoint::Route;
use viv_api::runner::{RunnerProgram, not_saved};
use viv_api::timestamp::Timestamp;
use viv_api::vm::{Vm, VmCreate, VmStart};
use viv_model::{
    Accel, Fault, GuestKind, HealthAsk, Kind, MachineSpec, NetKind, PROGRAM_MEMORY_MIB_USUAL, ProgramSpec,
    ShareSpec,
};
use viv_oci::Reference;

/// The VM's own copy of its program.
pub(crate) const COPY: &str = "program";
/// What a chain keeps, in its VM's directory.
const CHAIN_LOG: &str = "chain/chain.log";
/// Where a package puts the processes of programs, from the directory of `viv`.
const PACKAGED: &str = "../lib/vivarium";

impl VmRecord {
    /// What kind of machine it is.
    pub(crate) fn kind(&self) -> GuestKind {
        self.program.as_ref().map(|program| program.kind).unwrap_or_default()
    }
}

/// The machine of a program, whose file is copied into the VM's directory; `image` has those that are images of the store.
pub(crate) fn machine_of(
    ask: &VmCreate,
    program: &ProgramSpec,
    dir: &Path,
    image: impl Fn(&str) -> Result<PathBuf, Fault>,
) -> Result<MachineSpec, Fault> {
    program.check()?;
    only_of_programs(ask, program.kind)?;
    executable(program.kind)?;
    let ports = if wants_network(ask)? { Vec::new() } else { ask.ports.clone() };
    program.kind.check_ports(&ports)?;
    let memory_mib = ask.memory_mib.unwrap_or(PROGRAM_MEMORY_MIB_USUAL);
    let kernel = PathBuf::new();
    let machine = MachineSpec { memory_mib, kernel, ports, ..ask.machine() };
    check(&machine)?;
    fits(memory_mib)?;
    if let Some(share) = ask.shares.iter().find(|share| program.deterministic && !share.read_only) {
        let text = format!("a deterministic run cannot change the directory {}", share.path.display());
        return Err(Fault::new(Kind::Usage, text, "share it with :ro, or leave out --deterministic"));
    }
    for share in &ask.shares {
        absolute(&share.path)?;
        if !share.path.is_dir() {
            let text = format!("cannot share {}: it is no directory", share.path.display());
            return Err(Fault::new(Kind::NotFound, text, "name a directory that is there: -v DIR:PATH"));
        }
    }
    if program.kind.has_file() {
        match program.file.to_str().filter(|name| Reference::is_one(name)) {
            Some(name) => copy(&image(name)?, dir)?,
            None => {
                absolute(&program.file)?;
                copy(&program.file, dir)?;
            }
        }
    }
    Ok(machine)
}

/// Checks what a program has of a machine.
pub(crate) fn check(machine: &MachineSpec) -> Result<(), Fault> {
    let wrong = |what, fix| Err(Fault::new(Kind::Usage, what, fix));
    if machine.memory_mib == 0 {
        return wrong("a program needs memory", "use --memory with at least 1M");
    }
    if machine.cpus != 1 || machine.memory_max_mib.is_some() || machine.accel != Accel::Auto {
        return wrong(
            "a program has one thread, and all its memory at once",
            "change its --memory, its labels and its restart policy only",
        );
    }
    viv_model::check_processor_time(machine)?;
    ShareSpec::check_all_of_program(&machine.shares)
}

/// Puts the file into the directory, which is made.
fn copy(file: &Path, dir: &Path) -> Result<(), Fault> {
    let cannot = |what: &str, error: &std::io::Error| {
        Fault::new(
            Kind::of_file(error),
            format!("cannot {what} {}: {error}", file.display()),
            "name a file that is there and that you may read, and see that there is room: viv info",
        )
    };
    let data = fs::metadata(file).map_err(|error| cannot("read the program", &error))?;
    if !data.is_file() {
        let text = format!("{} is no file", file.display());
        return Err(Fault::new(Kind::NotRunnable, text, "name the program's file: viv run FILE"));
    }
    fs::DirBuilder::new().recursive(true).create(dir).map_err(|error| cannot("make a VM of", &error))?;
    fs::copy(file, dir.join(COPY)).map(drop).map_err(|error| cannot("copy the program", &error))
}

/// Whether a network was asked for.
fn has_network(ask: &VmCreate) -> bool {
    ask.net.as_ref().is_some_and(|net| *net != NetKind::None) || !ask.nics.is_empty()
}

/// Checks what a program asks of a network; whether it is to have one. What its engine makes of it, that says when it starts.
pub(crate) fn wants_network(ask: &VmCreate) -> Result<bool, Fault> {
    let wrong = |text: &str, fix: &str| Err(Fault::new(Kind::Usage, text, fix));
    match ask.cards()?.as_slice() {
        _ if !has_network(ask) && !ask.groups.is_empty() => {
            wrong("security groups are for what has a network", "add --net user, or leave out --secgroup")
        }
        _ if !has_network(ask) => Ok(false),
        [card] if !matches!(card.net, NetKind::User { .. } | NetKind::Named(_)) => wrong(
            "a program has no place on a tap device or a bridge of the host",
            "use --net user, or --net NETWORK",
        ),
        [_] => Ok(true),
        _ => wrong("a program has one network card", "use --net once"),
    }
}

/// Refuses what only a whole computer has.
fn only_of_programs(ask: &VmCreate, kind: GuestKind) -> Result<(), Fault> {
    let wants = [
        ("an image", "IMAGE", ask.image.is_some()),
        ("a kernel", "--kernel", ask.kernel.is_some()),
        ("an initial RAM disk", "--initrd", ask.initrd.is_some()),
        ("a kernel's command line", "--append", ask.append.is_some()),
        ("disks", "--disk", !ask.disks.is_empty() || !ask.image_disks.is_empty()),
        ("cloud-init", "--user-data", ask.cloud_init.is_wanted(false)),
        ("a command", "COMMAND", ask.command.is_some()),
        ("an entry point", "--entrypoint", ask.entrypoint.is_some()),
        ("volumes", "-v PATH", !ask.volumes.is_empty()),
        ("files in its image", "files", !ask.files.is_empty()),
        ("directories", "-v", kind == GuestKind::Evm && !ask.shares.is_empty()),
        ("the ports of an image", "-P", ask.publish_all),
        ("a network", "--net", kind != GuestKind::Wasm && (has_network(ask) || !ask.groups.is_empty())),
        ("ports of its console", "--console-port", !ask.console_ports.is_empty()),
        ("a health check", "--health-cmd", ask.health != HealthAsk::default()),
        ("memory that it may get later", "--memory-max", ask.memory_max_mib.is_some()),
        ("several processors", "--cpus", ask.cpus.is_some_and(|cpus| cpus != 1)),
        ("a kind of processor", "--accel", ask.accel != Accel::Auto || !ask.soft.is_usual()),
    ];
    match wants.into_iter().find(|(_, _, wanted)| *wanted) {
        Some((what, option, _)) => Err(Fault::new(
            Kind::Usage,
            format!("{} has no use for {what}", kind.called()),
            format!("leave out {option}"),
        )),
        None => Ok(()),
    }
}

/// What its process is told of a program.
pub(crate) fn told(record: &VmRecord, dir: &Path, places: &Places) -> Option<RunnerProgram> {
    let program = record.program.as_ref()?;
    let called = program.file.file_name().unwrap_or(OsStr::new("program"));
    Some(RunnerProgram {
        spec: ProgramSpec { file: dir.join(COPY), ..program.clone() },
        original: program.file.clone(),
        called: called.to_string_lossy().into_owned(),
        cache: places.programs(),
        awaited: record.attended_by.is_some(),
    })
}

/// The process of a program of this kind.
pub(crate) fn executable(kind: GuestKind) -> Result<Command, Fault> {
    let name = format!("viv-{kind}");
    let package = if kind == GuestKind::Evm { "viv-chain" } else { &name };
    let missing = |what: String| {
        Fault::new(
            Kind::NotRunnable,
            what,
            format!("install it beside viv; from the sources: cargo build --release -p {package}"),
        )
    };
    let ours =
        std::env::current_exe().map_err(|error| missing(format!("viv cannot find itself: {error}")))?;
    let beside = ours.parent().unwrap_or(Path::new("/"));
    let found =
        [beside.join(&name), beside.join(PACKAGED).join(&name)].into_iter().find(|path| path.is_file());
    found.map(|path| crate::runners::in_root(Command::new(path))).ok_or_else(|| {
        missing(format!(
            "{} is run by the program {name}, which is not in {}",
            kind.called(),
            beside.display()
        ))
    })
}

impl Vms {
    /// Chains that go on from where this one is, beside it; without its ports, which are taken. Its log is only added to, and each
    /// record has its checksum: a copy of any moment is the chain of that moment, whether it runs or not.
    pub(crate) fn fork_chain(
        &self,
        source: &VmRecord,
        forks: impl Iterator<Item = (String, Option<Request>)>,
        remove: bool,
    ) -> Result<Vec<Vm>, Fault> {
        let log = self.places.vms().join(&source.id).join(CHAIN_LOG);
        let failed = |error: std::io::Error| {
            Fault::new(
                Kind::of_file(&error),
                format!("cannot copy the chain of VM {:?}, {}: {error}", source.name, log.display()),
                format!("see that it has run, and that there is room: viv start {}, viv info", source.name),
            )
        };
        let mut made: Vec<Vm> = Vec::new();
        let mut fork = |(name, request): (String, Option<Request>)| {
            let name = self.name(&source.project, Some(&name))?;
            let id = names::identity().map_err(no_random)?;
            let to = self.places.vms().join(&id);
            let copy = to.join(CHAIN_LOG);
            // Its chain is there before it is known: whoever is killed over this leaves a fork or none, and never a chain that begins anew.
            let begun = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(copy.parent().unwrap_or(&to))
                .and_then(|()| fs::copy(&log, &copy).map(drop))
                .map_err(failed);
            let record = VmRecord {
                id: id.clone(),
                name,
                created_at: Timestamp::now(),
                machine: MachineSpec { ports: Vec::new(), ..source.machine.clone() },
                started_at: None,
                attended_by: None,
                remove,
                wanted: !source.restart.is_never(),
                request,
                ..source.clone()
            };
            let vm = begun.and_then(|()| self.insert_and_start(record, &VmStart::default(), Runs::All));
            let vm = vm.inspect_err(|_| {
                let _ = (self.remove(&id, true), fs::remove_dir_all(&to));
            })?;
            made.push(vm.clone());
            Ok(vm)
        };
        let forked: Result<Vec<Vm>, Fault> = forks.map(&mut fork).collect();
        if forked.is_err() {
            for vm in &made {
                let _ = self.remove(&vm.id, true);
            }
        }
        forked
    }

    /// Refuses what only a whole computer can do, if that is a program.
    pub(crate) fn refuse_for_program(&self, route: Route, name: &str) -> Result<(), Fault> {
        let Ok((record, _)) = self.find(name) else {
            return Ok(()); // the route says it in its own words
        };
        let (what, fix) = match route {
            Route::VmFork if record.kind() == GuestKind::Evm => return Ok(()),
            Route::VmFork | Route::VmRollback if record.kind() == GuestKind::Wasm => return Ok(()),
            Route::VmFork | Route::VmRollback => return refuse_to_save(&record),
            Route::VmDiskLimits | Route::VmDiskSize | Route::VmDiskAttach | Route::VmDiskDetach => {
                ("has no disks", "give it a directory: viv run -v DIR:PATH FILE")
            }
            Route::VmShareAttach | Route::VmShareDetach => (
                "has its directories from its start to its end",
                "describe another one: viv run -v DIR:PATH FILE",
            ),
            Route::VmNicAttach | Route::VmNicDetach => {
                ("has no network cards", "hand it what it needs: standard input, or -v DIR:PATH")
            }
            Route::VmMemory => {
                ("has its memory as a limit", "stop it, and change the limit: viv update --memory")
            }
            Route::VmConnect | Route::VmConnectSocket => {
                ("has no ports", "talk to it over its standard streams: viv run FILE")
            }
            Route::VmCommit | Route::VmExport => {
                ("has no disks of which an image could be made", "its file is its image: viv run FILE")
            }
            _ => return Ok(()),
        };
        refuse(&record, what, fix)
    }
}

/// Refuses a machine from elsewhere that is to be one of a program, if it has more than that.
pub(crate) fn only_a_program(machine: &MachineSpec, program: &ProgramSpec) -> Result<(), Fault> {
    program.check()?;
    check(machine)?;
    let devices = !(machine.disks.is_empty() && machine.nics.is_empty() && machine.console_ports.is_empty());
    program.kind.check_ports(&machine.ports)?;
    if program.kind != GuestKind::Wasm || devices {
        let text = format!("the snapshot is of {}, and has more than that", program.kind.called());
        return Err(Fault::new(Kind::Usage, text, "use one that viv snapshot export has written"));
    }
    Ok(())
}

/// Refuses to save a program that cannot be saved while it runs.
pub(crate) fn refuse_to_save(record: &VmRecord) -> Result<(), Fault> {
    match &record.program {
        Some(program) if program.kind == GuestKind::Wasm => {
            if !program.no_snapshots {
                return Ok(());
            }
            let fix = "start it anew without --no-snapshots";
            return refuse(record, "was started so that it cannot be saved, and is faster", fix);
        }
        _ => {}
    }
    let (what, fix) = not_saved(record.kind());
    refuse(record, what, fix)
}

/// Refuses something for a program.
pub(crate) fn refuse(record: &VmRecord, what: &str, fix: &str) -> Result<(), Fault> {
    if !record.kind().is_program() {
        return Ok(());
    }
    let text = format!("VM {:?} is {}: it {what}", record.name, record.kind().called());
    Err(Fault::new(Kind::Conflict, text, fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_has_no_use_for_is_named() {
        let refusal = |ask: VmCreate| only_of_programs(&ask, GuestKind::Wasm);
        assert_eq!(refusal(VmCreate { cpus: Some(1), ..VmCreate::default() }), Ok(()));
        let fault = refusal(VmCreate { kernel: Some("/k".into()), ..VmCreate::default() }).unwrap_err();
        assert!(fault.message.contains("a kernel") && fault.fix.contains("--kernel"), "{fault}");
        for ask in [
            VmCreate { publish_all: true, ..VmCreate::default() },
            VmCreate { accel: Accel::Soft, ..VmCreate::default() },
            VmCreate { cpus: Some(2), ..VmCreate::default() },
        ] {
            assert_eq!(refusal(ask).unwrap_err().kind, Kind::Usage);
        }
        let net = |net| VmCreate { net: Some(net), ..VmCreate::default() };
        let user = || net(NetKind::User { host: false });
        assert_eq!((refusal(user()), wants_network(&user())), (Ok(()), Ok(true)));
        assert_eq!(wants_network(&VmCreate::default()), Ok(false));
        assert_eq!(only_of_programs(&user(), GuestKind::Jvm).unwrap_err().kind, Kind::Usage);
        let groups = VmCreate { groups: vec!["web".into()], ..VmCreate::default() };
        for ask in [groups, net(NetKind::Tap("t".into()))] {
            assert_eq!(wants_network(&ask).unwrap_err().kind, Kind::Usage);
        }
    }
}
