//! A VM that does not run becomes an image: of an image of containers with one more layer, of another with copies of its disks.
use super::fault::{broken, cancelled, io_fault};
use super::layers::{Unpacked, blake3_file};
use super::stack::{Stack, read_upper};
use super::store::{Scratch, Store, sha256_file};
use super::{DISK, INITRD, Image, KERNEL, Manifest, Recipe, Watcher, instance, pull, step};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use viv_api::image::ImageCommit;
use viv_api::operation::Progress;
use viv_api::timestamp::Timestamp;
use viv_block::{RawDisk, Source};
use viv_model::{DiskFormat, DiskSpec, Fault, Kind, MachineSpec};

/// A VM, as far as an image is made of it.
pub(crate) struct Stopped<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Where its own files are.
    pub(crate) dir: &'a Path,
    /// The image that it was made of.
    pub(crate) image: Option<&'a str>,
    /// Its machine.
    pub(crate) machine: &'a MachineSpec,
    /// What its image wants on the kernel's command line.
    pub(crate) append: String,
    /// It boots the kernel that is on its disks.
    pub(crate) boots_itself: bool,
}

impl Stopped<'_> {
    /// Whether its image is one of containers.
    pub(crate) fn is_container(&self) -> bool {
        self.container_disks().is_some()
    }

    /// The disk of an image of containers, and the VM's own above it.
    fn container_disks(&self) -> Option<(&DiskSpec, &DiskSpec)> {
        match &self.machine.disks[..] {
            [image, own, ..]
                if image.read_only && image.path.file_name() == Some(viv_snapshot::IMAGE.as_ref()) =>
            {
                Some((image, own))
            }
            _ => None,
        }
    }
}

/// Makes the image `ask.name` of a VM that does not run, and stays so.
pub(super) fn commit(
    store: &Store,
    vm: &Stopped<'_>,
    ask: &ImageCommit,
    watcher: &dyn Watcher,
) -> Result<Image, Fault> {
    let name = new_name(&ask.name)?;
    let scratch = store.pull_scratch()?;
    match vm.container_disks() {
        Some((image, own)) => container(store, vm, (image, own), &name, ask, &scratch, watcher),
        None => disks(store, vm, &name, ask, &scratch, watcher),
    }
}

/// The name in full of an image that is to be made.
pub(super) fn new_name(name: &str) -> Result<String, Fault> {
    let bad = |why: &str| {
        Fault::new(Kind::Usage, format!("an image cannot be called {name:?}: {why}"), "choose another name")
    };
    if Recipe::ALL.iter().any(|recipe| recipe.name() == name) {
        return Err(bad("that one is built here"));
    }
    match pull::full_name(name)? {
        Some(reference @ viv_oci::Reference::Registry(_)) => Ok(reference.to_string()),
        Some(_) => Err(bad("it is the name of a file")),
        None if name.contains(':') => Err(bad("only the name of an image of a registry has a tag")),
        None => crate::names::check(name)
            .map(|()| name.to_string())
            .map_err(|fault| Fault { message: format!("an image cannot be called {name:?}"), ..fault }),
    }
}

/// A VM's disk, for reading.
pub(super) fn open(disk: &DiskSpec) -> Result<std::sync::Arc<dyn viv_block::Disk>, Fault> {
    let source = Source { format: disk.format, allowed: disk.allow.clone(), ..Source::new(&disk.path, true) };
    Ok(viv_block::open(&source)?)
}

fn container(
    store: &Store,
    vm: &Stopped<'_>,
    (image, own): (&DiskSpec, &DiskSpec),
    name: &str,
    ask: &ImageCommit,
    scratch: &Scratch,
    watcher: &dyn Watcher,
) -> Result<Image, Fault> {
    step(watcher, &format!("looking for the image of {}", vm.name));
    let (base, layers) = base_of(store, vm, image.path.parent().unwrap_or(vm.dir))?;
    let mut stack = Stack::of(store, &base, layers)?;
    let data = scratch.path().join("data");
    let added =
        read_upper(own, &data, &format!("reading what {} changed", vm.name), watcher).map_err(|fault| {
            let named = ["start", "stop", "exec"].iter().fold(fault.fix.clone(), |fix, verb| {
                fix.replace(&format!("viv {verb} VM"), &format!("viv {verb} {}", vm.name))
            });
            Fault { fix: named, ..fault }
        })?;
    let now = Timestamp::now();
    let mut history = json!({ "created": now.to_string(), "created_by": format!("viv commit {}", vm.name) });
    if !ask.message.is_empty() {
        history["comment"] = json!(ask.message);
    }
    match added {
        Some(layer) => stack.add(store, &layer, &data, watcher)?,
        None => history["empty_layer"] = json!(true),
    }
    change(&mut stack.config, ask)?;
    stack.note(history, now);
    stack.publish(store, name, scratch, Manifest { created: now.unix_s, ..Manifest::bare() }, watcher)
}

/// The image of the store on which the VM is, by its content, with its layers, which stay while they are held.
fn base_of(store: &Store, vm: &Stopped<'_>, dir: &Path) -> Result<(Image, Vec<Unpacked>), Fault> {
    let tree = dir.join("image.tree");
    let (tree, _) = sha256_file(&tree).map_err(io_fault("read", &tree))?;
    let mut images = store.list()?;
    // Several may have the same files, and differ in what they run.
    images.sort_by_key(|image| Some(image.name.as_str()) != vm.image);
    for image in images {
        let Some(container) = &image.manifest.container else { continue };
        if container.tree.digest.trim_start_matches("sha256:") != tree {
            continue;
        }
        let layers = container.layers.iter().map(|layer| store.layers().get(layer));
        let Some(layers) = layers.collect::<Result<Option<Vec<_>>, _>>()? else { continue };
        let mut same = true;
        for (number, layer) in layers.iter().enumerate().filter(|(_, layer)| layer.facts.data_bytes > 0) {
            same = same && has_content(&dir.join(format!("image.layer{number}")), layer)?;
        }
        if same {
            return Ok((image, layers));
        }
    }
    let called = vm.image.unwrap_or("?");
    Err(Fault::new(
        Kind::NotFound,
        format!(
            "the image {called}, of which VM {:?} was made, is not in the store any more, or is another one now",
            vm.name
        ),
        format!("get that one again: viv pull {called}"),
    ))
}

/// Whether a VM's file is the contents of a layer: mostly it is the same file.
fn has_content(path: &Path, layer: &Unpacked) -> Result<bool, Fault> {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let (ours, theirs) = (identity(path), identity(&layer.data()));
    if ours.is_ok() && ours.ok() == theirs.ok() {
        return Ok(true);
    }
    let (sum, _) = blake3_file(path).map_err(io_fault("read", path))?;
    Ok(sum == layer.facts.data_blake3)
}

/// Changes what an image's configuration says of its program.
pub(super) fn change(config: &mut Value, ask: &ImageCommit) -> Result<(), Fault> {
    if !config.is_object() {
        return Err(broken("the image's configuration", "it is no object"));
    }
    if !config["config"].is_object() {
        config["config"] = json!({});
    }
    let process = &mut config["config"];
    let words = [("Entrypoint", &ask.entrypoint), ("Cmd", &ask.command)];
    for (key, words) in words.into_iter().filter_map(|(key, words)| Some((key, words.as_ref()?))) {
        process[key] = json!(words);
    }
    for (key, text) in [("WorkingDir", &ask.cwd), ("User", &ask.user)] {
        if let Some(text) = text {
            process[key] = json!(text);
        }
    }
    let mut env: Vec<String> = process["Env"]
        .as_array()
        .map(|all| all.iter().filter_map(Value::as_str).map(str::to_string).collect())
        .unwrap_or_default();
    for (name, value) in &ask.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Fault::new(
                Kind::Usage,
                format!("{name:?} cannot be a variable's name"),
                "write NAME=VALUE",
            ));
        }
        env.retain(|pair| pair.split('=').next() != Some(name));
        env.push(format!("{name}={value}"));
    }
    if !env.is_empty() {
        process["Env"] = json!(env);
    }
    Ok(())
}

/// Copies the VM's own disks, and what it boots with.
fn disks(
    store: &Store,
    vm: &Stopped<'_>,
    name: &str,
    ask: &ImageCommit,
    scratch: &Scratch,
    watcher: &dyn Watcher,
) -> Result<Image, Fault> {
    let is_asked =
        ask.entrypoint.is_some() || ask.command.is_some() || ask.cwd.is_some() || ask.user.is_some();
    if is_asked || !ask.env.is_empty() {
        return Err(Fault::new(
            Kind::Usage,
            format!("VM {:?} is not made of an image of containers: nothing says what runs in it", vm.name),
            "leave out what changes that; say it when it is run: viv run IMAGE -- COMMAND",
        ));
    }
    let own: Vec<&DiskSpec> =
        vm.machine.disks.iter().filter(|disk| !disk.read_only && disk.path.starts_with(vm.dir)).collect();
    if own.is_empty() {
        return Err(Fault::new(
            Kind::Usage,
            format!(
                "VM {:?} has no disk of its own: what it changed was in its memory, or is on your disks",
                vm.name
            ),
            "keep a VM that runs with its memory: viv template create, viv snapshot create; a disk: viv export VM FILE",
        ));
    }
    let mut files = Vec::new();
    for (number, disk) in own.iter().enumerate() {
        let path = scratch.path().join(format!("disk{number}"));
        flat(
            disk,
            &path,
            DiskFormat::Raw,
            &mut Told::new(watcher, format!("copying {}", disk.path.display())),
        )?;
        files.push((path, DISK));
    }
    let boot = [("kernel", Some(&vm.machine.kernel), KERNEL), ("initrd", vm.machine.initrd.as_ref(), INITRD)];
    for (file, from, kind) in boot.into_iter().filter(|_| !vm.boots_itself) {
        if let Some(from) = from {
            let path = scratch.path().join(file);
            instance::copy(from, &path).map_err(io_fault("copy", from))?;
            files.push((path, kind));
        }
    }
    step(watcher, "storing the image");
    let index = store.index_lock()?;
    let mut manifest =
        Manifest { append: vm.append.clone(), created: Timestamp::now().unix_s, ..Manifest::bare() };
    for (path, kind) in files {
        if watcher.cancelled() {
            return Err(cancelled());
        }
        let part = store.add_file(&path, kind, &index)?;
        match kind {
            KERNEL => manifest.kernel = Some(part),
            INITRD => manifest.initrd = Some(part),
            _ => manifest.disks.push(part),
        }
    }
    let says = if ask.message.is_empty() { String::new() } else { format!(": {}", ask.message) };
    manifest.summary = format!("from VM {}{says}", vm.name);
    store.publish_in(name, &manifest, &index)
}

/// Copies all that a disk is to a new file, without its zeroes.
pub(super) fn flat(disk: &DiskSpec, to: &Path, format: DiskFormat, told: &mut Told<'_>) -> Result<(), Fault> {
    let from = open(disk)?;
    let target: Box<dyn viv_block::Disk> = match format {
        DiskFormat::Qcow2 => {
            Box::new(viv_block::Qcow2::create(to, &viv_block::CreateOptions::new(from.size()))?)
        }
        _ => Box::new(RawDisk::create(to, from.size())?),
    };
    told.total = Some(from.size());
    let mut given_up = false;
    let copied = viv_block::copy(&*from, &*target, &mut |bytes| {
        told.bytes(bytes).map_err(|_| {
            given_up = true;
            io::ErrorKind::Interrupted.into()
        })
    });
    match copied {
        Err(_) if given_up => Err(cancelled()),
        copied => copied.map_err(io_fault("copy to", to)),
    }
}

/// Tells a watcher now and then where a work is, and hears from it whether to give up.
pub(crate) struct Told<'a> {
    watcher: &'a dyn Watcher,
    step: String,
    pub(crate) total: Option<u64>,
    last: Option<std::time::Instant>,
}

impl<'a> Told<'a> {
    pub(crate) fn new(watcher: &'a dyn Watcher, step: String) -> Told<'a> {
        Told { watcher, step, total: None, last: None }
    }

    pub(crate) fn bytes(&mut self, done: u64) -> Result<(), Fault> {
        if self.last.is_none_or(|last| last.elapsed() >= pull::PAUSE) {
            self.last = Some(std::time::Instant::now());
            let progress = Progress { step: self.step.clone(), done, total: self.total, bytes: true };
            self.watcher.progress(progress);
        }
        if self.watcher.cancelled() { Err(cancelled()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{Images, Unwatched};
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn stopped<'a>(dir: &'a Path, machine: &'a MachineSpec) -> Stopped<'a> {
        Stopped {
            name: "box",
            dir,
            image: Some("debian"),
            machine,
            append: "root=/dev/vda".to_string(),
            boots_itself: false,
        }
    }

    #[test]
    fn a_vm_with_disks_becomes_an_image_with_copies_of_them() {
        let dir = std::env::temp_dir().join(format!("viv-commit-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let vm = dir.join("vm");
        fs::create_dir_all(&vm).unwrap();
        fs::write(vm.join("kernel"), "a kernel").unwrap();
        let below = RawDisk::create(&vm.join("below.raw"), 64 << 20).unwrap();
        viv_block::Disk::write(&below, 1 << 20, b"below").unwrap();
        drop(below);
        let options = viv_block::CreateOptions {
            backing: Some(("below.raw".to_string(), "raw".to_string())),
            ..viv_block::CreateOptions::new(64 << 20)
        };
        let above = viv_block::Qcow2::create(&vm.join("disk0.qcow2"), &options).unwrap();
        viv_block::Disk::write(&above, 32 << 20, b"above").unwrap();
        viv_block::Disk::flush(&above).unwrap();
        drop(above);
        let disk = |path, read_only| DiskSpec { path, read_only, ..DiskSpec::default() };
        let create = viv_api::vm::VmCreate {
            kernel: Some(vm.join("kernel")),
            disks: vec![disk(vm.join("disk0.qcow2"), false), disk(dir.join("of-the-user.raw"), false)],
            ..viv_api::vm::VmCreate::default()
        };
        let machine = create.machine();
        let images = Images::open(dir.join("images")).unwrap();
        let ask = ImageCommit { name: "mine".to_string(), ..ImageCommit::default() };
        let image = images.commit(&stopped(&vm, &machine), &ask, &Unwatched).unwrap();
        assert_eq!((image.manifest.disks.len(), image.manifest.append.as_str()), (1, "root=/dev/vda"));
        let other = dir.join("other");
        fs::create_dir_all(&other).unwrap();
        let instance = images.instantiate(&image, &[], &other).unwrap();
        assert_eq!(fs::read(instance.kernel).unwrap(), b"a kernel");
        let copy = File::open(&instance.disks[0].path).unwrap();
        assert_eq!(copy.metadata().unwrap().len(), 64 << 20);
        for (at, text) in [(1 << 20, b"below"), (32 << 20, b"above")] {
            let mut found = [0; 5];
            copy.read_exact_at(&mut found, at).unwrap();
            assert_eq!(&found, text);
        }
        assert!(image.size_bytes < 4 << 20, "holes were stored: {}", image.size_bytes);
        // What cannot be.
        let ask = ImageCommit { command: Some(vec!["x".to_string()]), ..ask };
        assert_eq!(images.commit(&stopped(&vm, &machine), &ask, &Unwatched).unwrap_err().kind, Kind::Usage);
        let ask = ImageCommit { name: "mine".to_string(), ..ImageCommit::default() };
        let bare = MachineSpec { disks: Vec::new(), ..machine };
        let fault = images.commit(&stopped(&vm, &bare), &ask, &Unwatched).unwrap_err();
        assert!(fault.message.contains("no disk of its own"), "{fault:?}");
        // It leaves as an artifact, and comes back as what it was.
        let archive = dir.join("mine.tar");
        let ask =
            viv_api::image::ImageExport { path: archive.clone(), format: viv_api::image::MachineFormat::Oci };
        images.export("mine", &ask, &Unwatched).unwrap();
        assert!(fs::metadata(&archive).unwrap().len() < 1 << 20, "holes were written");
        let reference = format!("oci-archive:{}", archive.display());
        let back = images.pull(&reference, Default::default(), &Unwatched).unwrap().unwrap();
        let (old, new) = (&image.manifest, &back.manifest);
        assert_eq!((&new.kernel, &new.disks, &new.append), (&old.kernel, &old.disks, &old.append));
        assert!(new.container.is_none() && back.size_bytes < 4 << 20);
        assert_eq!(fs::read_dir(dir.join("images/layers")).unwrap().count(), 0, "its layers were left");
        assert_eq!(
            images.pull(&reference, Default::default(), &Unwatched).unwrap().unwrap().digest,
            back.digest
        );
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn names_and_variables_are_checked() {
        for name in ["default", "debian", "a:b", "", "-x", "oci:/a:b", "oci-archive:/a"] {
            assert_eq!(new_name(name).unwrap_err().kind, Kind::Usage, "{name}");
        }
        assert_eq!(new_name("web-2").unwrap(), "web-2");
        assert_eq!(new_name("localhost:5000/a:b").unwrap(), "localhost:5000/a:b");
        let mut config = json!({ "config": { "Env": ["A=1", "B=2"], "Cmd": ["x"], "Labels": { "kept": "yes" } }, "unknown": 1 });
        let ask = ImageCommit {
            entrypoint: Some(vec!["/entry".to_string()]),
            env: vec![("A".to_string(), "3=".to_string())],
            user: Some("web".to_string()),
            ..ImageCommit::default()
        };
        change(&mut config, &ask).unwrap();
        let expected = json!({ "config": { "Env": ["B=2", "A=3="], "Cmd": ["x"], "Entrypoint": ["/entry"], "User": "web",
            "Labels": { "kept": "yes" } }, "unknown": 1 });
        assert_eq!(config, expected);
        let bad = ImageCommit { env: vec![("A=B".to_string(), String::new())], ..ImageCommit::default() };
        assert!(change(&mut config, &bad).is_err());
        assert!(change(&mut json!([]), &ask).is_err());
    }
}
