//! Process 1 of the default guest: set up, serve commands, hold a shell on the console, switch off.
use crate::card::Card;
use crate::hurry::Hurry;
use crate::power::{self, Last};
use crate::setup::{self, Wishes};
use crate::{arrivals, children, exec, layers, root, say, serve, shares, stage, sys, volumes};
use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;

/// Signals that process 1 acts upon: children, and what `poweroff`, `halt` and `reboot` of small user lands send.
const SIGNALS: [i32; 6] =
    [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGPWR];

/// Never returns while the guest lives.
pub(crate) fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        say(format_args!("the agent failed, switching the guest off: {info}"));
        power::end_now(Last::PowerOff);
    }));
    sys::block_signals(&SIGNALS);
    sys::ignore(libc::SIGPIPE);
    // Ctrl-Alt-Del becomes SIGINT to us.
    let _ = sys::reboot(libc::LINUX_REBOOT_CMD_CAD_OFF);
    setup::mount_all();
    let wishes = Wishes::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    setup::load_modules();
    // A disk that becomes the root may not have the driver for directories that come later.
    if wishes.root.is_some() || !wishes.shares.is_empty() {
        shares::load_driver();
    }
    let hurry = match file_systems(&wishes) {
        Ok(hurry) => hurry,
        Err(text) => {
            say(format_args!("{text}"));
            power::end_now(Last::PowerOff);
            return ExitCode::FAILURE;
        }
    };
    setup::name_guest(wishes.hostname.as_deref());
    if let Err(error) = Card::called("lo").and_then(|lo| lo.up()) {
        say(format_args!("cannot set the loopback network up: {error}"));
    }
    let (send, ends) = mpsc::channel();
    arrivals::keep_up();
    drop(hurry);
    power::set_sender(send.clone());
    power::set_stop_signal(wishes.stop_signal);
    power::watch_button();
    if let Err(error) = serve::start() {
        say(format_args!("no commands over vsock: {error}"));
    }
    let job = match &wishes.task {
        Some(task) => Some(Job { command: task_command(task), task: true }),
        // The image's program comes from the host, over vsock.
        None if root::is_apart() => None,
        None => Some(Job { command: shell_command(), task: false }),
    };
    let started = job.map_or(Ok(()), |job| job.start(send));
    let last = match started {
        Ok(()) => wait(&ends),
        Err(error) => {
            say(format_args!("cannot start the guest's first program: {error}"));
            Last::PowerOff
        }
    };
    power::end(last);
    ExitCode::SUCCESS
}

/// Mounts what the guest's programs see: its disk or its image, and what lies above that. Without one of these, the guest would be another
/// one. What follows may hurry.
fn file_systems(wishes: &Wishes) -> Result<Hurry, String> {
    if let Some(device) = &wishes.root {
        stage::enter(device, wishes).map_err(|error| format!("cannot start the disk {device}: {error}"))?;
        setup::mount_all();
    }
    let hurry = Hurry::begin();
    let told = |error| format!("cannot start the image: {error}");
    if let (Some(lower), Some(upper)) = (&wishes.lower, &wishes.upper) {
        layers::enter(lower, upper, wishes).map_err(told)?;
        volumes::mount(wishes).map_err(told)?;
    }
    shares::mount_in_guest(&wishes.shares);
    if root::is_apart() && wishes.read_only {
        layers::seal().map_err(|error| {
            format!("cannot start the image: its files cannot be made read-only: {error}")
        })?;
    }
    Ok(hurry)
}

/// Buries children and obeys signals until something asks for the end.
fn wait(ends: &mpsc::Receiver<Last>) -> Last {
    loop {
        if let Ok(last) = ends.try_recv() {
            return last;
        }
        match sys::next_signal(&SIGNALS, 1000) {
            Some(libc::SIGCHLD) => children::bury(),
            Some(libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGPWR) => return Last::PowerOff,
            Some(libc::SIGTERM | libc::SIGINT) => return Last::Reboot,
            _ => children::bury(),
        }
    }
}

/// What the guest exists for.
struct Job {
    command: std::io::Result<Command>,
    task: bool,
}

impl Job {
    /// Starts it; when it ends, so does the guest.
    fn start(self, ends: mpsc::Sender<Last>) -> std::io::Result<()> {
        let (_, event) = children::spawn(&mut self.command?)?;
        std::thread::spawn(move || {
            let watch = sys::Watch { fd: std::os::fd::AsRawFd::as_raw_fd(&event), read: true, write: false };
            let watches = [watch];
            let status = loop {
                let _ = sys::poll(&watches, -1);
                if let Some(status) = children::status(&event) {
                    break status;
                }
            };
            if self.task {
                // On a line of its own, whatever the task wrote before.
                use std::io::Write;
                let _ = writeln!(std::io::stdout(), "\nviv-task: exit {status}");
            }
            let _ = ends.send(Last::PowerOff);
            // Wakes the main thread out of its wait for signals.
            let _ = sys::kill(1, libc::SIGCHLD);
        });
        Ok(())
    }
}

/// A login shell that has the console for itself.
fn shell_command() -> std::io::Result<Command> {
    use std::os::unix::process::CommandExt;
    let console = setup::open_console()?;
    // A serial port knows no size, and a shell that does not know it asks: noise for whoever drives it by script.
    let _ = sys::resize(std::os::fd::AsFd::as_fd(&console), 24, 80);
    let mut command = Command::new("/bin/sh");
    command.arg0("-sh").env_clear().envs(exec::default_env(&crate::users::User::root()));
    command.env("TERM", "linux");
    command.stdin(console.try_clone()?).stdout(console.try_clone()?).stderr(console);
    sys::as_session(&mut command, true, crate::users::User::root().identity("/root"))?;
    Ok(command)
}

/// The only program, without a terminal.
fn task_command(task: &str) -> std::io::Result<Command> {
    let console = setup::open_console()?;
    let mut command = Command::new(task);
    command.env_clear().envs(exec::default_env(&crate::users::User::root()));
    command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
    sys::as_session(&mut command, false, crate::users::User::root().identity("/"))?;
    Ok(command)
}
