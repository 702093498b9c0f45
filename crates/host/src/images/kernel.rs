//! Our own kernel for virtual machines: the distribution's `linux-source`, compiled here with our configuration (decision 072).
//!
//! ```text
//!  linux-source-*.deb ─► tree of sources ─► allnoconfig + kernel.config ─► make vmlinux ─► strip ─► the image "kernel"
//!       apt.rs, deb.rs     sources.rs               configure                 compile
//! ```
//! The same packages, configuration and compiler give the same bytes: nothing of the place, the time or the user gets in.
use super::apt::{Apt, FetchFault, Wanted};
use super::fault::{broken, cancelled, io_fault};
use super::{Image, KERNEL, Manifest, Options, Package, Part, REVISION_LABEL, Recipe, Watcher};
use super::{default_guest, need_space, sources, step, store};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};
use store::{Lock, Scratch, Store};
use viv_api::operation::Progress;
use viv_model::{Fault, Kind};

/// Raise it when what this file makes changes: the kernel is then built again.
pub(super) const REVISION: u32 = 1;
/// Depends on the package with the sources of the distribution's kernel.
const META: &str = "linux-source";
/// What we set on top of `allnoconfig`.
const CONFIG: &str = include_str!("kernel.config");
/// From here on, [`CONFIG`] has what a version of Linux may lack.
const OPTIONAL: &str = "# ===== As far as the version has it.";
/// The label that says which version of Linux it is.
const VERSION_LABEL: &str = "vivarium.kernel.version";
/// The programs that compile it, and the packages that have them.
const TOOLS: [(&str, &str); 9] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("strip", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("setpriv", "util-linux"),
];
/// Room that sources and objects take, bytes.
const ROOM: u64 = 2 << 30;
/// About how many lines `make` prints: the measure of progress, and nothing else.
const LINES: u64 = 2000;
/// How often the compiler is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Most bytes of the compiler's messages that are read for a fault.
const MESSAGES_LEN_MAX: u64 = 16 << 20;

/// Our own kernel, if it has been built.
pub(super) fn present(store: &Store) -> Result<Option<Image>, Fault> {
    let image = store.get(Recipe::Kernel.name())?;
    // Another image may have got the name before there was this recipe.
    Ok(image
        .filter(|image| image.manifest.kernel.is_some() && image.manifest.labels.contains_key(VERSION_LABEL)))
}

/// Builds the image, or finds that it is there already.
pub(super) fn build(
    store: &Store,
    lock: &Lock,
    scratch: &Scratch,
    options: &Options,
    watcher: &dyn Watcher,
) -> Result<Image, Fault> {
    need_tools()?;
    step(watcher, "looking for the newest sources");
    let cache = store.cache_dir();
    let mut apt = Apt::open(&cache.join("apt"), &[META], options.update, watcher)?;
    let before = present(store)?.filter(|_| !options.force);
    let (wanted, key, debs) = loop {
        let wanted = resolve(&apt)?;
        let key = key(&wanted)?;
        if let Some(image) = &before
            && image.manifest.key == key
            && image.manifest.parts().all(|part| store.part(image, part).is_ok())
        {
            return Ok(image.clone());
        }
        match apt.fetch(&wanted, &cache.join("debs"), scratch.path()) {
            Ok(debs) => break (wanted, key, debs),
            Err(FetchFault::Fault(fault)) => return Err(fault),
            // Lists of our own are fresh: this happens once.
            Err(FetchFault::Stale(fault)) => {
                step(watcher, &format!("the package lists are old ({})", fault.message));
                apt.update()?;
            }
        }
    };
    let work = Work { dir: scratch.path().join("linux"), log: cache.join("kernel.log"), watcher };
    need_space(scratch.path(), ROOM)?;
    for deb in &debs {
        sources::unpack(deb, &work.dir, watcher)?;
    }
    work.configure()?;
    let (kernel, version) = work.compile()?;
    if watcher.cancelled() {
        return Err(cancelled());
    }
    step(watcher, "storing the kernel");
    let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let packages =
        wanted.into_iter().map(|package| Package { name: package.name, version: package.version }).collect();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Manifest::MEDIA_TYPE.to_string(),
        key,
        created,
        summary: format!("Linux {version}, for the default guest and images of containers"),
        kernel: Some(store.add_blob(&kernel, KERNEL, lock)?),
        initrd: None,
        disks: Vec::new(),
        container: None,
        program: None,
        usual: Default::default(),
        append: String::new(),
        packages,
        labels: BTreeMap::from([
            (REVISION_LABEL.to_string(), Recipe::Kernel.revision().to_string()),
            (VERSION_LABEL.to_string(), version),
        ]),
    };
    store.publish(Recipe::Kernel.name(), &manifest, lock)
}

fn resolve(apt: &Apt<'_>) -> Result<Vec<Wanted>, Fault> {
    let missing = || {
        Fault::new(
            Kind::NotFound,
            format!("apt's package lists have no sources of a kernel (looked for {META})"),
            "add a Debian archive to apt's sources, then run the build again",
        )
    };
    let stanza = apt.show(META)?.ok_or_else(missing)?;
    let names = default_guest::depends_on(&stanza, &["linux-source-"]);
    apt.locate(&names.into_iter().take(1).collect::<Vec<_>>())
        .and_then(|wanted| if wanted.is_empty() { Err(missing()) } else { Ok(wanted) })
}

/// What decides whether the kernel must be built again: sources, configuration, compiler and linker.
fn key(wanted: &[Wanted]) -> Result<String, Fault> {
    let mut text = format!("{}\n{}\n{CONFIG}", Recipe::Kernel.revision(), super::apt::digest(wanted));
    for tool in ["gcc", "ld"] {
        let output = Command::new(tool).arg("--version").env("LC_ALL", "C").stdin(Stdio::null()).output();
        text += &String::from_utf8_lossy(&output.map_err(io_fault("run", Path::new(tool)))?.stdout);
    }
    Ok(store::sha256(text.as_bytes()))
}

/// Refuses to begin without what compiles it, naming the packages.
fn need_tools() -> Result<(), Fault> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut missing: BTreeSet<&str> = TOOLS
        .iter()
        .filter(|(tool, _)| !std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
        .map(|(_, package)| *package)
        .collect();
    // The kernel's own checker of objects is linked with it.
    if !missing.contains("gcc") && !has_header("gelf.h") {
        missing.insert("libelf-dev");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.into_iter().collect();
    Err(Fault::new(
        Kind::Usage,
        format!("a kernel cannot be compiled here without: {}", packages.join(", ")),
        format!("install them: sudo apt install {}", packages.join(" ")),
    ))
}

fn has_header(name: &str) -> bool {
    let mut command = Command::new("gcc");
    command.args(["-x", "c", "-fsyntax-only", "-include", name, "/dev/null"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Options of a configuration: the lines that set one.
fn set(config: &str) -> impl Iterator<Item = &str> {
    config.lines().filter(|line| line.starts_with("CONFIG_"))
}

/// Which of the options without which there is no kernel `made` does not have.
fn lacking(made: &str) -> Vec<&'static str> {
    let made: BTreeSet<&str> = set(made).collect();
    let needed = CONFIG.split(OPTIONAL).next().unwrap_or(CONFIG);
    set(needed).filter(|line| !made.contains(line)).collect()
}

/// A tree of sources, and who waits for what becomes of it.
struct Work<'a> {
    dir: PathBuf,
    log: PathBuf,
    watcher: &'a dyn Watcher,
}

impl Work<'_> {
    fn configure(&self) -> Result<(), Fault> {
        let wishes = self.dir.join("viv.config");
        fs::write(&wishes, CONFIG).map_err(io_fault("write", &wishes))?;
        let mut command = self.tool("make");
        command.arg("KCONFIG_ALLCONFIG=viv.config").arg("allnoconfig");
        self.run(command, "configuring the kernel", None)?;
        let made = self.dir.join(".config");
        let lacks = lacking(&fs::read_to_string(&made).map_err(io_fault("read", &made))?);
        if lacks.is_empty() {
            return Ok(());
        }
        Err(Fault::new(
            Kind::Error,
            format!("this version of Linux does not take our configuration: it has no {}", lacks.join(", ")),
            "report it with the version of the package linux-source; the distribution's kernel goes on being used",
        ))
    }

    /// The stripped kernel, and its version.
    fn compile(&self) -> Result<(PathBuf, String), Fault> {
        let mut command = self.tool("make");
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        command.arg(format!("-j{processors}")).arg("vmlinux");
        self.run(command, "compiling the kernel", Some(LINES))?;
        let mut command = self.tool("strip");
        command.args(["-s", "-o", "kernel.stripped", "vmlinux"]);
        self.run(command, "stripping the kernel", None)?;
        let release = self.dir.join("include/config/kernel.release");
        let version = fs::read_to_string(&release).map_err(io_fault("read", &release))?;
        Ok((self.dir.join("kernel.stripped"), version.trim().to_string()))
    }

    /// A program in the tree of sources, with nothing of our surroundings. It goes away with us.
    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "nice", "-n", "10", program]);
        command.current_dir(&self.dir).env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.envs([
            ("LC_ALL", "C"),
            ("TZ", "UTC"),
            ("ARCH", "x86_64"),
            ("KBUILD_BUILD_TIMESTAMP", "1970-01-01"),
            ("KBUILD_BUILD_USER", "viv"),
            ("KBUILD_BUILD_HOST", "viv"),
            ("KBUILD_BUILD_VERSION", "1"),
        ]);
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    /// Runs it to its end, counting the lines that it says.
    fn run(&self, mut command: Command, what: &str, lines: Option<u64>) -> Result<(), Fault> {
        let log = File::create(&self.log).map_err(io_fault("write", &self.log))?;
        let mut said = File::open(&self.log).map_err(io_fault("read", &self.log))?;
        command.stdout(log.try_clone().map_err(io_fault("write", &self.log))?).stderr(log);
        let child = command.spawn().map_err(io_fault("run", Path::new("setpriv")))?;
        let mut group = Group(child);
        let (mut done, mut piece) = (0u64, vec![0; 64 << 10]);
        let status = loop {
            let ended = group.0.try_wait().map_err(io_fault("wait for", &self.dir))?;
            while let Ok(read @ 1..) = said.read(&mut piece) {
                let lines = piece.iter().take(read).filter(|byte| **byte == b'\n').count();
                done = done.saturating_add(lines as u64);
            }
            if let Some(status) = ended {
                break status;
            }
            if self.watcher.cancelled() {
                return Err(cancelled());
            }
            // The count is a guess: it does not say that all is done.
            let done = lines.map_or(0, |lines| done.min(lines.saturating_sub(1)));
            self.watcher.progress(Progress { step: what.to_string(), done, total: lines, bytes: false });
            std::thread::sleep(LOOK);
        };
        if status.success() { Ok(()) } else { Err(self.failed(what, status)) }
    }

    fn failed(&self, what: &str, status: ExitStatus) -> Fault {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(&self.log) {
            let _ = file.take(MESSAGES_LEN_MAX).read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let line = complaint(&text).unwrap_or("it said nothing");
        let fix = format!("its messages are in {}", self.log.display());
        if text.contains("No space left on device") {
            return Fault::new(
                Kind::NoCapacity,
                format!("{what} failed: {line}"),
                format!("free 2 GiB at {}; {fix}", self.dir.display()),
            );
        }
        Fault::new(Kind::Error, format!("{what} failed ({status}): {line}"), fix)
    }
}

/// The line that says what went wrong first.
fn complaint(text: &str) -> Option<&str> {
    let mut lines = text.lines();
    lines.find(|line| line.contains("error:") || line.contains("***")).or_else(|| text.lines().next_back())
}

/// A program with all that it has started; none of them outlives our interest.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Once it has been waited for, its number may be somebody else's.
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.0.wait();
        }
    }
}

/// The fault for somebody who wants to run it.
pub(super) fn alone(name: &str) -> Fault {
    Fault::new(
        Kind::Usage,
        format!("the image {name} is a kernel alone: there is nothing to run in it"),
        "run the default guest, which uses it while it is there: viv run",
    )
}

/// The digest of our own kernel.
pub(super) fn digest(image: &Image) -> Option<&String> {
    image.manifest.kernel.as_ref().map(|part| &part.digest)
}

/// Our own kernel as a part of another image, and its version.
pub(super) fn part(store: &Store, image: &Image) -> Result<(Part, String), Fault> {
    let version = image.manifest.labels.get(VERSION_LABEL);
    let (Some(part), Some(version)) = (&image.manifest.kernel, version) else {
        return Err(broken(&image.name, "it has no kernel or does not tell its version"));
    };
    store.part(image, part)?;
    Ok((part.clone(), version.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_cannot_do_without_must_be_in_the_configuration_that_was_made() {
        assert!(CONFIG.contains(OPTIONAL));
        assert_eq!(lacking(CONFIG), [""; 0]);
        let without = CONFIG.replace("CONFIG_EROFS_FS=y\n", "# CONFIG_EROFS_FS is not set\n");
        assert_eq!(lacking(&without), ["CONFIG_EROFS_FS=y"]);
        let (needed, optional) = CONFIG.split_once(OPTIONAL).unwrap();
        assert_eq!(lacking(needed), [""; 0], "{optional}");
        assert!(lacking(optional).len() > 100);
    }

    #[test]
    fn each_option_is_set_once() {
        let mut names = BTreeSet::new();
        for line in set(CONFIG) {
            let (name, value) = line.split_once('=').unwrap();
            assert!(names.insert(name), "{name}");
            assert!(!value.is_empty(), "{line}");
        }
    }

    #[test]
    fn a_compiler_that_fails_is_quoted_and_one_that_is_not_needed_is_killed_with_its_children() {
        struct Given(std::sync::atomic::AtomicBool);
        impl Watcher for Given {
            fn progress(&self, progress: Progress) {
                // The first line has come: it runs.
                if progress.done > 0 {
                    self.0.store(true, std::sync::atomic::Ordering::Relaxed);
                }
            }
            fn cancelled(&self) -> bool {
                self.0.load(std::sync::atomic::Ordering::Relaxed)
            }
        }
        let dir = std::env::temp_dir().join(format!("viv-kernel-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let given = Given(false.into());
        let work = Work { dir: dir.clone(), log: dir.join("log"), watcher: &given };
        let shell = |script: &str| {
            let mut command = work.tool("sh");
            command.args(["-c", script]);
            command
        };
        let fault =
            work.run(shell("echo fine; echo 'a.c:1: error: no'; exit 2"), "compiling", Some(9)).unwrap_err();
        assert!(fault.message.contains("a.c:1: error: no") && fault.fix.contains("log"), "{fault}");
        given.0.store(false, std::sync::atomic::Ordering::Relaxed);
        let fault = work.run(shell("sleep 1000 & echo $! > child; echo begun; wait"), "compiling", Some(9));
        assert_eq!(fault.unwrap_err(), cancelled());
        let child = fs::read_to_string(dir.join("child")).unwrap();
        // Its new parent buries it: it is gone, or dead at least.
        let state = || fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        while !(state().is_empty() || state().contains(") Z ")) {
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
