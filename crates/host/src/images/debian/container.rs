//! `viv build debian --package … --run …`: an image of containers out of packages and commands (decision 074).
//!
//! ```text
//! base's packages ─► files laid out by the host  ─► layer 1                            the same for every image of this kind
//!                 ─► configured in a VM of that  ─► layer 2: what the VM changed       the same, kept as the image `debian-base`
//! more packages   ─► installed by apt in a VM of these; then each command, in order    ─► layer 3: what the VM changed
//! ```
//! Layers are read off the VM's disk and written in the order of their names; no time in them is later than the newest file of
//! the packages (or `SOURCE_DATE_EPOCH`): the same packages and commands give the same bytes.
use super::dpkg::Database;
use super::tree::Tree;
use super::{FILES, essential};
use crate::images::apt::{self, Apt, FetchFault, Wanted};
use crate::images::commit::{change, new_name};
use crate::images::fault::{broken, cancelled, io_fault};
use crate::images::lines::Lines;
use crate::images::stack::{Stack, read_upper};
use crate::images::store::{self, Scratch, Store};
use crate::images::{Image, Manifest, Options, Package, RunVm, Watcher, default_guest, instance, pull, step};
use serde_json::json;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use viv_api::agent::Exec;
use viv_api::image::ImageCommit;
use viv_api::operation::Progress;
use viv_api::timestamp::Timestamp;
use viv_model::{End, Fault, Kind, MachineSpec, NetKind, NicSpec};

/// Raise it when what this file and its scripts make changes.
const REVISION: u32 = 1;
/// The image that all of these stand on.
const BASE: &str = "debian-base";
/// What it has besides Debian's essential and required packages.
const EXTRA: [&str; 2] = ["usr-is-merged", "apt"];
/// Its settings, of those of the full Debian.
const SETTINGS: [&str; 3] = ["etc/machine-id", "etc/default/locale", "etc/dpkg/dpkg.cfg.d/viv-slim"];
/// Around the configuring of the base: nothing is started meanwhile (policy-rc.d, invoke-rc.d(8)).
const NO_SERVICES: &str =
    "set -e\nprintf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d\nchmod 755 /usr/sbin/policy-rc.d\n";
const SERVICES_AGAIN: &str = "rm -f /usr/sbin/policy-rc.d\n";
const INSTALL: &str = include_str!("install.sh");
const CLEAN: &str = include_str!("clean.sh");
/// Before a command of the user's: its number. The network's name server has come, or will not.
const NETWORK: &str =
    "i=0; while [ ! -s /etc/resolv.conf ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done\n";
/// Most bytes of all commands: they are one argument of a program (MAX_ARG_STRLEN of Linux).
const COMMANDS_MAX: usize = 64 << 10;
/// Most characters of an image's name that is made of its packages.
const NAME_MAX: usize = 40;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Additions {
    /// Packages, by name.
    pub packages: Vec<String>,
    /// Commands of the guest's shell, in order.
    pub run: Vec<String>,
    /// The new image's name.
    pub tag: Option<String>,
    /// What runs in it if nothing is said.
    pub command: Option<Vec<String>>,
    /// No time in it is later, seconds since 1970.
    pub epoch: Option<u64>,
}

impl Additions {
    /// Whether anything is.
    pub fn is_any(&self) -> bool {
        !self.packages.is_empty() || !self.run.is_empty()
    }

    /// The new image's name: as said, or of its packages.
    fn name(&self) -> Result<String, Fault> {
        if let Some(tag) = &self.tag {
            return new_name(tag).and_then(|name| if name == BASE { Err(is_base()) } else { Ok(name) });
        }
        let name = format!("debian-{}", self.packages.join("-").replace(['+', ':', '=', '~'], "-"));
        let fits = !self.packages.is_empty() && name.len() <= NAME_MAX && name != BASE;
        fits.then_some(name).and_then(|name| new_name(&name).ok()).ok_or_else(|| {
            Fault::new(Kind::Usage, "the new image has no name", "say how it is called: --tag NAME")
        })
    }

    fn check(&self) -> Result<(), Fault> {
        for name in &self.packages {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.:=~".contains(&byte);
            if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.bytes().all(fits) {
                let text = format!("no package is called {name:?}");
                return Err(Fault::new(
                    Kind::Usage,
                    text,
                    "write --package NAME or NAME=VERSION, once for each",
                ));
            }
        }
        if let Some(command) = self.run.iter().find(|text| text.trim().is_empty() || text.contains('\0')) {
            let text = format!("{command:?} is no command of a shell");
            return Err(Fault::new(Kind::Usage, text, "write --run 'COMMAND', once for each"));
        }
        if self.run.iter().map(String::len).sum::<usize>() > COMMANDS_MAX {
            let text = format!("the commands have more than {COMMANDS_MAX} bytes");
            return Err(Fault::new(Kind::Usage, text, "have them get a script, and run that"));
        }
        Ok(())
    }
}

fn is_base() -> Fault {
    let text = format!("{BASE:?} is what images with packages stand on");
    Fault::new(Kind::Usage, text, "choose another name")
}

/// One build.
pub(in crate::images) struct Build<'a> {
    pub(in crate::images) store: &'a Store,
    pub(in crate::images) scratch: &'a Scratch,
    pub(in crate::images) options: &'a Options,
    /// Has the kernel and the agent of the VMs.
    pub(in crate::images) host: &'a Image,
    pub(in crate::images) vm: &'a dyn RunVm,
    pub(in crate::images) watcher: &'a dyn Watcher,
}

/// Packages and where their files are.
struct Fetched {
    wanted: Vec<Wanted>,
    debs: Vec<PathBuf>,
}

impl Build<'_> {
    /// Builds it, or finds that it is there.
    pub(in crate::images) fn run(&self, ask: &Additions) -> Result<Image, Fault> {
        ask.check()?;
        let name = ask.name()?;
        step(self.watcher, "looking for the newest packages");
        let mut apt = Apt::open(
            &self.store.cache_dir().join("apt"),
            default_guest::probe(),
            self.options.update,
            self.watcher,
        )?;
        loop {
            let base = essential(&apt, &EXTRA)?;
            let all = [&base[..], &ask.packages].concat();
            let base = apt.locate(&apt.closure(&base)?)?;
            let closure = apt.closure(&all).map_err(|fault| self.unknown(&apt, ask, fault))?;
            let more = apt.locate(&closure)?;
            let more: Vec<Wanted> = more.into_iter().filter(|package| !base.contains(package)).collect();
            let sources = apt.sources()?;
            let base_key = self.key(&[&apt::digest(&base), &sources.join("\n"), &format!("{:?}", ask.epoch)]);
            let key = format!("{}\n{:?}\n{:?}", apt::digest(&more), ask.run, ask.command);
            let key = self.key(&[&base_key, &key]);
            if !self.options.force
                && let Some(image) = self.store.get(&name)?.filter(|image| image.manifest.key == key)
                && pull::whole(self.store, &image).is_ok()
            {
                return Ok(image);
            }
            let wanted = [&base[..], &more].concat();
            match apt.fetch(&wanted, &self.store.cache_dir().join("debs"), self.scratch.path()) {
                Ok(mut debs) => {
                    let more = Fetched { debs: debs.split_off(base.len()), wanted: more };
                    let base = self.base(Fetched { wanted: base, debs }, &sources, base_key, ask)?;
                    return self.add(ask, &name, base, &more, key);
                }
                Err(FetchFault::Fault(fault)) => return Err(fault),
                Err(FetchFault::Stale(fault)) => {
                    step(self.watcher, &format!("the package lists are old ({})", fault.message));
                    apt.update()?;
                }
            }
        }
    }

    /// In the user's words, if it is a package of the user's that is not there.
    fn unknown(&self, apt: &Apt<'_>, ask: &Additions, fault: Fault) -> Fault {
        let bare = |name: &str| name.split([':', '=']).next().unwrap_or_default().to_string();
        let missing = |name: &&String| apt.show(&bare(name)).is_ok_and(|found| found.is_none());
        match ask.packages.iter().find(missing) {
            Some(name) => Fault::new(
                Kind::NotFound,
                format!("apt knows no package called {name:?} ({})", fault.message),
                format!("look for its name: apt-cache search {}", bare(name)),
            ),
            None => fault,
        }
    }

    /// What decides whether an image is built again.
    fn key(&self, parts: &[&str]) -> String {
        let text = format!("{BASE} {REVISION} {} {}\n{}", super::REVISION, pull::REVISION, parts.join("\n"));
        store::sha256(text.as_bytes())
    }

    /// The base, which is made if it is not there as it would be made now; no time in it is later than its packages'.
    fn base(
        &self,
        base: Fetched,
        sources: &[String],
        key: String,
        ask: &Additions,
    ) -> Result<(Image, u64), Fault> {
        let epoch = match ask.epoch {
            Some(epoch) => epoch,
            None => newest(&base.debs)?,
        };
        if !self.options.force
            && let Some(image) = self.store.get(BASE)?.filter(|image| image.manifest.key == key)
            && pull::whole(self.store, &image).is_ok()
        {
            return Ok((image, epoch));
        }
        crate::images::need_space(self.scratch.path(), 2 << 30)?;
        let mut stack = Stack::new();
        let created = Timestamp { unix_s: epoch };
        let note = |what: &str| json!({ "created": created.to_string(), "created_by": format!("viv build debian: {what}") });
        let data = self.scratch.path().join("base.data");
        let (layer, unpacked) = self.lay_out(&base.debs, sources, epoch, &data)?;
        stack.add(self.store, &layer, &data, self.watcher)?;
        stack.note(note("packages"), created);
        let lines = Lines::new(self.watcher).counting("configuring packages in a VM", unpacked);
        let done = self.in_vm(
            &stack,
            &[NO_SERVICES, super::CONFIGURE, SERVICES_AGAIN, CLEAN].concat(),
            epoch,
            None,
            false,
            lines,
        )?;
        done.map_err(|(status, lines)| {
            lines.fault(&format!("configuring the packages ended with status {status}"))
        })?;
        self.take(&mut stack, epoch)?;
        stack.note(note("configured"), created);
        stack.config["config"] = json!({ "Cmd": ["bash"], "Env": [format!("PATH={PATH}"), "LANG=C.UTF-8"] });
        let manifest = Manifest {
            key,
            created: epoch,
            summary: format!(
                "Debian's essential packages ({}), as an image of containers",
                base.wanted.len()
            ),
            packages: base.wanted.iter().map(package).collect(),
            ..Manifest::bare()
        };
        let image = stack.publish(self.store, BASE, self.scratch, manifest, self.watcher)?;
        Ok((image, epoch))
    }

    /// Adds packages and what the commands change.
    fn add(
        &self,
        ask: &Additions,
        name: &str,
        (base, base_epoch): (Image, u64),
        more: &Fetched,
        key: String,
    ) -> Result<Image, Fault> {
        let epoch = match ask.epoch {
            Some(epoch) => epoch,
            None => base_epoch.max(newest(&more.debs)?),
        };
        let layers = base.manifest.layers().map(|layer| self.store.layers().get(layer));
        let layers = layers.collect::<Result<Option<Vec<_>>, _>>()?;
        let layers = layers.ok_or_else(|| broken(BASE, "a layer is missing"))?;
        let mut stack = Stack::of(self.store, &base, layers)?;
        let packages = (!more.debs.is_empty()).then(|| self.packages_disk(more)).transpose()?;
        let mut script = INSTALL.to_string();
        if !ask.run.is_empty() {
            script.push_str(NETWORK);
        }
        for (number, command) in ask.run.iter().enumerate() {
            let quoted = command.replace('\'', r"'\''");
            script.push_str(&format!(
                "echo '{} {}'\n(exec /bin/sh -c '{quoted}')\n",
                Lines::MARK,
                number + 1
            ));
        }
        script.push_str(&format!("echo '{}'\n{CLEAN}", Lines::MARK));
        let what = format!("installing {} packages in a VM", more.wanted.len());
        let lines = Lines::new(self.watcher).counting(&what, more.wanted.len() as u64);
        if let Err((status, lines)) =
            self.in_vm(&stack, &script, epoch, packages, !ask.run.is_empty(), lines)?
        {
            return Err(lines.fault(&match lines.command().and_then(|number| ask.run.get(number - 1)) {
                Some(command) => format!("the command {command:?} ended with status {status}"),
                None => format!("installing the packages ended with status {status}"),
            }));
        }
        self.take(&mut stack, epoch)?;
        let created = Timestamp { unix_s: epoch };
        let words = ask.packages.iter().map(|name| format!(" --package {name}"));
        let words = words.chain(ask.run.iter().map(|command| format!(" --run '{command}'")));
        let by = format!("viv build debian{}", words.collect::<String>());
        stack.note(json!({ "created": created.to_string(), "created_by": by }), created);
        change(&mut stack.config, &ImageCommit { command: ask.command.clone(), ..ImageCommit::default() })?;
        let mut packages = base.manifest.packages.clone();
        packages.extend(more.wanted.iter().map(package));
        let manifest = Manifest { key, created: epoch, packages, ..Manifest::bare() };
        stack.publish(self.store, name, self.scratch, manifest, self.watcher)
    }

    /// The files of packages as dpkg would have unpacked them, as a layer, and how many are left to configure.
    fn lay_out(
        &self,
        debs: &[PathBuf],
        sources: &[String],
        epoch: u64,
        data: &Path,
    ) -> Result<(viv_rootfs::Layer, u64), Fault> {
        let mut tree = Tree::new(&self.scratch.path().join("base"))?;
        let mut database = Database::default();
        for (done, deb) in debs.iter().enumerate() {
            if self.watcher.cancelled() {
                return Err(cancelled());
            }
            let (step, total) = ("unpacking packages".to_string(), Some(debs.len() as u64));
            self.watcher.progress(Progress { step, done: done as u64, total, bytes: false });
            database.unpack(deb, &mut tree)?;
        }
        database.write(&mut tree)?;
        for (path, mode, text) in FILES.into_iter().filter(|(path, ..)| SETTINGS.contains(path)) {
            tree.write(path, mode, text.as_bytes())?;
        }
        let sources: String = sources.iter().map(|line| format!("{line}\n")).collect();
        tree.write("etc/apt/sources.list", 0o644, sources.as_bytes())?;
        let archive = self.scratch.path().join("base.tar");
        tree.pack(&archive, epoch).map_err(io_fault("write", &archive))?;
        tree.remove();
        let layer = self.unpack(&archive, data)?;
        Ok((layer, database.unpacked))
    }

    /// A layer of an archive of our own, which goes away.
    fn unpack(&self, archive: &Path, data: &Path) -> Result<viv_rootfs::Layer, Fault> {
        let file = File::open(archive).map_err(io_fault("read", archive))?;
        let mut out = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(data)
            .map_err(io_fault("write", data))?;
        let mut look = |_| if self.watcher.cancelled() { Err(cancelled()) } else { Ok(()) };
        let layer = viv_rootfs::unpack(
            std::io::BufReader::with_capacity(1 << 20, file),
            &mut out,
            &viv_rootfs::Limits::default(),
            &mut look,
        )?;
        let _ = fs::remove_file(archive);
        Ok(layer)
    }

    /// A file system with the packages' files, in a directory of its own: what it is made of.
    fn packages_disk(&self, more: &Fetched) -> Result<Vec<(PathBuf, u64)>, Fault> {
        let dir = self.scratch.path().join("vm");
        fs::create_dir_all(&dir).map_err(io_fault("make the directory", &dir))?;
        let archive = dir.join("packages.tar");
        let pack = || -> std::io::Result<()> {
            let mut tar = tar::Builder::new(std::io::BufWriter::new(File::create(&archive)?));
            for (package, deb) in more.wanted.iter().zip(&more.debs) {
                let mut file = File::open(deb)?;
                let mut header = tar::Header::new_gnu();
                header.set_size(file.metadata()?.len());
                header.set_mode(0o644);
                let name = format!("{}_{}.deb", package.name, package.architecture);
                tar.append_data(&mut header, name, &mut file)?;
            }
            tar.into_inner()?.into_inner().map(drop).map_err(|error| error.into_error())
        };
        pack().map_err(io_fault("write", &archive))?;
        let (data, tree) = (dir.join("packages.data"), dir.join("packages.tree"));
        let layer = self.unpack(&archive, &data)?;
        let mut file = File::create(&tree).map_err(io_fault("write", &tree))?;
        let merged = viv_rootfs::Tree::merge(std::slice::from_ref(&layer))?;
        let size = merged.write_erofs(&mut file, &[layer.data_blocks])?;
        Ok(vec![(tree, size), (data, layer.data_blocks.saturating_mul(viv_rootfs::BLOCK as u64))])
    }

    /// Runs a script of the shell in a VM of what there is so far. What it changes is on the VM's disk afterwards. If it fails: its status
    /// and what it said.
    fn in_vm<'l>(
        &self,
        stack: &Stack,
        script: &str,
        epoch: u64,
        packages: Option<Vec<(PathBuf, u64)>>,
        network: bool,
        mut lines: Lines<'l>,
    ) -> Result<Result<(), (u8, Lines<'l>)>, Fault> {
        let dir = self.scratch.path().join("vm");
        fs::create_dir_all(&dir).map_err(io_fault("make the directory", &dir))?;
        let tree = dir.join("tree");
        pull::make_tree(&stack.layers, &tree)?;
        let mut disks = instance::disks_over(&tree, &stack.layers, &dir)?;
        if let Some(extents) = packages {
            disks.push(instance::joined(&dir.join("packages.vmdk"), &extents)?);
        }
        let host = instance::instantiate(self.store, self.host, &[], &dir)?;
        let append = format!("{} viv.hostname=builder", instance::BOOT);
        let nic = NicSpec { net: NetKind::User { host: false }, ..NicSpec::default() };
        let nics = if network { vec![nic] } else { Vec::new() };
        let spec = MachineSpec { nics, ..super::builder(host.kernel, host.initrd, &append, disks) };
        // All that is said comes in its order.
        let mut exec = Exec::new(["/bin/sh".to_string(), "-c".to_string(), format!("exec 2>&1\n{script}")]);
        let epoch = epoch.to_string();
        exec.env = [
            ("PATH", PATH),
            ("HOME", "/root"),
            ("LC_ALL", "C.UTF-8"),
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
            ("DEBCONF_NOWARNINGS", "yes"),
            ("SYSTEMD_OFFLINE", "1"),
            ("SOURCE_DATE_EPOCH", &epoch),
        ]
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .to_vec();
        exec.cwd = Some("/".to_string());
        let end = self.vm.run(&spec, Some(&exec), &mut |bytes| lines.take(bytes));
        if self.watcher.cancelled() {
            return Err(cancelled());
        }
        match end? {
            End::Command { status: 0 } => Ok(Ok(())),
            End::Command { status } => Ok(Err((status, lines))),
            end => Err(lines.fault(&format!("the builder VM ended before its work was done ({end:?})"))),
        }
    }

    /// Puts what the last VM changed on the stack, with times that depend on nothing but the packages, and clears the VM away.
    fn take(&self, stack: &mut Stack, epoch: u64) -> Result<(), Fault> {
        let dir = self.scratch.path().join("vm");
        let data = self.scratch.path().join("data");
        let own = viv_model::DiskSpec {
            path: dir.join("disk1.raw"),
            format: Some(viv_model::DiskFormat::Raw),
            ..Default::default()
        };
        let layer = read_upper(&own, &data, "reading what it changed", self.watcher).map_err(|fault| {
            Fault { fix: "nothing half-built is kept; build it again".to_string(), ..fault }
        })?;
        let mut layer = layer.ok_or_else(|| broken("the builder VM's disk", "its guest has not used it"))?;
        let latest = i64::try_from(epoch).unwrap_or(i64::MAX);
        for entry in &mut layer.entries {
            let time = &mut entry.attributes.mtime;
            if time.seconds >= latest {
                (time.seconds, time.nanoseconds) = (latest, 0);
            }
        }
        stack.add(self.store, &layer, &data, self.watcher)?;
        for path in [&dir, &data] {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        Ok(())
    }
}

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn package(wanted: &Wanted) -> Package {
    Package { name: wanted.name.clone(), version: wanted.version.clone() }
}

/// The time of the newest file in packages, seconds since 1970.
fn newest(debs: &[PathBuf]) -> Result<u64, Fault> {
    let mut newest = 0;
    for path in debs {
        let deb = crate::images::deb::Deb::new(path);
        let mut data = deb.data()?;
        while let Some(entry) = data.next().map_err(|error| broken(&deb.name(), error))? {
            newest = newest.max(entry.mtime.min(u32::MAX.into()));
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_packages_or_asked_for() {
        let ask = |packages: &[&str], tag: Option<&str>| Additions {
            packages: packages.iter().map(|name| name.to_string()).collect(),
            tag: tag.map(str::to_string),
            ..Additions::default()
        };
        assert_eq!(ask(&["nginx", "curl"], None).name().unwrap(), "debian-nginx-curl");
        assert_eq!(ask(&["g++"], None).name().unwrap(), "debian-g--");
        assert_eq!(ask(&["nginx"], Some("web")).name().unwrap(), "web");
        for tag in ["debian", BASE, "a b"] {
            assert_eq!(ask(&["nginx"], Some(tag)).name().unwrap_err().kind, Kind::Usage, "{tag}");
        }
        assert!(ask(&[], None).name().unwrap_err().fix.contains("--tag"));
        assert!(ask(&["a-package-with-a-very-long-name", "and-another-one"], None).name().is_err());
        assert!(ask(&["nginx=1.22.1-9", "libc6:amd64"], None).check().is_ok());
        for name in ["", "-o", "a b", "a;b", "../x.deb", "./x"] {
            assert!(ask(&[name], None).check().is_err(), "{name}");
        }
        assert!(Additions { run: vec![" ".into()], ..Additions::default() }.check().is_err());
    }
}
