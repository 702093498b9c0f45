//! `viv run`: creates a VM and starts it.
//!
//! In the foreground the VM is there for a shell, a command or its console, and ends with it: whatever
//! ends this command, also SIGKILL, ends the VM, because its process watches ours.
use super::Context;
use super::build;
use super::cloud::{self, CloudInitArgs};
use super::container::{ContainerArgs, Pull};
use super::exec::{Command, command_of};
use super::health::HealthArgs;
use super::java;
use super::program::{self, ProgramArgs};
use super::publish::published;
use super::pull;
use super::stats;
use crate::interrupt::{Interrupt, Stage, end_vm};
use crate::progress::Waiting;
use crate::session::{self, Outcome};
use crate::{ending, output, serial, size, streams, terminal};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use viv_api::agent::Exec;
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::image::{DEFAULT, Image, ImageBuild, ImageProcess, is_disk_file};
use viv_api::snapshot::Snapshot;
use viv_api::vm::{OnReboot, Process, Vm, VmCreate, VmKill, VmStop};
use viv_model::{
    Accel, CPUS_MAX, ConsolePortSpec, DiskLimits, DiskSpec, Fault, FileSpec, Kind, NetKind, NicCreate,
    NicLimits, Restart, ShareSpec, SoftSpec, VolumeMount,
};
use viv_oci::Reference;

/// How long a guest may take until its agent answers, seconds: a big one on the software CPU takes minutes.
const AGENT_WAIT_S: u64 = 600;
/// How long a guest with a disk may take to switch itself off after its command, seconds.
const STOP_S: u64 = 30;
/// How often a VM in the foreground is asked whether it waits for room on the host.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(5);
/// 128 + SIGPIPE.
const READER_GONE: u8 = 141;

#[derive(clap::Args, Debug)]
#[command(after_help = "Without a command: a shell on a terminal, else the serial console as plain bytes.\n\
                  With --kernel and without a command: the serial console.\n\n\
                  viv run                                      a shell in the default guest\n\
                  viv run -- uname -a                          one command in it\n\
                  viv run -d --name web debian                 a Debian in the background\n\
                  viv run -v .:/src -- ls /src                 with a directory of the host\n\
                  viv run --kernel F --disk F --append \"…\"     anything that boots\n\
                  viv run -d -p 127.0.0.1:8080:80 debian       its port 80 is this host's 8080\n\
                  viv run -d --net user --name web debian-12-genericcloud.qcow2\n\
                  viv ssh web                                  log in: cloud-init has got the keys\n\
                  viv run --fuel 1000000 -v .:/ a.wasm x y      a WebAssembly program, within limits\n\
                  viv run -d --debug app.jar                   a Java program, with a port for debuggers\n\
                  viv run -d --isolation vm -p 8080:80 app.jar   one in a virtual machine, which is saved and forked while it runs\n\
                  viv run -d --kind evm -p 8545 -- --hardfork london   an Ethereum chain, with its options\n\n\
                  Options of a disk, after its file and a comma each:\n\
                  ro                 the guest may only read it; VMs may share it then\n\
                  format=F           raw, qcow2, vmdk, vdi, vhd or vhdx; looked up once if not given\n\
                  allow=PATH         a file or directory outside its own that the image may stand over\n\
                  serial=S           its serial number: /dev/disk/by-id/virtio-S in the guest\n\
                  on-full=pause      if the host has no room for it, the VM is paused until there is: viv ps;\n\
                  on-full=error      or the guest gets an I/O error\n\
                  iops=N, bps=N      requests and bytes a second at most: iops=500,bps=20M\n\
                  iops-burst=N, bps-burst=N   what may come at once after a rest\n\n\
                  Networks for --net as root, and options of a card, after its network and a comma each:\n\
                  tap:NAME           a tap device of this host, made if it is not there; the host routes its packets\n\
                  bridge:NAME        a bridge of this host\n\
                  ip=ADDRESS         with these two: the guest's address, and no packet leaves with another\n\
                  bps=N, pps=N       no more bytes and packets a second, each way\n\
                  secgroup=GROUP     a security group that only this card is in; may be given several times\n\n\
                  Options of the software CPU, for -o; each is on or off, and off if not given:\n\
                  soft.interpreter   execute all with the interpreter, our reference, and translate nothing\n\
                  soft.eager         translate all code, not only what runs often: slower at first\n\
                  soft.count         count the instructions and blocks that translated code executes: slower\n\
                  soft.perf-map      name translated code for perf, in /tmp/perf-PID.map (PID: viv inspect)\n\
                  soft.check         do again with the interpreter what translated code did, and compare: much slower")]
pub(crate) struct Args {
    /// Its name; one is made up if there is none
    #[arg(long)]
    name: Option<String>,
    /// Forget the VM when it ends
    #[arg(long)]
    pub(super) rm: bool,
    /// Let it run in the background, and print its name
    #[arg(short, long)]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) command: Command,
    /// Which processor: auto, kvm, or soft (our own, which needs no KVM)
    #[arg(long, default_value = "auto", value_parser = accel)]
    accel: Accel,
    /// Set an option: soft.interpreter=on; more below
    #[arg(short, long = "option", value_name = "NAME=on|off")]
    options: Vec<String>,
    /// Number of processors
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus: Option<u32>,
    /// Memory: 512M, 2G
    #[arg(short, long, value_parser = size::mib)]
    memory: Option<u64>,
    /// Memory that it may get while it runs: viv resize-memory
    #[arg(long, value_name = "SIZE", value_parser = size::mib)]
    memory_max: Option<u64>,
    /// Most processor time that it may use: 50%, 1.5 processors, or none; changed by viv update
    #[arg(long, value_name = "SHARE", value_parser = size::processors)]
    cpu_limit: Option<u32>,
    /// How much it counts when processors are short: 1 to 10000; 100 is a thread's usual weight
    #[arg(long, value_name = "N", value_parser = size::weight)]
    cpu_weight: Option<u32>,
    /// Boot this kernel: a bzImage or an ELF file
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Its initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Its command line; without --kernel, words added to the image's
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Option<String>,
    /// A disk image or block device; ",ro" lets the guest only read it; more below
    #[arg(long = "disk", value_name = "FILE[,ro,…]")]
    disks: Vec<String>,
    /// Share a directory with the guest at PATH; ":ro" lets it only read. In an image of containers, NAME:PATH is a volume, which
    /// outlives the VM (viv volume); PATH alone a directory that is on the VM's own disk, and in no image that is made of the VM
    #[arg(short = 'v', long = "volume", value_name = "DIR:PATH[:ro]|NAME:PATH[:ro]|PATH")]
    pub(super) shares: Vec<String>,
    /// Network: none; user: one of its own, which reaches the outside, the default with -p; user,host: this host too; or one that
    /// VMs share, by its name: viv network. Several times: a card for each. More below
    #[arg(long, visible_alias = "network", value_name = "NETWORK|user|none[,…]", value_parser = net)]
    net: Vec<NicCreate>,
    /// Publish ports of the guest on this host: [[IP:][HOST]:]GUEST, with /udp for datagrams; without HOST a free port (viv port VM); both may be
    /// ranges, 8000-8009:80-89. They lead to the first card that can
    #[arg(short, long = "publish", value_name = "PORTS")]
    pub(super) ports: Vec<String>,
    /// Publish the ports that its image of containers names on free ports of this host: viv port VM
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// A stream of bytes between guest (/dev/virtio-ports/NAME) and this host (the Unix socket FILE; none: in the VM's directory)
    #[arg(long = "console-port", value_name = "NAME[=FILE]")]
    console_ports: Vec<String>,
    /// A security group that it is in; may be given several times: viv secgroup
    #[arg(long = "secgroup", value_name = "GROUP")]
    groups: Vec<String>,
    /// A label, by which rules of security groups find it; may be given several times
    #[arg(short, long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// What a reset by the guest does; "end" with --rm and in the foreground
    #[arg(long, value_name = "restart|end", value_parser = on_reboot)]
    reboot: Option<OnReboot>,
    /// Go on from where a guest of the same image and machine had booted, which is kept as a template the first time (viv template ls):
    /// auto, images of containers if they can, the usual; always, the default guest too, or not at all: --warm alone; never
    #[arg(long, value_name = "WHEN", default_value = "auto", default_missing_value = "always", num_args = 0..=1)]
    #[arg(require_equals = true, hide_possible_values = true, value_enum)]
    warm: Warm,
    /// Start it again after it has ended: no, on-failure, on-failure:N times, unless-stopped, always; also after a boot of this host
    #[arg(long, value_name = "POLICY", requires = "detach", conflicts_with = "rm")]
    restart: Option<Restart>,
    /// At its end print what it has used and done, on standard error
    #[arg(long, conflicts_with = "detach")]
    pub(super) stats: bool,
    #[command(flatten)]
    pub(super) container: ContainerArgs,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    pub(super) program: ProgramArgs,
    #[command(flatten)]
    cloud_init: CloudInitArgs,
    /// The image: a name in the store, or a disk's file (qcow2, raw, vmdk, vdi, vhd, vhdx), which is only read and booted by the
    /// kernel in it; the default guest if there is none and no kernel. Or a program's file: .wasm, .wat, .jar, .class
    pub(super) image: Option<String>,
    /// The command to run in the guest; without an image, after --
    #[arg(allow_hyphen_values = true, num_args = 0.., value_name = "COMMAND")]
    words: Vec<String>,
    /// The command to run in the guest
    #[arg(last = true, hide = true, value_name = "COMMAND")]
    argv: Vec<String>,
    /// Files of this host that lie in its image.
    #[arg(skip)]
    pub(super) files: Vec<FileSpec>,
}

impl Args {
    /// It runs this.
    pub(super) fn set_command(&mut self, words: Vec<String>) {
        (self.words, self.argv) = (words, Vec::new());
    }

    /// The command: its first word may stand behind the image, or all behind `--`.
    pub(super) fn command(&self) -> Vec<String> {
        self.words.iter().chain(command_of(&self.argv)).cloned().collect()
    }
}

/// Its bounds are the machine's business.
fn cpus(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("write a number: 1 to {CPUS_MAX}"))
}

pub(super) fn accel(text: &str) -> Result<Accel, String> {
    text.parse().map_err(|fault: Fault| fault.fix)
}

/// A network card: `NETWORK[,bps=N][,pps=N][,secgroup=GROUP…][,ip=ADDRESS]`.
pub(crate) fn net(text: &str) -> Result<NicCreate, String> {
    let told = |fault: Fault| format!("{}; {}", fault.message, fault.fix);
    let mut card = NicCreate::default();
    let mut network = text;
    while let Some((before, option)) = network.rsplit_once(',') {
        let Some((name, value)) = option.split_once('=') else { break };
        if name == "secgroup" {
            card.groups.insert(0, value.to_string());
        } else if name == "ip" {
            let address =
                value.parse().map_err(|_| format!("{value:?} is no IPv4 address; write ip=10.1.2.3"))?;
            card.ip = Some(address);
        } else if !set_nic_limit(&mut card.limits, name, value).map_err(told)? {
            return Err(format!(
                "no option of a network is called {name:?}; there are bps=N, pps=N, secgroup=GROUP and ip=ADDRESS"
            ));
        }
        network = before;
    }
    card.net = network.parse().map_err(told)?;
    if card.net == NetKind::None && card != NicCreate::default() {
        return Err("what is plugged into nothing has no limits and no groups; name a network".to_string());
    }
    card.limits.check().map_err(told)?;
    Ok(card)
}

/// Sets a limit of a network card; false if none is called so.
pub(crate) fn set_nic_limit(limits: &mut NicLimits, name: &str, value: &str) -> Result<bool, Fault> {
    let place = match name {
        "bps" => &mut limits.bps,
        "pps" => &mut limits.pps,
        _ => return Ok(false),
    };
    let number = size::exact(value).map_err(|_| {
        let text = format!("a network card's {name} cannot be {value:?}");
        Fault::new(Kind::Usage, text, format!("write a number a second: {name}=5000, or 20M for bytes"))
    })?;
    *place = Some(number);
    Ok(true)
}

fn on_reboot(text: &str) -> Result<OnReboot, String> {
    match text {
        "restart" => Ok(OnReboot::Restart),
        "end" => Ok(OnReboot::End),
        _ => Err("use restart or end".into()),
    }
}

/// Whether the image is a disk's file.
fn is_disk(args: &Args) -> bool {
    args.image.as_deref().is_some_and(is_disk_file)
}

/// What the VM is there for.
pub(super) enum Purpose {
    /// It runs in the background, for this command if there is one.
    Background(Option<Exec>),
    /// It runs this command, or shell, and ends with it.
    Command(Exec),
    /// Its serial console is our standard input and output.
    Console,
}

fn purpose(args: &Args) -> Result<Purpose, Fault> {
    let bare = args.command().is_empty();
    let exec = args.command.to_exec(&args.command())?;
    let own_guest = args.kernel.is_some() && args.image.is_none() || is_disk(args);
    if is_disk(args) && args.kernel.is_none() && (!bare || args.command.interactive || args.command.tty) {
        return Err(Fault::new(
            Kind::Usage,
            "a command takes the guest agent, which comes with viv's own images and not with a disk",
            "run it in the background and log in: viv run -d --net user --name NAME FILE, then viv ssh NAME -- COMMAND",
        ));
    }
    let wants_shell = args.command.interactive || args.command.tty;
    Ok(match () {
        () if args.detach && args.command.tty => {
            return Err(Fault::new(
                Kind::Usage,
                "a VM in the background has no terminal",
                "leave out -d or -t; a shell in it later: viv exec -it VM /bin/sh",
            ));
        }
        () if args.detach => Purpose::Background((!bare).then_some(exec)),
        () if !bare => Purpose::Command(exec),
        () if wants_shell || terminal::is_interactive() && !own_guest => Purpose::Command(exec),
        () => Purpose::Console,
    })
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    if let Some(kind) = program::kind_of(&args)? {
        let interrupt = Interrupt::new(context.client.clone());
        if !java::is_wanted(&args, kind) {
            return program::run(context, &interrupt, args, kind);
        }
        let (args, _passing) = java::in_vm(&context.client, &interrupt, args)?;
        if let Some(status) = interrupt.status() {
            build::note_given_up();
            return Ok(status);
        }
        return computer(context, &interrupt, args);
    }
    if !args.image.as_deref().is_some_and(program::is_elsewhere) {
        no_program(&args)?;
    }
    let interrupt = Interrupt::new(context.client.clone());
    computer(context, &interrupt, args)
}

/// Runs a whole computer.
fn computer(context: &Context, interrupt: &Interrupt, args: Args) -> Result<u8, Fault> {
    let mut purpose = purpose(&args)?;
    let mut ask = to_create(&args, &purpose)?;
    ask.machine().check()?; // before an image is built for it
    let mut process = None;
    let client = &context.client;
    if !is_disk(&args) && (ask.kernel.is_none() || ask.image.is_some()) {
        let name = ask.image.get_or_insert_with(|| DEFAULT.to_string()).clone();
        let name = pull::full_name(&name)?.unwrap_or(name);
        if !is_template(client, &name) {
            let image = build_missing(client, interrupt, &name, &args)?;
            if let Some(kind) = image.as_ref().and_then(|image| image.program) {
                if !Reference::is_one(&name) {
                    let text = format!("the image {name:?} is a program, which is run by its reference");
                    return Err(Fault::new(Kind::Usage, text, "name where it came from: viv images"));
                }
                return program::run(context, interrupt, Args { image: Some(name), ..args }, kind);
            }
            no_program(&args)?;
            process = image.and_then(|image| image.process);
            process = process.map(|process| process.with_entrypoint(args.container.entrypoint.as_deref()));
        }
        if let Some(status) = interrupt.status() {
            return Ok(status);
        }
        if let Some(process) = &process {
            purpose = in_image(purpose, &args, process)?;
            ask = to_create(&args, &purpose)?;
            // As with containers: it may go out.
            if args.net.is_empty() {
                ask.net = Some(NetKind::User { host: false });
            }
        }
        ask.image = Some(name);
    }
    if process.is_none() {
        args.container.check_other()?;
    }
    if client.is_elsewhere() {
        ask.attended_by = None; // our process is not there
    }
    // Other guests boot, unless it is said: when a system of its own is ready is its own business.
    let warm = if args.warm == Warm::Auto && process.is_none() { Warm::Never } else { args.warm };
    interrupt.enter(Stage::Creating);
    let created = create(client, &ask, warm);
    if let Some(status) = interrupt.status() {
        if let Ok(vm) = &created {
            end_vm(client, &vm.id, true);
        }
        return Ok(status);
    }
    let vm = created?;
    let exec = match purpose {
        Purpose::Background(_) => {
            interrupt.enter(Stage::Plain);
            match context.json {
                true => output::json(&vm),
                false => output::print(&format!("{}\n", vm.name)),
            }
            return Ok(0);
        }
        Purpose::Command(exec) => Some(exec),
        Purpose::Console => None,
    };
    interrupt.enter(Stage::Attending { id: vm.id.clone(), remove: args.rm });
    if let Some(status) = interrupt.status() {
        // It came between the two lines above.
        end_vm(client, &vm.id, args.rm);
        return Ok(status);
    }
    tell_of_full_disks(context, &vm);
    let status = match exec {
        Some(exec) => attend_command(context, interrupt, &vm, &exec, args.rm),
        None => attend_console(context, interrupt, &vm),
    };
    if args.stats && status.is_ok() {
        stats::note(context, &vm);
    }
    if status.is_err() {
        interrupt.give_way();
        end_vm(client, &vm.id, args.rm);
    } else if args.rm {
        let _ = client.json::<Vm>(Request::new(Route::VmRemove, &[&vm.id]).query("force=true"));
    }
    status
}

/// Refuses what only a program can be told.
fn no_program(args: &Args) -> Result<(), Fault> {
    match args.program.given() {
        None => Ok(()),
        Some(option) => Err(Fault::new(
            Kind::Usage,
            format!("{option} is for a program, and this is a whole computer"),
            "leave it out, or name a program's file: viv run FILE.wasm",
        )),
    }
}

/// What the VM is there for if its image is one of containers: the program of that.
fn in_image(purpose: Purpose, args: &Args, process: &ImageProcess) -> Result<Purpose, Fault> {
    let bare = args.command().is_empty();
    let exec = || -> Result<Exec, Fault> {
        let mut exec = args.command.to_exec(&args.command())?;
        if bare {
            // Its own, which has a terminal only if that is asked for.
            exec.argv.clear();
            exec.tty = args.command.tty;
        }
        Ok(exec)
    };
    Ok(match purpose {
        Purpose::Background(_) => {
            process.main(exec()?)?; // there is something to run
            Purpose::Background(Some(exec()?))
        }
        Purpose::Command(_) | Purpose::Console => Purpose::Command(process.main(exec()?)?),
    })
}

/// Has it made and started.
fn create(client: &Client, ask: &VmCreate, warm: Warm) -> Result<Vm, Fault> {
    let request = Request::new(Route::VmCreate, &[]).body(ask);
    let query = match warm {
        Warm::Never => return client.json(request),
        Warm::Auto => "warm=auto",
        Warm::Always => "warm=true",
    };
    let image = ask.image.as_deref().unwrap_or(DEFAULT);
    let _waiting = Waiting::new(format!("{image} boots once, for all that start warm"));
    client.json(request.query(query))
}

/// Whether a template is called so: it needs no image.
fn is_template(client: &Client, name: &str) -> bool {
    let found = client.json::<Snapshot>(Request::new(Route::SnapshotGet, &[name]));
    found.is_ok_and(|snapshot| snapshot.template && snapshot.name == name)
}

/// Builds or gets the image if it is not there yet.
fn build_missing(
    client: &Arc<Client>,
    interrupt: &Interrupt,
    name: &str,
    args: &Args,
) -> Result<Option<Image>, Fault> {
    let is_elsewhere = Reference::is_one(name);
    if is_elsewhere && args.container.pull == Pull::Never {
        return client.json(Request::new(Route::ImageGet, &[name])).map(Some);
    }
    let if_missing = !is_elsewhere || args.container.pull == Pull::Missing;
    let missing = ImageBuild { if_missing, insecure: args.container.insecure, ..ImageBuild::default() };
    let built = build::build(client, interrupt, name, missing);
    if interrupt.status().is_some() {
        build::note_given_up();
        return Ok(None);
    }
    built.map(Some)
}

/// Whether a VM goes on from where another had booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Warm {
    /// Images of containers, if they can
    Auto,
    /// Or it is refused
    Always,
    /// It boots
    Never,
}

/// A VM that stands still because the host is full looks like one that hangs: says so, once each time.
fn tell_of_full_disks(context: &Context, vm: &Vm) {
    if vm.machine.disks.iter().all(|disk| disk.read_only) {
        return;
    }
    let (client, id) = (context.client.clone(), vm.id.clone());
    std::thread::spawn(move || {
        let mut told = Vec::new();
        loop {
            std::thread::sleep(LOOK_FOR_ROOM);
            let Ok(vm) = client.json::<Vm>(Request::new(Route::VmGet, &[&id])) else { return };
            for disk in vm.full_disks.iter().filter(|disk| !told.contains(*disk)) {
                let disk = disk.display();
                output::note(&format!(
                    "{} is paused, for the host has no room for {disk}; it goes on when there is",
                    vm.name
                ));
            }
            told = vm.full_disks;
        }
    });
}

fn attend_command(
    context: &Context,
    interrupt: &Interrupt,
    vm: &Vm,
    exec: &Exec,
    remove: bool,
) -> Result<u8, Fault> {
    let stream = match streams::agent(&context.client, vm, AGENT_WAIT_S, AGENT_WAIT_S) {
        Ok(stream) => stream,
        Err(fault) => {
            interrupt.give_way();
            return Err(fault);
        }
    };
    if exec.tty {
        output::note(&format!(
            "{} runs on the {} CPU; its end is the shell's end, or {}",
            vm.name,
            vm.accel,
            terminal::HOW_TO_LEAVE
        ));
    }
    match session::run(stream, exec, interrupt)? {
        Outcome::Exited(status) => {
            end_with(context, vm, status, remove);
            Ok(status)
        }
        Outcome::Left => {
            end_with(context, vm, 0, remove);
            output::note("left; the VM was stopped");
            Ok(0)
        }
        Outcome::Gone => {
            interrupt.give_way();
            Ok(ending::status(&ending::wait(&context.client, &vm.id)?))
        }
    }
}

/// Ends a VM whose command has ended. One with a disk to write to, which stays, is switched off, not killed.
fn end_with(context: &Context, vm: &Vm, status: u8, remove: bool) {
    let stays = |disk: &DiskSpec| !(remove && disk.path.starts_with(&vm.dir));
    let writes = vm.machine.disks.iter().any(|disk| !disk.read_only && stays(disk));
    let ended = match writes {
        true => {
            let stop = VmStop { time_s: Some(STOP_S), status: Some(status) };
            let _waiting = Waiting::new(format!("{} shuts down", vm.name));
            context.client.json::<Vm>(Request::new(Route::VmStop, &[&vm.id]).body(&stop))
        }
        false => {
            let kill = VmKill { status: Some(status) };
            context.client.json::<Vm>(Request::new(Route::VmKill, &[&vm.id]).body(&kill))
        }
    };
    drop(ended); // it has ended by itself, then
}

fn attend_console(context: &Context, interrupt: &Interrupt, vm: &Vm) -> Result<u8, Fault> {
    if std::io::stdin().is_terminal() {
        output::note(&format!("the console of {}; end it with {}", vm.name, terminal::HOW_TO_LEAVE));
    }
    let console = streams::console(&context.client, vm);
    if console.is_ok() {
        serial::follow_size(&context.client, &vm.id);
    }
    match console.map(serial::run) {
        Ok(serial::Outcome::Left) => {
            end_vm(&context.client, &vm.id, false);
            output::note("left; the VM was stopped");
            Ok(0)
        }
        Ok(serial::Outcome::ReaderGone) => {
            end_vm(&context.client, &vm.id, false);
            Ok(READER_GONE)
        }
        Ok(serial::Outcome::Closed) => {
            interrupt.give_way();
            Ok(ending::status(&ending::wait(&context.client, &vm.id)?))
        }
        Err(fault) => {
            interrupt.give_way();
            // A guest that ends at once has a log and an end, but no console any more.
            let vm: Vm = context.client.json(Request::new(Route::VmGet, &[&vm.id]))?;
            if vm.state.is_live() {
                return Err(fault);
            }
            let mut log = context.client.open(Request::new(Route::VmLogs, &[&vm.id]))?;
            let _ = std::io::copy(&mut log, &mut std::io::stdout());
            Ok(ending::status(&vm))
        }
    }
}

pub(super) fn to_create(args: &Args, purpose: &Purpose) -> Result<VmCreate, Fault> {
    let foreground = !matches!(purpose, Purpose::Background(_));
    let command = match purpose {
        Purpose::Background(command) => command.clone(),
        _ => None,
    };
    let ends = foreground || args.rm || command.is_some();
    let disks = args.disks.iter().map(|text| disk(text)).collect::<Result<_, _>>()?;
    let is_volume = |text: &&String| VolumeMount::is_one(text);
    let (volumes, shares): (Vec<&String>, Vec<&String>) =
        args.shares.iter().chain(args.container.shares()).partition(is_volume);
    let shares = shares.into_iter().map(|text| share(text)).collect::<Result<_, _>>()?;
    let ports = args.ports.iter().map(|text| published(text)).collect::<Result<Vec<_>, Fault>>()?.concat();
    let labels = args.labels.iter().map(|text| text.parse()).collect::<Result<_, Fault>>()?;
    let console_ports = args.console_ports.iter().map(|text| console_port(text)).collect::<Result<_, _>>()?;
    let mut soft = SoftSpec::default();
    args.options.iter().try_for_each(|option| soft.set(option))?;
    let file = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
    let is_disk = is_disk(args);
    let image = match &args.image {
        Some(name) if is_disk => Some(cloud::disk_file(name)?),
        other => other.clone(),
    };
    let cloud_init = args.cloud_init.to_spec(is_disk, args.command.user.as_deref())?;
    let (net, nic_limits, nics) = match args.net.as_slice() {
        [] => (None, NicLimits::default(), Vec::new()),
        [card] if card.groups.is_empty() && card.ip.is_none() => {
            (Some(card.net.clone()), card.limits, Vec::new())
        }
        all => (None, NicLimits::default(), all.to_vec()),
    };
    Ok(VmCreate {
        project: None,
        schema: None,
        name: args.name.clone(),
        image,
        cpus: args.cpus,
        memory_mib: args.memory,
        memory_max_mib: args.memory_max,
        cpu_limit_milli: args.cpu_limit.filter(|milli| *milli > 0),
        cpu_weight: args.cpu_weight.filter(|weight| *weight > 0),
        accel: args.accel,
        soft,
        kernel: file(&args.kernel)?,
        initrd: file(&args.initrd)?,
        append: args.container.append(args.append.as_deref())?,
        program: None,
        image_disks: Vec::new(),
        entrypoint: args.container.entrypoint.clone(),
        health: args.health.to_ask(),
        volumes: volumes.into_iter().cloned().collect(),
        files: args.files.clone(),
        publish_all: args.publish_all,
        disks,
        cloud_init,
        shares,
        net,
        nic_limits,
        nics,
        ports,
        console_ports,
        groups: args.groups.clone(),
        labels,
        start: true,
        remove: args.rm,
        on_reboot: args.reboot.unwrap_or(if ends { OnReboot::End } else { OnReboot::Restart }),
        restart: args.restart.unwrap_or_default(),
        attended_by: foreground.then(this_process).transpose()?,
        command,
    })
}

/// This command, with whose end a VM in the foreground ends.
fn this_process() -> Result<Process, Fault> {
    Process::current().map_err(|error| {
        let text = format!("cannot see when this command was started: {error}");
        Fault::new(Kind::Error, text, "see that there is memory for it, or start the VM with -d")
    })
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Fault> {
    std::path::absolute(path).map_err(|error| {
        Fault::new(
            Kind::Usage,
            format!("{:?} names no file: {error}", path.display().to_string()),
            "name the file: --kernel FILE, --initrd FILE, --disk FILE, -v DIR:PATH",
        )
    })
}

/// `FILE[,OPTION…]`. A comma that no option follows belongs to the file's name.
pub(crate) fn disk(text: &str) -> Result<DiskSpec, Fault> {
    let mut spec = DiskSpec::default();
    let mut path = text;
    while let Some((before, option)) = path.rsplit_once(',') {
        match option.split_once('=') {
            None if option == "ro" => spec.read_only = true,
            None if option == "rw" => spec.read_only = false,
            Some(("serial", serial)) => spec.serial = Some(serial.to_string()),
            Some(("on-full", what)) => spec.on_full = what.parse()?,
            Some(("format", name)) => spec.format = Some(name.parse()?),
            Some((name, value)) if set_limit(&mut spec.limits, name, value)? => {}
            Some(("allow", file)) => spec.allow.insert(0, absolute(Path::new(file))?),
            _ => break,
        }
        path = before;
    }
    let spec = DiskSpec { path: absolute(Path::new(path))?, ..spec };
    spec.check()?;
    Ok(spec)
}

/// Sets a limit of a disk; false if none is called so.
pub(crate) fn set_limit(limits: &mut DiskLimits, name: &str, value: &str) -> Result<bool, Fault> {
    let place = match name {
        "iops" => &mut limits.iops,
        "bps" => &mut limits.bps,
        "iops-burst" => &mut limits.iops_burst,
        "bps-burst" => &mut limits.bps_burst,
        _ => return Ok(false),
    };
    let number = size::exact(value).map_err(|_| {
        let text = format!("a disk's {name} cannot be {value:?}");
        Fault::new(Kind::Usage, text, format!("write a number a second: {name}=500, or 20M for bytes"))
    })?;
    *place = Some(number);
    Ok(true)
}

/// `DIR:PATH`, `DIR:PATH:ro` or `DIR:PATH:rw`.
pub(crate) fn share(text: &str) -> Result<ShareSpec, Fault> {
    let share: ShareSpec = text.parse()?;
    Ok(ShareSpec { path: absolute(&share.path)?, ..share })
}

fn console_port(text: &str) -> Result<ConsolePortSpec, Fault> {
    let port: ConsolePortSpec = text.parse()?;
    Ok(ConsolePortSpec { path: port.path.as_deref().map(absolute).transpose()?, ..port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_model::{DiskFormat, OnFull};

    #[test]
    fn disks_are_writable_unless_told() {
        assert!(!disk("/a,b").unwrap().read_only);
        assert_eq!(disk("/a,b").unwrap().path, Path::new("/a,b"));
        assert_eq!(
            disk("/a,ro").unwrap(),
            DiskSpec { path: "/a".into(), read_only: true, ..DiskSpec::default() }
        );
        assert!(!disk("/a,rw").unwrap().read_only);
        let all = disk("/a,b,ro,format=qcow2,allow=/c,allow=/d").unwrap();
        assert_eq!(
            (all.path.to_str(), all.read_only, all.format),
            (Some("/a,b"), true, Some(DiskFormat::Qcow2))
        );
        assert_eq!(all.allow, [Path::new("/c"), Path::new("/d")]);
        let limits = disk("/a,iops=500,bps=20M,iops-burst=9,bps-burst=1G").unwrap().limits;
        let expected = DiskLimits {
            iops: Some(500),
            bps: Some(20 << 20),
            iops_burst: Some(9),
            bps_burst: Some(1 << 30),
        };
        assert_eq!(limits, expected);
        assert_eq!(disk("/a,on-full=error").unwrap().on_full, OnFull::Error);
        assert_eq!(disk("/a,on-full=maybe").unwrap_err().kind, Kind::Usage);
        assert_eq!(disk("/a,iops=many").unwrap_err().kind, Kind::Usage);
        assert_eq!(disk("/a,format=floppy").unwrap_err().kind, Kind::Usage);
        assert_eq!(disk("/a,size=3").unwrap().path, Path::new("/a,size=3"));
        assert_eq!(disk("").unwrap_err().kind, Kind::Usage);
        assert!(disk("b").unwrap().path.is_absolute());
    }
}
