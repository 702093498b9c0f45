//! The guest agent: one static binary that is three things.
//!
//! | started as | it is | see |
//! |---|---|---|
//! | process 1 of an initial RAM disk | the default guest's init: mounts, modules, shell, power | [`init`] |
//! | the same, with `viv.root=/dev/…` on the kernel's command line | the step before a disk's own init | [`stage`] |
//! | the same, with `viv.lower=` and `viv.upper=` | what starts an image of containers, and stays outside it | [`layers`] |
//! | what the DHCP client calls, with what has happened as an argument | what sets the network card up | [`lease`] |
//! | `viv-agent serve` | only the server of commands over vsock | [`serve`] |
//!
//! Kernel parameters: `viv.root=DEVICE` starts that disk; `viv.task=PROGRAM` runs only that program, prints
//! `viv-task: exit N` and switches off; `viv.hostname=NAME` names the guest;
//! `viv.lower=DEVICE viv.upper=DEVICE` start an image of containers with a disk of the VM's own above it, `viv.stop=SIGNAL` is
//! the number of the signal that ends its program, `viv.volume=PATH` a directory of it that is on that disk alone; `viv.share=TAG:ro:PATH`
//! mounts a directory of the host.
//!
//! It never does what the host could do, never talks first, and needs nothing of the guest's user land.
mod arrivals;
mod card;
mod children;
mod command;
mod disks;
mod exec;
mod freeze;
mod health;
mod hurry;
mod identity;
mod init;
mod lasting;
mod layers;
mod lease;
mod ports;
mod power;
mod renew;
mod root;
mod serve;
mod setup;
mod shares;
mod stage;
mod sys;
mod tree;
mod users;
mod volumes;

use std::process::ExitCode;

/// One line on the console.
fn say(message: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "viv-agent: {message}");
}

fn main() -> ExitCode {
    let verb = std::env::args().nth(1);
    match verb.as_deref() {
        Some("serve") => match serve::main() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(format_args!("cannot serve on vsock port {}: {error}", viv_api::agent::PORT));
                ExitCode::FAILURE
            }
        },
        Some(event) if lease::EVENTS.contains(&event) => lease::main(event),
        Some("--version" | "version") => {
            println!("viv-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ if std::process::id() == 1 => init::main(),
        _ => {
            say("this is Vivarium's guest agent; as a service it is started with: viv-agent serve");
            ExitCode::from(2)
        }
    }
}
