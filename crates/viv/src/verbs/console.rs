//! `viv console`: the serial console of a VM.
use super::Context;
use crate::serial::{self, Outcome};
use crate::{output, streams, terminal};
use std::io::IsTerminal;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::vm::Vm;
use viv_model::Fault;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Its name or id
    vm: String,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let vm: Vm = context.client.json(Request::new(Route::VmGet, &[&args.vm]))?;
    let stream = streams::console(&context.client, &vm)?;
    let on_terminal = std::io::stdin().is_terminal();
    if on_terminal {
        output::note(&format!("the console of {}; leave it with {}", args.vm, terminal::HOW_TO_LEAVE));
    }
    serial::follow_size(&context.client, &vm.id);
    let outcome = serial::run(stream);
    if on_terminal {
        output::note(match outcome {
            Outcome::Left => "left; the VM runs on",
            _ => "the console was closed",
        });
    }
    Ok(0)
}
