//! `viv ssh`: the user's own `ssh`, into a VM, through its network: with the key that the guest knows, and no published port.
use super::Context;
use super::program;
use crate::progress::Waiting;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::vm::Vm;
use viv_host::Places;
use viv_model::{Fault, Kind, NetKind};

/// The port of sshd.
const SSH: u16 = 22;
/// How long a guest may take to boot until its sshd answers, seconds: a full system without KVM takes minutes.
const BOOT_WAIT_S: u64 = 900;
/// How long one attempt may take, and how long to wait between two.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(300);
/// How every SSH server begins (RFC 4253 §4.2).
const BANNER: &[u8] = b"SSH-";

#[derive(clap::Args, Debug)]
#[command(after_help = "viv ssh web                      a shell\n\
                  viv ssh root@web -- uname -a     a command, as another user\n\
                  viv ssh web -L 8080:localhost:80 -- -N    what stands before -- and after the VM are options of ssh\n\n\
                  It needs a network of ours (--net user, or --net NETWORK) and an sshd that lets a key in: this user's own \
                  (made once, and given to cloud-init of each VM), or any that ssh finds by itself.")]
pub(crate) struct Args {
    /// How long it may take until the guest answers, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = BOOT_WAIT_S)]
    wait: u64,
    /// The port of its sshd
    #[arg(long, value_name = "PORT", default_value_t = SSH, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The VM, with a user before it if need be
    #[arg(value_name = "[USER@]VM")]
    vm: String,
    /// Options of ssh, then -- and the command; a shell if there is none
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION|COMMAND")]
    words: Vec<OsString>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Connect {
    /// The VM
    vm: String,
    /// The port
    port: u16,
}

/// Connects a port of a VM with our standard input and output, until both sides have finished.
pub(crate) fn connect(context: &Context, args: Connect) -> Result<u8, Fault> {
    let stream = open(context, &args.vm, args.port)?;
    let broken = |error: io::Error| {
        let text = format!("the connection to VM {:?} broke off: {error}", args.vm);
        Fault::new(Kind::Error, text, "see that it runs: viv ps")
    };
    let mut to = stream.try_clone().map_err(broken)?;
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut from = stream;
    let mut out = io::stdout().lock();
    let mut piece = [0; 16 << 10];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(0),
            Ok(count) => {
                let piece = piece.get(..count).unwrap_or_default();
                if out.write_all(piece).and_then(|()| out.flush()).is_err() {
                    return Ok(0); // nobody listens any more
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
}

fn open(context: &Context, vm: &str, port: u16) -> Result<UnixStream, Fault> {
    context.client.stream(Request::new(Route::VmConnect, &[vm, &port.to_string()]))
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let (user, name) = match args.vm.rsplit_once('@') {
        Some((user, name)) => (Some(user), name),
        None => (None, args.vm.as_str()),
    };
    if context.client.is_elsewhere() {
        return Err(Fault::new(
            Kind::Usage,
            "viv ssh logs in with the key of the VM's own host, which is not here",
            "run it on that host; or, with a key of yours in the VM: ssh -o ProxyCommand='viv connect VM 22' USER@VM",
        ));
    }
    let vm: Vm = context.client.json(Request::new(Route::VmGet, &[name]))?;
    program::refuse(&vm, "has no SSH server", "see what it does: viv logs, viv stats")?;
    let user = user.or(vm.spec.cloud_init.user.as_deref()).map(plain_user).transpose()?;
    wait(context, &vm, args.port, Duration::from_secs(args.wait))?;
    let program = std::env::current_exe().map_err(|error| cannot_run("viv", &error))?;
    let known = vm.dir.join("known_hosts");
    let option = |name: &str, value: &str| ["-o".to_string(), format!("{name}={value}")];
    let mut ssh = Command::new("ssh");
    ssh.args(option(
        "ProxyCommand",
        &format!("{} connect {} {}", quoted(&program.to_string_lossy()), vm.id, args.port),
    ));
    // Its key is taken when it is first seen, and known as this VM's for as long as there is this VM.
    ssh.args(option("HostKeyAlias", &format!("viv-{}", vm.id)));
    ssh.args(option("UserKnownHostsFile", &config_word(&known.to_string_lossy())));
    ssh.args(option("StrictHostKeyChecking", "accept-new"));
    ssh.args(option("LogLevel", "ERROR")); // that a key was taken is no news; -v says more all the same
    if let Some(key) = viv_host::private_key(&Places::find()?) {
        ssh.args(option("IdentityFile", &config_word(&key.to_string_lossy())));
    }
    if let Some(user) = user {
        ssh.arg("-l").arg(user);
    }
    let (options, command) = match args.words.iter().position(|word| word == "--") {
        Some(at) => (args.words.get(..at).unwrap_or_default(), args.words.get(at + 1..).unwrap_or_default()),
        None if args.words.first().is_some_and(|word| !word.as_encoded_bytes().starts_with(b"-")) => {
            (&[][..], args.words.as_slice())
        }
        None => (args.words.as_slice(), &[][..]),
    };
    ssh.args(options).arg("--").arg(&vm.name).args(command);
    Err(cannot_run("ssh", &ssh.exec()))
}

/// As `ssh` takes a user, who may come from a snapshot's file.
fn plain_user(user: &str) -> Result<&str, Fault> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    match !user.is_empty() && !user.starts_with('-') && user.chars().all(plain) {
        true => Ok(user),
        false => Err(Fault::new(
            Kind::Usage,
            format!("no user of a guest is called {user:?}"),
            "write viv ssh USER@VM, the user with letters, digits, _, . and -",
        )),
    }
}

/// A word for the shell that runs a ProxyCommand; `%` is ssh's own sign there (ssh_config(5)).
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''").replace('%', "%%"))
}

/// A word of ssh's configuration, where spaces divide and `%` and `$` mean something (ssh_config(5)).
fn config_word(word: &str) -> String {
    format!("\"{}\"", word.replace('%', "%%"))
}

fn cannot_run(program: &str, error: &io::Error) -> Fault {
    let text = format!("cannot run {program}: {error}");
    match error.kind() {
        ErrorKind::NotFound => Fault::new(Kind::Error, text, "install it: apt install openssh-client"),
        _ => Fault::new(Kind::Error, text, "see that it is a program that you may run"),
    }
}

/// Waits until an SSH server answers there, as long as the VM runs.
fn wait(context: &Context, vm: &Vm, port: u16, limit: Duration) -> Result<(), Fault> {
    let begin = Instant::now();
    let mut waiting = None;
    loop {
        let said = begins(open(context, &vm.id, port)?);
        if said.starts_with(BANNER) {
            return Ok(());
        }
        if !said.is_empty() {
            let text = format!("what answers at port {port} of VM {:?} is no SSH server", vm.name);
            return Err(Fault::new(Kind::Error, text, "name the port of its sshd: viv ssh --port PORT VM"));
        }
        if begin.elapsed() >= limit {
            return Err(no_answer(vm, port, begin.elapsed()));
        }
        waiting.get_or_insert_with(|| Waiting::new(format!("{} boots ({} CPU)", vm.name, vm.accel)));
        std::thread::sleep(RETRY);
    }
}

/// The first bytes of a server, none if it does not answer.
fn begins(mut stream: UnixStream) -> Vec<u8> {
    let begin = Instant::now();
    let mut said = Vec::new();
    let mut byte = [0];
    while said.len() < BANNER.len() {
        let left = ATTEMPT_LIMIT.saturating_sub(begin.elapsed());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            break;
        }
        match stream.read(&mut byte) {
            Ok(1) => said.extend(byte),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    said
}

fn no_answer(vm: &Vm, port: u16, waited: Duration) -> Fault {
    let named = vm.machine.nics.iter().any(|nic| matches!(nic.net, NetKind::Named(_)));
    let groups = if vm.groups.is_empty() || !named {
        ""
    } else {
        ", that its security groups let tcp/22 in (viv secgroup)"
    };
    Fault::new(
        Kind::Error,
        format!("no SSH server answers at port {port} of VM {:?} after {} s", vm.name, waited.as_secs()),
        format!(
            "see that its guest has one and has an address{groups}: viv logs {0}, viv console {0}",
            vm.name
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_and_no_name_says_more_than_it_is() {
        assert_eq!(quoted("/it's/100%"), r"'/it'\''s/100%%'");
        assert_eq!(config_word("/a b/%d"), "\"/a b/%%d\"");
        for wrong in ["", "-oProxyCommand=x", "a b", "a;b", "$HOME"] {
            assert_eq!(plain_user(wrong).unwrap_err().kind, Kind::Usage, "{wrong:?}");
        }
        assert_eq!(plain_user("debian").unwrap(), "debian");
    }
}
