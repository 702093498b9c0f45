//! `viv disk`: makes, looks at and changes disk images. All but `limit` works on files alone and asks no service; an image
//! that a VM uses is locked.
use super::attach::which_disk;
use super::run::set_limit;
use super::{Context, Whom};
use crate::progress::Bar;
use crate::{output, size};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use viv_api::client::{Request, Scope};
use viv_api::endpoint::Route;
use viv_api::operation::Progress;
use viv_api::vm::{DiskSize, Vm};
use viv_block::{CreateOptions, Disk as _, DiskInfo, Layer, NewVdi, OpenError, Qcow2, RawDisk, Source};
use viv_host::Places;
use viv_model::{DiskFormat, DiskLimits, Fault, Kind};

/// 128 + SIGINT.
const INTERRUPTED: u8 = 130;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "viv disk create data.qcow2 20G                      an empty disk that grows as it is written\n\
                  viv disk create --backing debian.qcow2 mine.qcow2   one that begins as another\n\
                  viv disk convert old.vmdk new.qcow2                 the same disk in another format\n\
                  viv disk resize data.qcow2 +10G\n\n\
                  Formats: raw, qcow2 (read and written); vdi (read, converted to); vmdk, vhd, vhdx (read). A new file's format is that of\n\
                  its name's end, raw if there is none."
)]
pub(crate) struct Disk {
    #[command(subcommand)]
    verb: DiskVerb,
}

#[derive(clap::Args, Debug)]
struct Image {
    /// The image
    file: PathBuf,
    /// Its format; looked up if not given
    #[arg(short, long, value_parser = format)]
    format: Option<DiskFormat>,
    /// A file or directory outside its own that it may refer to
    #[arg(long, value_name = "PATH")]
    allow: Vec<PathBuf>,
}

#[derive(clap::Subcommand, Debug)]
enum DiskVerb {
    /// Make a new disk
    Create {
        /// The new file
        file: PathBuf,
        /// How large the disk is: 512M, 20G; as large as the one below if there is one
        #[arg(value_parser = size::exact, required_unless_present = "backing")]
        size: Option<u64>,
        /// raw or qcow2
        #[arg(short, long, value_parser = format)]
        format: Option<DiskFormat>,
        /// Let it stand over this image, which is only read from then on
        #[arg(short, long, value_name = "FILE")]
        backing: Option<PathBuf>,
        /// The format of that image; looked up if not given
        #[arg(long, value_name = "FORMAT", value_parser = format)]
        backing_format: Option<DiskFormat>,
        /// Size of a cluster of qcow2: 4K to 2M
        #[arg(long, default_value = "64K", value_parser = size::exact)]
        cluster: u64,
    },
    /// Show what an image is, and what it stands over
    Info(Image),
    /// Copy a disk into another format, without its zeroes and with all that lies below it
    Convert {
        #[command(flatten)]
        image: Image,
        /// The new file
        to: PathBuf,
        /// Its format: raw, qcow2 or vdi
        #[arg(short, long, value_name = "FORMAT", value_parser = format)]
        output: Option<DiskFormat>,
    },
    /// Give a disk another size: 20G, or +5G; also while a VM uses it
    Resize {
        #[command(flatten)]
        image: Image,
        /// The new size
        size: String,
        /// Let the end of the disk be cut off
        #[arg(long)]
        shrink: bool,
    },
    /// Look for errors in a qcow2 image
    Check {
        #[command(flatten)]
        image: Image,
        /// Repair what can be repaired
        #[arg(short, long)]
        repair: bool,
    },
    /// Write what an image has to the one below it, and empty it
    Commit(Image),
    /// Let a VM's disk be as fast as this from now on; without limits, as fast as it can
    Limit {
        /// The VM
        vm: String,
        /// Its disk: the file, the serial number, or which it is, from 0
        disk: String,
        /// iops=N, bps=N, iops-burst=N, bps-burst=N
        #[arg(value_name = "NAME=N")]
        limits: Vec<String>,
    },
    /// Let an image stand over another one, or none
    Rebase {
        #[command(flatten)]
        image: Image,
        /// The image to stand over
        #[arg(short, long, value_name = "FILE", required_unless_present = "flat")]
        backing: Option<PathBuf>,
        /// The format of that image; looked up if not given
        #[arg(long, value_name = "FORMAT", value_parser = format)]
        backing_format: Option<DiskFormat>,
        /// Stand over none: take over all that lies below
        #[arg(long, conflicts_with = "backing")]
        flat: bool,
        /// Change the name only: the image below was moved, and its content is the same
        #[arg(short, long = "unsafe")]
        unchecked: bool,
    },
}

fn format(text: &str) -> Result<DiskFormat, String> {
    text.parse().map_err(|fault: Fault| fault.fix)
}

impl Image {
    fn source(&self, read_only: bool) -> Source {
        Source { format: self.format, allowed: self.allow.clone(), ..Source::new(&self.file, read_only) }
    }
}

/// A long work: its bar, and whether the user wants it to end.
struct Work {
    bar: Bar,
    step: String,
    total: u64,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn new(step: String, total: u64) -> Work {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // Without it, the signal ends us at once.
            let _ = signal_hook::flag::register(signal, stop.clone());
        }
        Work { bar: Bar::new(), step, total, stop }
    }

    fn show(&mut self, done: u64) -> io::Result<()> {
        let progress = Progress { step: self.step.clone(), done, total: Some(self.total), bytes: true };
        self.bar.show(&progress);
        if self.stop.load(Ordering::Relaxed) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

pub(crate) fn run(args: Disk, whom: &Whom) -> Result<u8, Fault> {
    let json = whom.json;
    match args.verb {
        DiskVerb::Create { file, size, format, backing, backing_format, cluster } => {
            let below =
                backing.as_deref().map(|backing| below(&file, backing, backing_format)).transpose()?;
            create(&file, size, format, below, cluster)?;
            report(&Source::new(&file, true), json, below_allowed(backing))
        }
        DiskVerb::Info(image) => {
            let info = viv_block::info(&image.source(true))?;
            if json {
                output::json(&info)
            } else {
                output::print(&text(&info))
            }
            Ok(0)
        }
        DiskVerb::Convert { image, to, output } => convert(&image, &to, output, json),
        DiskVerb::Resize { image, size, shrink } => resize(&image, &size, shrink, json),
        DiskVerb::Check { image, repair } => check(&image, repair, json),
        DiskVerb::Commit(image) => commit(&image, json),
        DiskVerb::Limit { vm, disk, limits } => limit(&Context::new(whom)?, &vm, &disk, &limits),
        DiskVerb::Rebase { image, backing, backing_format, unchecked, .. } => {
            rebase(&image, backing, backing_format, unchecked, json)
        }
    }
}

/// What the user has named may be looked at.
fn below_allowed(backing: Option<PathBuf>) -> Vec<PathBuf> {
    backing.into_iter().filter_map(|path| path.canonicalize().ok()?.parent().map(Path::to_owned)).collect()
}

/// Says what has become of an image.
fn report(source: &Source, json: bool, allowed: Vec<PathBuf>) -> Result<u8, Fault> {
    let mut source = source.clone();
    source.allowed.extend(allowed);
    if json {
        output::json(&viv_block::info(&source)?);
    }
    Ok(0)
}

fn limit(context: &Context, vm: &str, disk: &str, texts: &[String]) -> Result<u8, Fault> {
    let mut limits = DiskLimits::default();
    for text in texts {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if !set_limit(&mut limits, name, value)? {
            let text = format!("no limit of a disk is called {name:?}");
            return Err(Fault::new(
                Kind::Usage,
                text,
                "there are iops=N, bps=N, iops-burst=N and bps-burst=N",
            ));
        }
    }
    let client = &context.client;
    let vm: Vm = client.json(Request::new(Route::VmGet, &[vm]))?;
    let disk = which_disk(&vm, disk)?.to_string();
    let vm: Vm = client.json(Request::new(Route::VmDiskLimits, &[&vm.id, &disk]).body(&limits))?;
    if context.json {
        output::json(&vm);
    }
    Ok(0)
}

/// The name of the image below as the one above is to have it, its format, and the image.
struct Below {
    name: String,
    format: DiskFormat,
    source: Source,
}

fn below(above: &Path, backing: &Path, format: Option<DiskFormat>) -> Result<Below, Fault> {
    let mut source = Source::new(backing, true);
    source.format = format;
    let info = viv_block::info(&source)?;
    let real = |path: &Path| {
        path.canonicalize().map_err(|error| {
            let text = format!("cannot find {}: {error}", path.display());
            Fault::new(Kind::NotFound, text, "check the path given with --backing")
        })
    };
    let path = real(backing)?;
    let directory = match above.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.canonicalize().unwrap_or_default(),
        _ => real(Path::new("."))?,
    };
    let name = path.strip_prefix(&directory).unwrap_or(&path);
    let name = name.to_str().ok_or_else(|| {
        let text = format!("an image cannot refer to {}: its name is no text", path.display());
        Fault::new(Kind::Usage, text, "rename it")
    })?;
    source.format = Some(info.format);
    Ok(Below { name: name.to_string(), format: info.format, source })
}

fn create(
    file: &Path,
    size: Option<u64>,
    format: Option<DiskFormat>,
    below: Option<Below>,
    cluster: u64,
) -> Result<(), Fault> {
    let format = target_format(file, format.or(below.as_ref().map(|_| DiskFormat::Qcow2)))?;
    if format == DiskFormat::Raw && below.is_some() {
        let text = "a raw disk cannot stand over another";
        return Err(Fault::new(Kind::Usage, text, "use --format qcow2, or copy it: viv disk convert"));
    }
    let size = match (size, &below) {
        (Some(size), _) => size,
        (None, Some(below)) => viv_block::info(&below.source)?.size,
        (None, None) => 0,
    };
    let backing = below.map(|below| (below.name, below.format.name().to_string()));
    make(file, format, CreateOptions { size, cluster, backing }).map(drop)
}

fn make(file: &Path, format: DiskFormat, options: CreateOptions) -> Result<Box<dyn viv_block::Disk>, Fault> {
    Ok(match format {
        DiskFormat::Raw => Box::new(RawDisk::create(file, options.size)?),
        DiskFormat::Vdi => Box::new(NewVdi::create(file, options.size)?),
        _ => Box::new(Qcow2::create(file, &options)?),
    })
}

fn by_name(file: &Path) -> Option<DiskFormat> {
    file.extension()?.to_str()?.parse().ok()
}

/// The format of a new file: what was asked, or what its name ends in.
fn target_format(file: &Path, asked: Option<DiskFormat>) -> Result<DiskFormat, Fault> {
    match asked.or_else(|| by_name(file)).unwrap_or(DiskFormat::Raw) {
        format @ (DiskFormat::Raw | DiskFormat::Qcow2) => Ok(format),
        other => Err(Fault::new(
            Kind::Usage,
            format!("{other} images can be read, but not made"),
            "use the format raw or qcow2, or vdi for a copy (viv disk convert); other programs read all three",
        )),
    }
}

/// An error of work on an image.
fn failed(what: &str, path: &Path, error: &io::Error) -> Fault {
    let (kind, fix) = match error.kind() {
        io::ErrorKind::StorageFull => (Kind::NoCapacity, "make room on its file system: df -h"),
        io::ErrorKind::InvalidData => (Kind::Error, "see what is wrong: viv disk check FILE"),
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => {
            (Kind::Usage, "see what the image is: viv disk info FILE")
        }
        _ => (Kind::Error, "check the file system that it is on (see dmesg)"),
    };
    let fix = fix.replace("FILE", &path.display().to_string());
    Fault::new(kind, format!("cannot {what} {}: {error}", path.display()), fix)
}

fn convert(image: &Image, to: &Path, format: Option<DiskFormat>, json: bool) -> Result<u8, Fault> {
    let format = match format.or_else(|| by_name(to)) {
        Some(DiskFormat::Vdi) => DiskFormat::Vdi, // a copy, but no disk of a VM
        format => target_format(to, format)?,
    };
    if to.exists() {
        return Err(OpenError::Exists { path: to.to_owned() }.into());
    }
    let from = viv_block::open(&image.source(true))?;
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = to.with_file_name(name);
    let target = make(&partial, format, CreateOptions::new(from.size()))?;
    let mut work = Work::new(format!("converting {}", image.file.display()), from.size());
    let copied = viv_block::copy(&*from, &*target, &mut |done| work.show(done));
    drop(target);
    work.bar.clear();
    let placed =
        copied.and_then(|()| std::fs::hard_link(&partial, to).or_else(|_| std::fs::rename(&partial, to)));
    let _ = std::fs::remove_file(&partial);
    match placed {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            output::note("given up; nothing was left behind");
            Ok(INTERRUPTED)
        }
        Err(error) => Err(failed("convert", &image.file, &error)),
        Ok(()) => report(&Source::new(to, true), json, Vec::new()),
    }
}

/// Lets the VM that uses the disk give it another size; none if no VM of ours does.
fn resize_in_use(path: &Path, wanted: DiskSize) -> Result<Option<Vm>, Fault> {
    let path = path.canonicalize().unwrap_or_default();
    // Whoever has the file, in whatever project.
    let client = viv_host::start::client(&Places::find()?).within(Scope { all: true, ..Scope::default() });
    let vms: Vec<Vm> = client.json(Request::new(Route::VmList, &[]))?;
    for vm in vms.iter().filter(|vm| vm.state.is_live()) {
        let uses = |disk: &viv_model::DiskSpec| disk.path.canonicalize().is_ok_and(|used| used == path);
        if let Some(index) = vm.machine.disks.iter().position(uses) {
            let index = index.to_string();
            let path = [vm.id.as_str(), &index];
            let there = format!("project={}", vm.project);
            return client.json(Request::new(Route::VmDiskSize, &path).query(there).body(&wanted)).map(Some);
        }
    }
    Ok(None)
}

fn resize(image: &Image, text: &str, shrink: bool, json: bool) -> Result<u8, Fault> {
    let wrong = |text| Fault::new(Kind::Usage, text, "write the size as 20G, or +5G to add to it");
    let bytes = size::exact(text.strip_prefix('+').unwrap_or(text))
        .map_err(|how| wrong(format!("{text:?} is no size: {how}")))?;
    let wanted = DiskSize { bytes, more: text.starts_with('+') };
    let disk = match viv_block::open(&image.source(false)) {
        Err(OpenError::InUse { path, read_only }) => {
            let Some(vm) = resize_in_use(&path, wanted)? else {
                return Err(OpenError::InUse { path, read_only }.into());
            };
            if json {
                output::json(&vm);
            }
            return Ok(0);
        }
        opened => opened?,
    };
    let old = disk.size();
    let new = if wanted.more { old.saturating_add(bytes) } else { bytes };
    if new < old && !shrink {
        return Err(Fault::new(
            Kind::Usage,
            format!("{} has {old} bytes: {new} would cut off its end", image.file.display()),
            "shrink the file system in it first; then say --shrink",
        ));
    }
    disk.resize(new).map_err(|error| failed("resize", &image.file, &error))?;
    drop(disk);
    report(&image.source(true), json, Vec::new())
}

fn check(image: &Image, repair: bool, json: bool) -> Result<u8, Fault> {
    let info = viv_block::info(&image.source(true));
    let format = match (image.format, &info) {
        (Some(format), _) => format,
        (None, Ok(info)) => info.format,
        (None, Err(_)) => viv_block::probe(&image.file)?,
    };
    if format != DiskFormat::Qcow2 {
        let text = format!("a {format} image has nothing that could be checked");
        return Err(Fault::new(Kind::Usage, text, "check the file system in it, from a guest"));
    }
    let report = Qcow2::check(&image.file, repair)?;
    if json {
        output::json(&report);
    } else {
        let part = |part: u64| 100.0 * part as f64 / report.total.max(1) as f64;
        output::print(&format!(
            "{} of {} clusters in use ({:.1}%), {} compressed\n",
            report.allocated,
            report.total,
            part(report.allocated),
            report.compressed
        ));
        if report.leaks_fixed + report.corruptions_fixed > 0 {
            let (errors, leaks) = (report.corruptions_fixed, report.leaks_fixed);
            output::print(&format!("repaired: {errors} errors, {leaks} clusters that nobody used\n"));
        }
    }
    if report.is_clean() {
        return Ok(0);
    }
    let errors = report.corruptions - report.corruptions_fixed;
    let leaks = report.leaks - report.leaks_fixed;
    let fix = match repair {
        false => format!("make a copy of it, then: viv disk check --repair {}", image.file.display()),
        true => format!(
            "restore it from a copy, or take what can be read: viv disk convert {} NEW.qcow2",
            image.file.display()
        ),
    };
    let text = format!("{} has {errors} errors, and {leaks} clusters that nobody uses", image.file.display());
    Err(Fault::new(Kind::Error, text, fix))
}

fn commit(image: &Image, json: bool) -> Result<u8, Fault> {
    let Layer { image: layer, below } = viv_block::open_layer(&image.source(false))?;
    let below = below.ok_or_else(|| {
        let text = format!("{} stands over no other image", image.file.display());
        Fault::new(Kind::Usage, text, "copy it instead: viv disk convert")
    })?;
    let target = viv_block::open(&below)?;
    let mut work = Work::new(format!("committing {}", image.file.display()), layer.size());
    let committed = layer.commit(&*target, &mut |done| work.show(done));
    work.bar.clear();
    drop((layer, target));
    finish(committed, "commit", image, json, Vec::new())
}

/// What came of changing an image.
fn finish(
    done: io::Result<()>,
    what: &str,
    image: &Image,
    json: bool,
    allowed: Vec<PathBuf>,
) -> Result<u8, Fault> {
    match done {
        Ok(()) => report(&image.source(true), json, allowed),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            output::note("given up; the image is as good as before");
            Ok(INTERRUPTED)
        }
        Err(error) => Err(failed(what, &image.file, &error)),
    }
}

fn rebase(
    image: &Image,
    backing: Option<PathBuf>,
    format: Option<DiskFormat>,
    unchecked: bool,
    json: bool,
) -> Result<u8, Fault> {
    let new = backing.as_deref().map(|backing| below(&image.file, backing, format)).transpose()?;
    if let Some(new) = &new
        && viv_block::files(&new.source)?.iter().any(|file| same(file, &image.file))
    {
        let text = format!("{} would stand over itself", image.file.display());
        return Err(Fault::new(Kind::Usage, text, "name another image with --backing"));
    }
    if !unchecked {
        let layer = viv_block::open_qcow2(&image.source(false))?;
        let below = new.as_ref().map(|new| viv_block::open(&new.source)).transpose()?;
        let mut work = Work::new(format!("rebasing {}", image.file.display()), layer.size());
        let taken = layer.take_over(below.as_deref(), &mut |done| work.show(done));
        work.bar.clear();
        if taken.is_err() {
            return finish(taken, "rebase", image, json, Vec::new());
        }
    }
    Qcow2::set_backing(&image.file, new.map(|new| (new.name, new.format.name().to_string())))?;
    report(&image.source(true), json, below_allowed(backing))
}

/// Whether two paths lead to one file.
fn same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// An image as people read it.
fn text(info: &DiskInfo) -> String {
    let mut lines = Vec::new();
    for (depth, info) in std::iter::once(info).chain(&info.below).enumerate() {
        let over = if depth == 0 { "" } else { "over  " };
        lines.push(format!("{over}{}", info.path.display()));
        lines.push(format!("  {:<8} {}", "format", info.format));
        lines.push(format!("  {:<8} {} ({} bytes)", "size", size::bytes(info.size), info.size));
        lines.push(format!("  {:<8} {}", "used", size::bytes(info.used)));
        let Some(qcow2) = &info.qcow2 else { continue };
        lines.push(format!(
            "  {:<8} version {}, clusters of {} bytes, {}",
            "qcow2", qcow2.version, qcow2.cluster, qcow2.compression
        ));
        if qcow2.snapshots > 0 {
            lines.push(format!("  {:<8} {} inside", "snapshots", qcow2.snapshots));
        }
        if qcow2.corrupt {
            lines.push(format!("  {:<8} it is damaged; see: viv disk check", "state"));
        } else if qcow2.dirty {
            lines
                .push(format!("  {:<8} it was not closed properly; put in order when it is opened", "state"));
        }
    }
    lines.join("\n") + "\n"
}
