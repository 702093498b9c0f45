//! `viv run --isolation vm app.jar`: a Java program in a virtual machine of its own, which is a virtual machine with an image of
//! containers like any other, that has the program's file in it.
use super::program::Isolation;
use super::run::{Args, absolute};
use super::{build, pull};
use crate::interrupt::Interrupt;
use crate::output;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use viv_api::agent::Exec;
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::image::{Image, ImageBuild};
use viv_api::vm::Vm;
use viv_java::Program;
use viv_model::{Fault, FileSpec, GuestKind, Kind, PortSpec};

/// The image that is made for those who name none.
const IMAGE: &str = "java";
/// Debian's package of its usual Java, without what a screen needs.
const PACKAGE: &str = "default-jre-headless";
/// Where the program is in its VM.
const PLACE: &str = "/viv/program.jar";
/// Of the VM's memory so much is for the program's objects; the rest is for its machine, and the guest's kernel.
const HEAP_OF_100: u32 = 60;
/// Has the machine end as it would if the kernel ended it: 128 + SIGKILL.
const NO_MEMORY: &str = "-XX:OnOutOfMemoryError=kill -9 %p";
/// What shows the threads of every Java machine in a guest, in the log of each.
const THREADS: &str = "found=; for exe in /proc/[0-9]*/exe; do case \"$(readlink \"$exe\" 2>/dev/null)\" in */java) \
pid=\"${exe#/proc/}\"; kill -QUIT \"${pid%/exe}\" && found=1;; esac; done; [ -n \"$found\" ] || { echo 'viv: no java runs here' >&2; exit 1; }";

/// A file that goes away with this.
pub(super) struct Passing(PathBuf);

impl Drop for Passing {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether a Java program is to be run in a virtual machine.
pub(super) fn is_wanted(args: &Args, kind: GuestKind) -> bool {
    kind == GuestKind::Jvm && args.program.isolation == Isolation::Vm
}

/// The same as asked of a virtual machine: an image, a file in it, and a command. What is given besides is to stay until the VM is
/// made.
pub(super) fn in_vm(
    client: &Client,
    interrupt: &Interrupt,
    mut args: Args,
) -> Result<(Args, Option<Passing>), Fault> {
    let file = absolute(Path::new(&args.image.take().unwrap_or_default()))?;
    if client.is_elsewhere() {
        return Err(Fault::new(
            Kind::Usage,
            "the program's file is on this host, and the VM would be on another one",
            "put it into an image there, and run that: viv build, viv push, viv run IMAGE -- java -jar FILE",
        ));
    }
    let called = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(option) = args.program.only_in_a_process() {
        return Err(Fault::new(
            Kind::Usage,
            format!("{option} is not for a program in a virtual machine, which counts no such thing"),
            "leave it out, or --isolation vm; a time: timeout 10s viv run …",
        ));
    }
    if args.container.entrypoint.is_some() {
        let text = "--entrypoint takes the place of the program, and there is one";
        return Err(Fault::new(Kind::Usage, text, "leave it out"));
    }
    let what = viv_java::look(&file, &file, &called, None)?;
    let doors = args.program.doors(Ipv4Addr::UNSPECIFIED)?;
    // Numbers stay as they are: -XX:MaxRAMPercentage is what a program's own -Xmx wins over.
    let mut words = vec![
        "java".to_string(),
        format!("-XX:MaxRAMPercentage={HEAP_OF_100}"),
        NO_MEMORY.to_string(),
        "-XX:-UsePerfData".to_string(),
    ];
    words.extend(doors.options);
    words.append(&mut args.program.java_options);
    let mut passing = None;
    let path = match what {
        Program::Jar => {
            words.extend(["-jar".to_string(), PLACE.to_string()]);
            file
        }
        Program::Class { name, root } => {
            words.extend(["-cp".to_string(), PLACE.to_string(), name]);
            passing.insert(packed(&root)?).0.clone()
        }
    };
    words.extend(args.command());
    args.ports.extend(doors.ports.iter().map(PortSpec::to_string));
    args.files.push(FileSpec { path, target: PLACE.to_string() });
    args.set_command(words);
    args.container.entrypoint = Some(String::new());
    args.image = Some(match args.program.java_image.take() {
        Some(name) => pull::full_name(&name)?.unwrap_or(name),
        None => {
            ensure(client, interrupt)?;
            IMAGE.to_string()
        }
    });
    args.program = Default::default();
    Ok((args, passing))
}

/// The classes of a directory as an archive that only we read and write.
fn packed(root: &Path) -> Result<Passing, Fault> {
    let failed = |error: io::Error| {
        let text = format!("cannot pack the classes in {}: {error}", root.display());
        Fault::new(Kind::of_file(&error), text, "see that there is room for temporary files: TMPDIR")
    };
    let path = std::env::temp_dir().join(format!("viv-classes-{}.jar", std::process::id()));
    let path = absolute(&path)?;
    use std::os::unix::fs::OpenOptionsExt;
    let mut how = File::options();
    let file = how.write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let passing = Passing(path);
    viv_java::pack(root, file)?;
    Ok(passing)
}

/// Builds the image if it is not there: it takes some minutes on the software CPU.
fn ensure(client: &Client, interrupt: &Interrupt) -> Result<(), Fault> {
    match client.json::<Image>(Request::new(Route::ImageGet, &[IMAGE])) {
        Ok(_) => return Ok(()),
        Err(fault) if fault.kind == Kind::NotFound => {}
        Err(fault) => return Err(fault),
    }
    output::note(&format!(
        "the image {IMAGE:?} is built once from Debian's package {PACKAGE}; this takes minutes without KVM"
    ));
    let ask = ImageBuild {
        packages: vec![PACKAGE.to_string()],
        tag: Some(IMAGE.to_string()),
        command: Some(vec!["java".to_string(), "-version".to_string()]),
        ..ImageBuild::default()
    };
    build::build(client, interrupt, "debian", ask).map(drop)
}

/// The name of the program's file, if the VM is there for a Java program.
pub(super) fn file_of(vm: &Vm) -> Option<String> {
    let file = vm.spec.files.iter().find(|file| file.target == PLACE)?;
    Some(file.path.file_name()?.to_string_lossy().into_owned())
}

/// What shows the threads of the program, if the VM is there for one: also one that goes on from a snapshot.
pub(super) fn threads(vm: &Vm, words: &[String]) -> Option<Exec> {
    let asked = matches!(words, [word] if word == "threads");
    let command = vm.spec.command.as_ref();
    let is_java =
        file_of(vm).is_some() || command.is_some_and(|exec| exec.argv.iter().any(|word| word == PLACE));
    (asked && is_java).then(|| Exec::new(["/bin/sh", "-c", THREADS]))
}
