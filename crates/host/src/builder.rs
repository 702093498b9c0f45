//! A VM for the builder of images: a runner in a directory of its own, which ends with the service.
use crate::images::RunVm;
use crate::networks::Networks;
use crate::places::Places;
use crate::plugs::card;
use crate::runners::Runner;
use crate::store::VmRecord;
use crate::{names, store};
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use viv_api::agent::Exec;
use viv_api::runner::{CONSOLE, RunnerSpec};
use viv_api::socket;
use viv_api::vm::{OnReboot, Process};
use viv_model::{End, Fault, Kind, MachineSpec};

/// How often it is looked whether the build was given up.
const LOOK: Duration = Duration::from_millis(200);

/// What a guest that boots for its kernel's code runs, and says then; the most that is read of what it says, and how long it may take.
/// It does with its disks, which are those of an image of containers, what the agent does in one.
const BOOTED: &str = "
ls -l /bin > /tmp/list; cat /proc/modules > /tmp/list
mkdir -p /lower /upper /guest
mount -t erofs -o ro /dev/vda /lower && mount -t ext4 /dev/vdb /upper && mkdir /upper/root /upper/work &&
mount -t overlay -o lowerdir=/lower,upperdir=/upper/root,workdir=/upper/work overlay /guest && {
    mkdir /guest/dev && mount -o bind /dev /guest/dev && umount /guest/dev
    cat /guest/file > /tmp/list; echo >> /guest/file; cp /bin/busybox /guest; /guest/busybox ls -lR /guest > /tmp/list
    sync; umount /guest; umount /upper; umount /lower
}
echo viv-has-booted; sleep 60";
const READY: &str = "viv-has-booted";
const SAID_MAX: usize = 1 << 20;
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Where builder VMs live. One with a card lives among the others, where switches look for it, and has an empty directory here.
fn root(places: &Places) -> PathBuf {
    places.state.join("builders")
}

/// Clears away what builder VMs of a service that was killed left behind.
pub(crate) fn clear(places: &Places) {
    if let Ok(entries) = fs::read_dir(root(places)) {
        for entry in entries.flatten() {
            for dir in [places.vms().join(entry.file_name()), entry.path()] {
                Runner::new(&dir).kill(None);
                let _ = fs::remove_dir_all(dir);
            }
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
        self.in_home(!spec.nics.is_empty(), |id, runner| self.run_in(id, runner, spec, command, console))
    }
}

impl BuilderVm<'_> {
    /// Makes an identity and a directory for a VM, and clears both away afterwards.
    fn in_home<T>(
        &self,
        has_card: bool,
        act: impl FnOnce(&str, &Runner) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let broken = |source| store::StoreError::Io { what: "make", path: root(self.places), source };
        let id = names::identity().map_err(broken)?;
        let (own, among_vms) = (root(self.places).join(&id), self.places.vms().join(&id));
        let dir = if has_card { &among_vms } else { &own };
        for dir in [&own, dir] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|source| store::StoreError::Io { what: "make", path: dir.clone(), source })?;
        }
        let runner = Runner::new(dir);
        let done = act(&id, &runner);
        runner.kill(None);
        for dir in [dir, &own] {
            let _ = fs::remove_dir_all(dir);
        }
        done
    }

    /// Plugs its cards in, which get their addresses.
    fn plug_in(&self, id: &str, machine: &mut MachineSpec) -> Result<Vec<OwnedFd>, Fault> {
        for (number, nic) in (0..).zip(&mut machine.nics) {
            (nic.id, nic.mac) = (number, card(id, number));
        }
        let record = VmRecord::new(id, "builder", machine.clone());
        let ports = machine.nics.iter().map(|nic| self.networks.plug(&record, nic, &[]));
        Ok(ports.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// Boots a guest of ours, and writes down what its processor has made of its code when its first command runs.
    pub(crate) fn boot_once(
        &self,
        lay_out: impl FnOnce(&Path) -> Result<MachineSpec, Fault>,
        code: &File,
    ) -> Result<(), Fault> {
        self.in_home(true, |id, runner| {
            let spec = lay_out(runner.dir())?;
            let command = Exec::new(["sh", "-c", BOOTED]);
            self.start(id, runner, &spec, Some(&command))?;
            let (mut said, begun) = (Vec::new(), Instant::now());
            let has_booted = |said: &[u8]| said.windows(READY.len()).any(|words| words == READY.as_bytes());
            let follow = |bytes: &[u8]| {
                said.extend_from_slice(
                    bytes.get(..bytes.len().min(SAID_MAX - said.len())).unwrap_or_default(),
                );
                has_booted(&said) || begun.elapsed() > BOOT_LIMIT
            };
            self.follow(runner, follow);
            let written = has_booted(&said).then(|| runner.translated(code, None));
            match written {
                Some(Ok(true)) => Ok(()),
                Some(Err(source)) => {
                    Err(store::StoreError::Io { what: "write", path: runner.dir().into(), source }.into())
                }
                _ => Err(Fault::new(
                    Kind::Error,
                    "the guest that boots for them said nothing",
                    "see whether others boot: viv run -- true",
                )),
            }
        })
    }

    /// Starts its process.
    fn start(
        &self,
        id: &str,
        runner: &Runner,
        spec: &MachineSpec,
        command: Option<&Exec>,
    ) -> Result<(), Fault> {
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
            translated: None,
        };
        let ports = self.plug_in(id, &mut spec.machine)?;
        runner.start(&spec, &ports, None).map(drop)
    }

    /// Gives what its console says to `console`, until that has enough or there is no more.
    fn follow(&self, runner: &Runner, mut console: impl FnMut(&[u8]) -> bool) {
        let mut socket = socket::connect(&runner.dir().join(CONSOLE)).ok();
        let mut piece = [0; 16 * 1024];
        while let Some(stream) = &mut socket {
            if (self.cancelled)() {
                runner.kill(None);
            }
            let _ = stream.set_read_timeout(Some(LOOK));
            let length = match stream.read(&mut piece) {
                Ok(0) => return,
                Ok(length) => length,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    0
                }
                Err(_) => return,
            };
            if console(piece.get(..length).unwrap_or_default()) {
                return;
            }
        }
    }

    fn run_in(
        &self,
        id: &str,
        runner: &Runner,
        spec: &MachineSpec,
        command: Option<&Exec>,
        console: &mut dyn FnMut(&[u8]),
    ) -> Result<End, Fault> {
        self.start(id, runner, spec, command)?;
        self.follow(runner, |bytes| {
            console(bytes);
            false
        });
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
