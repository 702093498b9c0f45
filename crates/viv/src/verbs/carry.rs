//! `viv commit`, `viv push`, `viv export`: what a VM has become, for others.
use super::operation::{Detach, work};
use super::pull::full_name;
use super::run::absolute;
use super::{Context, build};
use crate::{output, size};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::image::{
    DiskExport, Exported, Image, ImageCommit, ImageExport, ImagePush, MachineFormat, Pushed,
};
use viv_api::vm::Vm;
use viv_model::{DiskFormat, Fault, Kind};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "The VM has been stopped in good order, or runs: then it is taken as it is at a moment, and goes on. Of a snapshot, its name or\n\
                  VM@SNAPSHOT. A VM stays as it is.\n\
                  Of an image of containers, what the VM changed becomes one more layer; else its disks are copied.\n\n  \
                  viv commit web web-2 --cmd '[\"nginx\",\"-g\",\"daemon off;\"]' --env MODE=live\n  \
                  viv run web-2"
)]
pub(crate) struct Commit {
    /// The VM's name or id, or a snapshot
    #[arg(value_name = "VM|VM@SNAPSHOT")]
    vm: String,
    /// The new image's name: a word, or REGISTRY/REPOSITORY:TAG
    image: String,
    /// The words before the command's: ["/entry","-x"], or words without quotes
    #[arg(long, value_name = "WORDS")]
    entrypoint: Option<String>,
    /// The command of the image: ["serve","-v"], or words without quotes
    #[arg(long, value_name = "WORDS")]
    cmd: Option<String>,
    /// A variable of its programs
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Where its programs start
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// As whom they run: USER[:GROUP]
    #[arg(short, long)]
    user: Option<String>,
    /// What the image's history says of it
    #[arg(short, long, default_value = "")]
    message: String,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    detach: Detach,
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Layers that the registry has already are not sent. Credentials are those of docker and podman: docker login, podman login\n\n  \
                  viv push web-2 registry.example.org/me/web:2\n  \
                  viv push --insecure localhost:5000/me/web:2   an image that is called so, to a registry without TLS\n  \
                  viv push debian ghcr.io/me/box:1              a whole computer, which viv run ghcr.io/me/box:1 boots\n  \
                  viv push hello.wasm ghcr.io/me/hello:1        a WebAssembly program, which viv run ghcr.io/me/hello:1 runs"
)]
pub(crate) struct Push {
    /// The image's name, or the file of a WebAssembly program
    image: String,
    /// Where to: REGISTRY/REPOSITORY:TAG; its own name if there is none
    reference: Option<String>,
    /// Talk to the registry without TLS, or with any certificate
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    detach: Detach,
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "An image of containers becomes an OCI archive, which docker, podman and skopeo read. Of a VM that does not run, a disk becomes a\n\
                  raw or qcow2 file, whole, whatever lies below it. A VM that does not run, or an image with disks, becomes an OVA, which VirtualBox\n\
                  and VMware import. The format is that of --format, else that of the file's name.\n\n  \
                  viv export web-2 web.tar               the image web-2\n  \
                  viv export db db.qcow2                 the disk of the VM db\n  \
                  viv export db db.ova                   the VM db, or the image db if there is no such VM\n  \
                  viv export db db.json                  what is said of the VM db, for viv apply, diff and create -f; - is standard output"
)]
pub(crate) struct Export {
    /// An image's name, or a VM's
    #[arg(value_name = "IMAGE|VM")]
    what: String,
    /// The new file
    file: PathBuf,
    /// oci: the image; raw, qcow2: the VM's disk; ova: the VM with its disks, or the image; json: the VM's document
    #[arg(long)]
    format: Option<Format>,
    /// Which disk of the VM, counted from 0
    #[arg(long, value_name = "N")]
    disk: Option<usize>,
    #[command(flatten)]
    detach: Detach,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Oci,
    Raw,
    Qcow2,
    Ova,
    Json,
}

impl Format {
    fn by_name(file: &Path) -> Option<Format> {
        if file == Path::new("-") {
            return Some(Format::Json);
        }
        match file.extension()?.to_str()? {
            "tar" | "oci" => Some(Format::Oci),
            "raw" | "img" => Some(Format::Raw),
            "qcow2" => Some(Format::Qcow2),
            "ova" => Some(Format::Ova),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

pub(crate) fn commit(context: &Context, args: Commit) -> Result<u8, Fault> {
    let ask = ImageCommit {
        name: full_name(&args.image)?.unwrap_or(args.image),
        entrypoint: args.entrypoint.as_deref().map(words).transpose()?,
        command: args.cmd.as_deref().map(words).transpose()?,
        env: args.env.iter().map(|pair| variable(pair)).collect::<Result<_, _>>()?,
        cwd: args.workdir,
        user: args.user,
        message: args.message,
    };
    let names = [args.vm.as_str()];
    let request = Request::new(Route::VmCommit, &names).body(&ask);
    let image = match work::<Image>(context, request, "the commit", &args.detach)? {
        Ok(image) => image,
        Err(status) => return Ok(status),
    };
    build::print(context, &image, args.quiet);
    Ok(0)
}

/// Whether this names a program's file, and no image.
fn is_program(name: &str) -> bool {
    let is_called_so = [".wasm", ".wat"].iter().any(|end| name.to_ascii_lowercase().ends_with(end));
    (is_called_so || Path::new(name).is_absolute()) && Path::new(name).is_file()
}

pub(crate) fn push(context: &Context, args: Push) -> Result<u8, Fault> {
    let (image, reference) = match is_program(&args.image) {
        true => {
            let reference = args.reference.ok_or_else(|| {
                let text = format!("{} is a program's file, and is to go nowhere", args.image);
                Fault::new(Kind::Usage, text, "name its place: viv push FILE.wasm REGISTRY/NAME:TAG")
            })?;
            if context.client.is_elsewhere() {
                let text = "the program's file is on this host, and the service is on another one";
                return Err(Fault::new(
                    Kind::Usage,
                    text,
                    "push it from the host of the service, or by this host's",
                ));
            }
            let file = absolute(Path::new(&args.image))?;
            let file = file.to_str().ok_or_else(|| {
                let text = format!("the path of {} is no text", args.image);
                Fault::new(Kind::Usage, text, "copy the file to one that is called otherwise")
            })?;
            (file.to_string(), reference)
        }
        false => {
            let image = full_name(&args.image)?.unwrap_or(args.image);
            let reference = args.reference.unwrap_or_else(|| image.clone());
            (image, reference)
        }
    };
    let ask = ImagePush { reference, insecure: args.insecure };
    let names = [image.as_str()];
    let request = Request::new(Route::ImagePush, &names).body(&ask).registries(build::logins(&ask.reference));
    let pushed = match work::<Pushed>(context, request, "the push", &args.detach)? {
        Ok(pushed) => pushed,
        Err(status) => return Ok(status),
    };
    if context.json {
        output::json(&pushed);
    } else {
        let known = match pushed.known_layers {
            0 => String::new(),
            1 => ", a layer was there".to_string(),
            several => format!(", {several} layers were there"),
        };
        output::print(&format!(
            "{}@{}  {} sent{known}\n",
            pushed.reference,
            pushed.digest,
            size::bytes(pushed.sent_bytes)
        ));
    }
    Ok(0)
}

pub(crate) fn export(context: &Context, args: Export) -> Result<u8, Fault> {
    let format = args.format.or_else(|| Format::by_name(&args.file)).ok_or_else(|| {
        Fault::new(
            Kind::Usage,
            format!("{} does not say what it is to be", args.file.display()),
            "say it: --format oci for an image, raw or qcow2 for a VM's disk, ova for a VM with its disks, json for its document",
        )
    })?;
    let path = std::path::absolute(&args.file).map_err(|error| {
        Fault::new(Kind::Error, format!("{}: {error}", args.file.display()), "name another file")
    })?;
    if args.disk.is_some() && matches!(format, Format::Oci | Format::Ova | Format::Json) {
        return Err(Fault::new(
            Kind::Usage,
            "--disk is for a VM's disk alone",
            "leave it out, or write the disk with --format raw or qcow2",
        ));
    }
    if format == Format::Json {
        return document(context, &args.what, &args.file);
    }
    let exported = if format == Format::Ova {
        ova(context, &args, path)?
    } else if format == Format::Oci {
        let image = full_name(&args.what)?.unwrap_or_else(|| args.what.clone());
        let ask = ImageExport { path, format: MachineFormat::Oci };
        let names = [image.as_str()];
        let request = Request::new(Route::ImageExport, &names).body(&ask);
        work::<Exported>(context, request, "the export", &args.detach).map_err(|fault| {
            let fix = format!("{}; of a VM make an image first: viv commit {} IMAGE", fault.fix, args.what);
            if fault.kind == Kind::NotFound { Fault { fix, ..fault } } else { fault }
        })?
    } else {
        let format = if format == Format::Raw { DiskFormat::Raw } else { DiskFormat::Qcow2 };
        let ask = DiskExport { path, format: Some(format), disk: args.disk, ova: false };
        let names = [args.what.as_str()];
        let request = Request::new(Route::VmExport, &names).body(&ask);
        work::<Exported>(context, request, "the export", &args.detach)?
    };
    let exported = match exported {
        Ok(exported) => exported,
        Err(status) => return Ok(status),
    };
    if context.json {
        output::json(&exported);
    } else {
        output::print(&format!("{}  {}\n", exported.path.display(), size::bytes(exported.size_bytes)));
        for item in &exported.left {
            output::note(&format!("not in it: {item}"));
        }
    }
    Ok(0)
}

/// Writes what is said of a VM to a new file of this machine, as its document.
fn document(context: &Context, what: &str, file: &Path) -> Result<u8, Fault> {
    let vm: Vm = context.client.json(Request::new(Route::VmGet, &[what]))?;
    let failed = |error: std::io::Error| {
        let text = format!("cannot write {}: {error}", file.display());
        Fault::new(
            Kind::of_file(&error),
            text,
            "name a new file where you may write, or - for standard output",
        )
    };
    let text = serde_json::to_string_pretty(&vm.spec).map_err(|error| failed(error.into()))? + "\n";
    if file == Path::new("-") {
        output::print(&text);
        return Ok(0);
    }
    let mut new = File::create_new(file).map_err(failed)?;
    new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).map_err(failed)?;
    if context.json {
        output::json(&vm.spec);
    } else {
        output::print(&format!("{}\n", file.display()));
    }
    Ok(0)
}

/// Writes a VM as an OVA; if none is called so, an image.
fn ova(context: &Context, args: &Export, path: PathBuf) -> Result<Result<Exported, u8>, Fault> {
    let what = args.what.as_str();
    let vm: Result<Vm, Fault> = context.client.json(Request::new(Route::VmGet, &[what]));
    match vm {
        Err(fault) if fault.kind == Kind::NotFound => {
            let image = full_name(what)?.unwrap_or_else(|| what.to_string());
            let ask = ImageExport { path, format: MachineFormat::Ova };
            let names = [image.as_str()];
            let request = Request::new(Route::ImageExport, &names).body(&ask);
            work(context, request, "the export", &args.detach).map_err(|fault| match fault.kind {
                Kind::NotFound => Fault {
                    message: format!("no VM and no image is called {what:?}"),
                    fix: "see which there are: viv ps -a, viv images".to_string(),
                    ..fault
                },
                _ => fault,
            })
        }
        Err(fault) => Err(fault),
        Ok(_) => {
            let ask = DiskExport { path, format: None, disk: None, ova: true };
            let names = [what];
            work(context, Request::new(Route::VmExport, &names).body(&ask), "the export", &args.detach)
        }
    }
}

/// A list of words in JSON, as in Dockerfiles, or words with spaces between them.
pub(super) fn words(text: &str) -> Result<Vec<String>, Fault> {
    if !text.trim_start().starts_with('[') {
        return Ok(text.split_whitespace().map(str::to_string).collect());
    }
    serde_json::from_str(text).map_err(|error| {
        Fault::new(
            Kind::Usage,
            format!("{text:?} is no list of words: {error}"),
            "write [\"WORD\",\"WORD\"], or words with spaces between them",
        )
    })
}

fn variable(pair: &str) -> Result<(String, String), Fault> {
    let (name, value) = pair.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
        Fault::new(Kind::Usage, format!("{pair:?} is no variable"), "write --env NAME=VALUE")
    })?;
    Ok((name.to_string(), value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_a_list_or_separated() {
        assert_eq!(words("a -b  c").unwrap(), ["a", "-b", "c"]);
        assert_eq!(words(r#"["sh","-c","a b"]"#).unwrap(), ["sh", "-c", "a b"]);
        assert_eq!(words("[]").unwrap(), [""; 0]);
        assert_eq!(words("[a").unwrap_err().kind, Kind::Usage);
        assert_eq!(variable("A=b=c").unwrap(), ("A".to_string(), "b=c".to_string()));
        assert!(variable("=x").is_err() && variable("A").is_err());
    }

    #[test]
    fn a_files_name_says_what_it_is_to_be() {
        for (name, format) in [
            ("a.tar", Some(Format::Oci)),
            ("a.qcow2", Some(Format::Qcow2)),
            ("a.ova", Some(Format::Ova)),
            ("a.b/c", None),
            ("x.img", Some(Format::Raw)),
        ] {
            assert_eq!(Format::by_name(Path::new(name)), format, "{name}");
        }
    }
}
