//! `viv logs`: what a VM's serial console said.
use super::Context;
use crate::output;
use std::io::{ErrorKind, Read, Write};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Go on until the VM ends
    #[arg(short, long)]
    follow: bool,
    /// Its name or id
    vm: String,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let query = if args.follow { "follow=true" } else { "" };
    let mut body = context.client.open(Request::new(Route::VmLogs, &[&args.vm]).query(query))?;
    if context.json {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(broken)?;
        output::json(&serde_json::json!({ "vm": args.vm, "text": String::from_utf8_lossy(&bytes) }));
        return Ok(0);
    }
    match copy(&mut body) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(broken(error)),
        _ => Ok(0),
    }
}

/// Each piece is printed as it comes: a prompt has no end of line.
fn copy(from: &mut impl Read) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    let mut piece = [0; 16 * 1024];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                out.write_all(piece.get(..length).unwrap_or_default()).and_then(|()| out.flush())?
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn broken(error: std::io::Error) -> Fault {
    Fault::new(Kind::Error, format!("the log broke off: {error}"), "ask for it again: viv logs")
}
