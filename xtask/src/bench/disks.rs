//! `cargo xtask bench --disks`: fio from Debian in the default guest on both machines, on a raw and a qcow2 disk.
//!
//! Both boot the same kernel and initial RAM disk, and get the same script on the serial console. The disks' files are
//! in the host's page cache. QEMU uses io_uring. The rounds alternate, and the medians are compared.
use super::clock;
use super::guest::{self, must};
use super::machine::{Kind, VM};
use super::options::Options;
use super::table;
use crate::install;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// Name, and fio's options.
const JOBS: &[(&str, &str)] = &[
    ("4 KiB random read, depth 1", "--rw=randread --bs=4k --iodepth=1"),
    ("4 KiB random read, depth 32", "--rw=randread --bs=4k --iodepth=32"),
    ("4 KiB random write, depth 1", "--rw=randwrite --bs=4k --iodepth=1"),
    ("4 KiB random write, depth 32", "--rw=randwrite --bs=4k --iodepth=32"),
    ("128 KiB sequential read", "--rw=read --bs=128k --iodepth=8"),
    ("128 KiB sequential write", "--rw=write --bs=128k --iodepth=8"),
];
const FORMATS: [&str; 2] = ["raw", "qcow2"];
/// How long each job runs, seconds.
const SECONDS: u32 = 3;
const CPUS: &str = "2";
/// Fields of fio's terse output, version 3: requests a second of reads and of writes (fio(1), "TERSE OUTPUT").
const TERSE_IOPS: [usize; 2] = [7, 48];
/// What the shell of the guest says when it is there.
const SHELL: &str = "built-in shell";
/// What the script prints before a job and after it.
const MARKS: [&str; 2] = ["fio-begins", "fio-ended"];

/// What a job gave.
#[derive(Clone, Copy)]
struct Figure {
    /// Requests a second.
    iops: f64,
    /// Processor time of the VM's process for each request, microseconds.
    cpu_us: f64,
}

/// What both machines boot.
struct Boot {
    kernel: PathBuf,
    initrd: PathBuf,
    append: String,
    /// A disk with fio.
    tools: PathBuf,
    dir: PathBuf,
}

/// Measures and prints the table.
pub(super) fn run(options: &Options) -> Result<(), String> {
    install::need("fio", "fio")?;
    install::need("mke2fs", "e2fsprogs")?;
    install::need("qemu-img", "qemu-utils")?;
    if options.peer {
        install::need("qemu-system-x86_64", "qemu-system-x86")?;
    }
    crate::steps::build()?;
    let boot = prepare()?;
    // Of each job, by format and machine.
    let mut figures = vec![Vec::<Vec<Figure>>::new(); 4];
    for round in 1..=options.runs {
        for (place, format) in FORMATS.into_iter().enumerate() {
            for (kind, index) in [(Kind::Qemu, 0), (Kind::Viv, 1)] {
                if kind == Kind::Viv || options.peer {
                    eprintln!("xtask: round {round} of {}: {} on {format}", options.runs, kind.title());
                    let figures = figures.get_mut(place * 2 + index).ok_or("no place for it")?;
                    figures.push(measure(&boot, format, kind)?);
                }
            }
        }
    }
    print(&figures);
    Ok(())
}

fn prepare() -> Result<Boot, String> {
    let dir = guest::bench_dir()?;
    let (kernel, initrd, append) = guest::default_guest(&dir)?;
    let tools = guest::disk_with("fio", &dir)?;
    let raw = dir.join("disk.raw");
    must(
        "making a disk",
        Command::new("dd").args(["if=/dev/urandom", "bs=1M", "count=512"]).arg(of("of=", &raw)),
    )?;
    let cow = dir.join("disk.qcow2");
    must("making a disk", Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&raw, &cow]))?;
    Ok(Boot { kernel, initrd, append, tools, dir })
}

fn of(prefix: &str, path: &Path) -> String {
    format!("{prefix}{}", path.display())
}

/// What the guest does.
fn script() -> String {
    let mut script = String::from(
        "set +m; mkdir -p /mnt/t; mount -t ext4 -o ro /dev/vda /mnt/t; mount -t devtmpfs dev /mnt/t/dev; \
         mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; mount -t tmpfs tmp /mnt/t/tmp; mount -t proc proc /mnt/t/proc; mount -t sysfs sys /mnt/t/sys\n",
    );
    for (_, words) in JOBS {
        script += &format!(
            "echo fio-begin''s; chroot /mnt/t /usr/bin/fio --name=j --filename=/dev/vdb --direct=1 --ioengine=libaio --thread {words} \
             --time_based --runtime={SECONDS} --output-format=terse --terse-version=3; echo fio-end''ed\n"
        );
    }
    script + "poweroff -f\n"
}

fn command(boot: &Boot, format: &str, kind: Kind) -> Command {
    let disk = boot.dir.join(format!("disk.{format}"));
    if kind == Kind::Viv {
        let mut command = guest::viv(&["run", "--rm", "--accel", "soft", "--name", VM, "--memory", "512M"]);
        command
            .args(["--cpus", CPUS, "--append", &boot.append, "--kernel"])
            .arg(&boot.kernel)
            .arg("--initrd");
        command
            .arg(&boot.initrd)
            .args(["--disk", &format!("{},ro", boot.tools.display()), "--disk"])
            .arg(disk);
        return command;
    }
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512M", "-smp", CPUS]);
    command.args([
        "-nodefaults",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
        "-append",
        &boot.append,
    ]);
    command.arg("-kernel").arg(&boot.kernel).arg("-initrd").arg(&boot.initrd);
    command.args(["-object", "iothread,id=io", "-drive"]);
    command.arg(format!("if=none,id=tools,format=raw,readonly=on,file={}", boot.tools.display()));
    command.args(["-device", "virtio-blk-pci,drive=tools", "-drive"]);
    command
        .arg(format!("if=none,id=disk,format={format},aio=io_uring,cache=writeback,file={}", disk.display()));
    command.args(["-device", &format!("virtio-blk-pci,drive=disk,num-queues={CPUS},iothread=io")]);
    command
}

/// One boot with all jobs.
fn measure(boot: &Boot, format: &str, kind: Kind) -> Result<Vec<Figure>, String> {
    let mut command = command(boot, format, kind);
    let mut child = guest::spawn(&mut command)?;
    let outcome = follow(&mut child, kind);
    let _ = child.kill();
    let _ = child.wait();
    if kind == Kind::Viv {
        let _ = guest::viv_output(&["rm", "-f", VM]);
    }
    outcome
}

fn follow(child: &mut Child, kind: Kind) -> Result<Vec<Figure>, String> {
    let mut input = child.stdin.take().ok_or("no console")?;
    let output = child.stdout.take().ok_or("no console")?;
    let lines = guest::lines(output);
    let cpu = |child: &Child| kind.process(child).and_then(clock::cpu_seconds);
    let (mut figures, mut before, mut iops) = (Vec::new(), None, None);
    let mut last = String::new();
    while figures.len() < JOBS.len() {
        let line = lines
            .recv_timeout(Duration::from_secs(120))
            .map_err(|_| format!("{}: fio did not end; the console's last line: {last}", kind.title()))?;
        if line.contains(SHELL) {
            // Before there is a reader, a serial line may lose what it gets.
            input
                .write_all(script().as_bytes())
                .map_err(|error| format!("cannot write to the console: {error}"))?;
        } else if line == MARKS[0] {
            (before, iops) = (cpu(child), None);
        } else if line == MARKS[1] {
            let iops: f64 = iops.ok_or_else(|| format!("{}: fio failed: {last}", kind.title()))?;
            let used = cpu(child).zip(before).map_or(f64::NAN, |(now, before)| now - before);
            figures.push(Figure { iops, cpu_us: used * 1e6 / (iops * f64::from(SECONDS)) });
        } else if line.starts_with("3;fio-") {
            let fields: Vec<&str> = line.split(';').collect();
            let numbers = TERSE_IOPS.iter().filter_map(|place| fields.get(*place)?.parse::<f64>().ok());
            iops = Some(numbers.fold(0.0, f64::max));
        }
        if !line.is_empty() {
            last = line;
        }
    }
    Ok(figures)
}

fn median(rounds: &[Vec<Figure>], job: usize, value: impl Fn(Figure) -> f64) -> f64 {
    let values = rounds.iter().filter_map(|round| round.get(job).copied().map(&value));
    table::median(values.collect()).unwrap_or(f64::NAN)
}

fn print(figures: &[Vec<Vec<Figure>>]) {
    let empty = Vec::new();
    let of = |place: usize| figures.get(place).unwrap_or(&empty);
    println!(
        "requests a second                       QEMU      viv    ratio   processor us each: QEMU   viv"
    );
    for (place, format) in FORMATS.into_iter().enumerate() {
        for (job, (name, _)) in JOBS.iter().enumerate() {
            let (theirs, ours) = (of(place * 2), of(place * 2 + 1));
            let (qemu, viv) = (median(theirs, job, |f| f.iops), median(ours, job, |f| f.iops));
            let (qemu_us, viv_us) = (median(theirs, job, |f| f.cpu_us), median(ours, job, |f| f.cpu_us));
            let name = format!("{format}: {name}");
            println!("{name:<37} {qemu:>7.0} {viv:>8.0} {:>8.2} {qemu_us:>24.0} {viv_us:>5.0}", viv / qemu);
        }
    }
    println!();
    for (job, (name, _)) in JOBS.iter().enumerate() {
        let ratio = median(of(3), job, |f| f.iops) / median(of(1), job, |f| f.iops);
        println!("viv, qcow2 to raw: {name:<29} {ratio:>5.2}");
    }
}
