//! `viv run FILE` where the file is a program: it gets our standard streams, and ends with its own status.
use super::Context;
use super::publish::published;
use super::run::{Args, Purpose, absolute, to_create};
use super::stats;
use crate::interrupt::{Interrupt, Stage, end_vm};
use crate::session::{self, Outcome};
use crate::{ending, output, size, streams, terminal};
use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use viv_api::agent::Exec;
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::vm::{OnReboot, Vm, VmCreate};
use viv_java::Doors;
use viv_model::{CHAIN_PORT, Fault, GuestKind, Kind, PortSpec, ProgramSpec, ShareSpec};
use viv_oci::Reference;

/// Bytes of a file that tell what it is.
const FIRST: u64 = 8;
/// How long the process of a program elsewhere may take to answer, seconds.
const ANSWER_S: u64 = 30;

/// What only a program can be told.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct ProgramArgs {
    /// What FILE is: system (a disk), wasm, evm or jvm; found out if not given
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<GuestKind>,
    /// Of a program: call this function of it, with the words as its values
    #[arg(long, value_name = "FUNCTION")]
    invoke: Option<String>,
    /// Of a program: steps that it may take, about one for each instruction; then it ends with status 137
    #[arg(long, value_name = "N")]
    fuel: Option<u64>,
    /// Of a program: how long it may run (90s, 500ms); then it ends with status 124
    #[arg(long, value_name = "TIME", value_parser = time)]
    time: Option<Duration>,
    /// Of a program: run it the same each time, with a clock and random numbers of its own
    #[arg(long)]
    deterministic: bool,
    /// Of a program: it is never saved while it runs (snapshot, fork), and faster for it
    #[arg(long)]
    no_snapshots: bool,
    /// Of a Java program: tell its machine this, -Xss2m or -Dname=value; may be given several times
    #[arg(long = "java-option", value_name = "OPTION", allow_hyphen_values = true)]
    pub(super) java_options: Vec<String>,
    /// Of a Java program: process, HotSpot of this host in a sandbox; or vm, a virtual machine with a Java of its own, which can be
    /// saved, restored and forked while it runs
    #[arg(
        long,
        value_name = "process|vm",
        default_value = "process",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub(super) isolation: Isolation,
    /// With --isolation vm: an image of containers that has a java, instead of "java", which is built from Debian's packages when it is
    /// first wanted
    #[arg(long = "image", value_name = "IMAGE")]
    pub(super) java_image: Option<String>,
    /// Of a Java program: let debuggers (JDWP) in at this port of this host, 5005 if not given, at 127.0.0.1 unless an address is given.
    /// Whoever gets there can do everything with the program
    #[arg(long, value_name = "[ADDRESS:]PORT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    debug: Option<String>,
    /// Of a Java program: let monitors (JMX) in, 9010 if not given; else as --debug
    #[arg(long, value_name = "[ADDRESS:]PORT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    jmx: Option<String>,
    /// With --deterministic: other random numbers
    #[arg(long, value_name = "N", requires = "deterministic")]
    seed: Option<u64>,
}

/// What a Java program runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Isolation {
    /// A process of the host.
    #[default]
    Process,
    /// A virtual machine.
    Vm,
}

impl ProgramArgs {
    /// How debuggers and monitors get in, where the program listens at this address of its own.
    pub(super) fn doors(&self, inside: Ipv4Addr) -> Result<Doors, Fault> {
        Doors::new(self.debug.as_deref(), self.jmx.as_deref(), inside)
    }

    /// The first option that was given and that only a process can keep.
    pub(super) fn only_in_a_process(&self) -> Option<&'static str> {
        let mine = ["--java-option", "--isolation", "--image", "--debug", "--jmx"];
        self.given_all()
            .into_iter()
            .find_map(|(name, given)| (given && !mine.contains(&name)).then_some(name))
    }

    /// The first option that was given and means nothing to a whole computer.
    pub(crate) fn given(&self) -> Option<&'static str> {
        self.given_all().into_iter().find_map(|(name, given)| given.then_some(name))
    }

    fn given_all(&self) -> [(&'static str, bool); 10] {
        [
            ("--invoke", self.invoke.is_some()),
            ("--fuel", self.fuel.is_some()),
            ("--time", self.time.is_some()),
            ("--deterministic", self.deterministic),
            ("--no-snapshots", self.no_snapshots),
            ("--java-option", !self.java_options.is_empty()),
            ("--isolation", self.isolation != Isolation::Process),
            ("--image", self.java_image.is_some()),
            ("--debug", self.debug.is_some()),
            ("--jmx", self.jmx.is_some()),
        ]
    }
}

fn time(text: &str) -> Result<Duration, String> {
    match text.strip_suffix("ms").map(str::parse) {
        Some(Ok(ms)) => Ok(Duration::from_millis(ms)),
        Some(Err(_)) => Err("write it as 90s, 2m or 500ms".into()),
        None => size::seconds(text).map(Duration::from_secs),
    }
}

/// Whether this is no file, but the reference of an image.
pub(crate) fn is_elsewhere(name: &str) -> bool {
    Reference::is_one(name) && !Path::new(name).exists()
}

/// What program the file is that was named, if it is one.
pub(crate) fn kind_of(args: &Args) -> Result<Option<GuestKind>, Fault> {
    let Some(name) = &args.image else {
        return match args.program.kind.filter(|kind| kind.is_program()) {
            Some(kind) if !kind.has_file() => Ok(Some(kind)),
            Some(kind) => Err(Fault::new(
                Kind::Usage,
                format!("{} is to run, and no file is named", kind.called()),
                "name it: viv run FILE",
            )),
            None => Ok(None),
        };
    };
    if args.program.kind == Some(GuestKind::System) {
        return Ok(None);
    }
    if let Some(kind) = args.program.kind {
        // What is elsewhere is got first.
        return Ok(Some(kind).filter(|_| !is_elsewhere(name)));
    }
    let mut first = Vec::new();
    if let Ok(file) = File::open(name) {
        let _ = file.take(FIRST).read_to_end(&mut first); // its engine says what is wrong with it
    }
    Ok(GuestKind::of_file(name, &first))
}

/// What is asked of the service.
fn ask(mut args: Args, kind: GuestKind) -> Result<VmCreate, Fault> {
    args.container.check_other()?;
    let file = args.image.take().map(PathBuf::from);
    let ports = std::mem::take(&mut args.ports);
    let port = |text: &String| match kind {
        GuestKind::Evm => PortSpec::of_one(text, CHAIN_PORT).map(|port| vec![port]),
        _ => published(text),
    };
    let mut ports = ports.iter().map(port).collect::<Result<Vec<_>, Fault>>()?.concat();
    let doors = args.program.doors(Ipv4Addr::LOCALHOST)?;
    if kind != GuestKind::Jvm {
        let only = [
            ("--debug or --jmx", doors != Doors::default()),
            ("--isolation vm", args.program.isolation == Isolation::Vm),
        ];
        if let Some((option, _)) = only.into_iter().find(|(_, given)| *given) {
            let text = format!("{option} is for Java programs, and this is {}", kind.called());
            return Err(Fault::new(Kind::Usage, text, "leave it out, or name a .jar or .class file"));
        }
    }
    if args.program.java_image.is_some() {
        let text = "--image is the image of a virtual machine, and the program is to run in a process";
        return Err(Fault::new(Kind::Usage, text, "add --isolation vm, or leave it out"));
    }
    ports.extend(doors.ports);
    let words = args.command();
    let command = args.command.to_exec(&["program".to_string()])?;
    if command.cwd.is_some() || command.user.is_some() {
        return Err(Fault::new(
            Kind::Usage,
            format!("{} has no users and no working directory", kind.called()),
            "leave out -u and -w; it knows a directory as /: -v DIR:/",
        ));
    }
    let variables = command.env.into_iter().filter(|(name, _)| name != "TERM" || !command.tty);
    let options = &args.program;
    let program = ProgramSpec {
        kind,
        file: match file {
            Some(name) if name.to_str().is_some_and(is_elsewhere) => name,
            Some(file) => absolute(&file)?,
            None => PathBuf::new(),
        },
        args: words,
        env: variables.collect(),
        invoke: options.invoke.clone(),
        options: doors.options.into_iter().chain(options.java_options.clone()).collect(),
        tty: command.tty || terminal::is_interactive(),
        fuel: options.fuel,
        time_ms: options.time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        deterministic: options.deterministic,
        no_snapshots: options.no_snapshots,
        seed: options.seed.unwrap_or_default(),
    };
    program.check()?;
    let shares = [std::mem::take(&mut args.shares), args.container.take_shares()].concat();
    let shares = shares.iter().map(|text| {
        let share = ShareSpec::of_program(text)?;
        Ok(ShareSpec { path: absolute(&share.path)?, ..share })
    });
    let shares = shares.collect::<Result<_, Fault>>()?;
    let purpose = if args.detach { Purpose::Background(None) } else { Purpose::Console };
    Ok(VmCreate {
        program: Some(program),
        ports,
        shares,
        on_reboot: OnReboot::default(),
        ..to_create(&args, &purpose)?
    })
}

pub(crate) fn run(
    context: &Context,
    interrupt: &Interrupt,
    args: Args,
    kind: GuestKind,
) -> Result<u8, Fault> {
    let client = &context.client;
    let is_here = args.image.as_deref().is_some_and(|name| !is_elsewhere(name));
    if client.is_elsewhere() && is_here {
        return Err(Fault::new(
            Kind::Usage,
            "the program's file is on this host, and the VM would be on another one",
            "copy the file there, and describe the VM by a document: viv create -f",
        ));
    }
    let (detach, remove, show_stats) = (args.detach, args.rm, args.stats);
    let ask = ask(args, kind)?;
    interrupt.enter(Stage::Creating);
    let created = client.json::<Vm>(Request::new(Route::VmCreate, &[]).body(&ask));
    if let Some(status) = interrupt.status() {
        if let Ok(vm) = &created {
            end_vm(client, &vm.id, true);
        }
        return Ok(status);
    }
    let vm = created?;
    if detach {
        interrupt.enter(Stage::Plain);
        match context.json {
            true => output::json(&vm),
            false => output::print(&format!("{}\n", vm.name)),
        }
        return Ok(0);
    }
    interrupt.enter(Stage::Attending { id: vm.id.clone(), remove });
    let status = attend(client, interrupt, &vm);
    if show_stats && status.is_ok() {
        stats::note(context, &vm);
    }
    if status.is_err() {
        interrupt.give_way();
        end_vm(client, &vm.id, remove);
    } else if remove {
        let _ = client.json::<Vm>(Request::new(Route::VmRemove, &[&vm.id]).query("force=true"));
    }
    status
}

/// Gives it our streams, until it ends.
fn attend(client: &Client, interrupt: &Interrupt, vm: &Vm) -> Result<u8, Fault> {
    let stream = match streams::direct_agent(vm) {
        Ok(stream) => stream,
        Err(_) => streams::agent(client, vm, ANSWER_S, ANSWER_S)?,
    };
    match session::run(stream, &Exec::new([""; 0]), interrupt)? {
        Outcome::Exited(status) => Ok(status),
        Outcome::Left | Outcome::Gone => {
            interrupt.give_way();
            Ok(ending::status(&ending::wait(client, &vm.id)?))
        }
    }
}

/// Refuses to use a whole computer's verb with a program.
pub(crate) fn refuse(vm: &Vm, what: &str, fix: &str) -> Result<(), Fault> {
    if !vm.kind.is_program() {
        return Ok(());
    }
    Err(Fault::new(Kind::Conflict, format!("VM {:?} is {}: it {what}", vm.name, vm.kind.called()), fix))
}
