//! Ctrl-C, SIGTERM and SIGHUP at every stage of a command: nothing is left behind.
use crate::terminal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use viv_api::agent::{Input, Message};
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::operation::Operation;
use viv_api::vm::VmKill;

/// How long a guest's command may take to end after a signal, before its VM is killed.
const COMMAND_GRACE: Duration = Duration::from_secs(5);
/// How long the service may take to give up a long work.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// How long ending a VM may take, at most.
const GIVE_WAY_LIMIT: Duration = Duration::from_secs(30);

/// Where the command is, and so what a signal has to undo.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// Nothing to undo.
    Plain,
    /// A long work with this number, which is given up.
    Working { operation: u64 },
    /// A VM is being created: what is to be undone is known only afterwards.
    Creating,
    /// A VM that ends with this command.
    Attending { id: String, remove: bool },
}

struct Inner {
    stage: Stage,
    /// Where signals for the guest's command go.
    session: Option<Session>,
    /// The signal that came first.
    signal: Option<i32>,
}

struct Session {
    agent: UnixStream,
    /// It has the terminal: its size is passed on, and signals are not for the command.
    tty: bool,
}

/// Takes signals from when it is made.
#[derive(Clone)]
pub(crate) struct Interrupt {
    inner: Arc<Mutex<Inner>>,
}

impl Interrupt {
    pub(crate) fn new(client: Arc<Client>) -> Interrupt {
        let inner = Arc::new(Mutex::new(Inner { stage: Stage::Plain, session: None, signal: None }));
        let interrupt = Interrupt { inner };
        let shared = interrupt.clone();
        if let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH]) {
            thread::spawn(move || {
                for signal in signals.forever() {
                    match signal {
                        SIGWINCH => shared.resize(),
                        _ => shared.interrupt(&client, signal),
                    }
                }
            });
        }
        interrupt
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(&self, stage: Stage) {
        self.lock().stage = stage;
    }

    /// Signals go to the guest's command from now on; `None`: not any more.
    pub(crate) fn set_session(&self, agent: Option<&UnixStream>, tty: bool) {
        let agent = agent.and_then(|agent| agent.try_clone().ok());
        self.lock().session = agent.map(|agent| Session { agent, tty });
    }

    /// The exit status of a command that was interrupted.
    pub(crate) fn status(&self) -> Option<u8> {
        self.lock().signal.map(exit_status)
    }

    /// If a signal has come, it is now the signal's thread that ends the VM, and then the command.
    pub(crate) fn give_way(&self) {
        if self.lock().signal.is_some() {
            thread::sleep(GIVE_WAY_LIMIT);
        }
    }

    fn send(&self, message: &Input) -> bool {
        use std::io::Write;
        let Some(mut agent) = self.lock().session.as_ref().and_then(|session| session.agent.try_clone().ok())
        else {
            return false;
        };
        agent.write_all(&message.to_bytes()).is_ok()
    }

    fn resize(&self) {
        let tty = self.lock().session.as_ref().is_some_and(|session| session.tty);
        if let (true, Some((rows, cols))) = (tty, terminal::size()) {
            self.send(&Input::Resize { rows, cols });
        }
    }

    fn interrupt(&self, client: &Arc<Client>, signal: i32) {
        let (stage, first, tty) = {
            let mut inner = self.lock();
            let first = inner.signal.is_none();
            inner.signal.get_or_insert(signal);
            (inner.stage.clone(), first, inner.session.as_ref().map(|session| session.tty))
        };
        match stage {
            Stage::Plain => match tty {
                // exec: the command is the guest's; it gets the signal, and we its status.
                Some(false) if first && self.send(&Input::Signal(signal as u8)) => {}
                _ => leave(signal),
            },
            Stage::Working { operation } if first => {
                let client = client.clone();
                thread::spawn(move || {
                    let number = operation.to_string();
                    let _ = client.json::<Operation>(Request::new(Route::OperationCancel, &[&number]));
                    thread::sleep(CANCEL_LIMIT);
                    leave(signal);
                });
            }
            Stage::Creating if first => {} // a moment: the command looks for it then
            Stage::Working { .. } | Stage::Creating => leave(signal),
            Stage::Attending { id, remove } => {
                let forwarded = first && tty == Some(false) && self.send(&Input::Signal(signal as u8));
                let client = client.clone();
                // In a thread of its own, so that a second signal is heard.
                thread::spawn(move || {
                    if forwarded {
                        thread::sleep(COMMAND_GRACE);
                    }
                    if first || tty == Some(false) {
                        end_vm(&client, &id, remove);
                    }
                    leave(signal);
                });
            }
        }
    }
}

/// Ends a VM, whatever it does, and forgets it if it was to be forgotten.
pub(crate) fn end_vm(client: &Client, id: &str, remove: bool) {
    let ended = client.json::<viv_api::vm::Vm>(Request::new(Route::VmKill, &[id]).body(&VmKill::default()));
    if remove {
        let _ = client.json::<viv_api::vm::Vm>(Request::new(Route::VmRemove, &[id]).query("force=true"));
    }
    drop(ended); // it had ended already, then
}

fn exit_status(signal: i32) -> u8 {
    u8::try_from(signal).map_or(1, |number| number.saturating_add(128))
}

/// Ends the command as a shell expects of a signal.
fn leave(signal: i32) -> ! {
    terminal::restore();
    std::process::exit(exit_status(signal).into())
}
