//! `viv-evm`: an Ethereum chain by itself, speaks with one, and is a chain's process as a VM.
//!
//! ```text
//!  viv-evm serve ─────► serve ──┐
//!  viv-evm call … ────► verbs ──┼──► the chain itself (viv-evm, the library)
//!  viv-evm DIR ───────► engine ─┘       ▲
//!  viv exec CHAIN … ──► instance ───────┘ the same verbs, without a network
//! ```
//! [`options`] has what a chain can be told, [`engine`] makes it ready in its VM, [`instance`] is its life there.
#![forbid(unsafe_code)]

mod engine;
mod instance;
mod news;
mod options;
mod serve;
mod verbs;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Where a chain is asked if nobody says it.
const RPC: &str = "http://127.0.0.1:8545";

/// An Ethereum chain as a virtual machine.
#[derive(Parser)]
#[command(name = "viv-evm", version)]
struct Command {
    /// Where the chain is served, for all verbs but serve [default: http://127.0.0.1:8545].
    #[arg(long, global = true, value_name = "URL")]
    rpc: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve a chain: JSON-RPC over HTTP and WebSocket.
    Serve(Box<serve::Serve>),
    #[command(flatten)]
    Client(verbs::Verb),
}

/// What ends a verb.
pub(crate) type Failure = Box<dyn std::error::Error>;

fn run(Command { rpc, verb }: Command) -> Result<(), Failure> {
    match (verb, rpc) {
        (Verb::Serve(_), Some(_)) => {
            Err("serve asks no other chain: leave out --rpc; --listen says where it is served".into())
        }
        (Verb::Serve(serve), None) => serve.run(),
        (Verb::Client(verb), rpc) => {
            let client = viv_evm::client::Client::new(rpc.as_deref().unwrap_or(RPC));
            println!("{}", verb.run(&client, verbs::Files::Read)?);
            Ok(())
        }
    }
}

/// The directory of a VM, if that is all that was said: the host service names it whole, and no verb begins with a slash.
fn directory(args: &[OsString]) -> Option<&Path> {
    match args {
        [_, only] => Some(Path::new(only)).filter(|path| path.is_absolute()),
        _ => None,
    }
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(dir) = directory(&args) {
        viv_cell::sandbox::close_inherited();
        return viv_process::run(dir, &engine::Evm).into();
    }
    match run(Command::parse_from(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("viv-evm: {error}");
            ExitCode::FAILURE
        }
    }
}
