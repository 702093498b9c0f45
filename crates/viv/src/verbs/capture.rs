//! `viv capture`: what passes a VM's port, into a file of packets.
use super::Context;
use super::port::Card;
use crate::figures;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_model::{Fault, Kind};

/// Kinds of blocks that are no packets: of the section and of the interface (draft-ietf-opsawg-pcapng §4.1, §4.2).
const HEADS: [u32; 2] = [0x0a0d_0d0a, 1];

#[derive(clap::Args, Debug)]
#[command(after_help = "viv capture web -w web.pcapng          until ^C, or until the VM ends\n\
                  viv capture web -w - | tcpdump -nr -    as they pass\n\n\
                  What the guest sends is in it also if the network refuses it. Packets are up to 64 KiB long.")]
pub(crate) struct Args {
    /// Name or id
    vm: String,
    /// Write into this file, in the format pcapng; - for standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    #[command(flatten)]
    card: Card,
}

/// Where whole blocks go.
struct Sink {
    out: Box<dyn Write + Send>,
    packets: u64,
}

fn failed(path: &std::path::Path) -> impl Fn(io::Error) -> Fault {
    move |error| {
        Fault::new(
            Kind::Error,
            format!("cannot write {}: {error}", path.display()),
            "see that its directory is there, that you may write to it, and that there is space",
        )
    }
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    // First, so that no file is left behind for a VM that is not there.
    let mut body =
        context.client.open(Request::new(Route::PortCapture, &[&args.vm]).query(args.card.query()))?;
    let to_stdout = args.write.as_os_str() == "-";
    let failed = failed(&args.write);
    let out: Box<dyn Write + Send> = match to_stdout {
        true => Box::new(io::stdout()),
        false => {
            let file = OpenOptions::new().create(true).write(true).truncate(true).open(&args.write);
            Box::new(file.map_err(&failed)?)
        }
    };
    let sink = Arc::new(Mutex::new(Sink { out, packets: 0 }));
    let ending = sink.clone();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(&failed)?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            // Between two blocks: the file is whole.
            let sink = ending.lock().unwrap_or_else(PoisonError::into_inner);
            tell(sink.packets);
            std::process::exit(0);
        }
    });
    let outcome = carry(&mut body, &sink);
    let sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(error)),
        _ => {
            tell(sink.packets);
            Ok(0)
        }
    }
}

fn tell(packets: u64) {
    figures::to_stderr(&format!("{packets} packets\n"));
}

/// Writes whole blocks only.
fn carry(from: &mut impl Read, sink: &Mutex<Sink>) -> io::Result<()> {
    let mut waiting = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // The service is gone, and what is in the file is whole.
            Err(_) => return Ok(()),
        };
        waiting.extend_from_slice(piece.get(..count).unwrap_or_default());
        let (whole, packets) = blocks(&waiting);
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.out.write_all(waiting.get(..whole).unwrap_or_default())?;
        sink.out.flush()?;
        sink.packets += packets;
        waiting.drain(..whole);
    }
}

/// The length of all blocks that are whole, and how many of them are packets.
fn blocks(bytes: &[u8]) -> (usize, u64) {
    let (mut at, mut packets) = (0, 0);
    while let Some([k0, k1, k2, k3, l0, l1, l2, l3]) =
        bytes.get(at..).and_then(|rest| rest.first_chunk::<8>())
    {
        let len = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
        if len < 12 || bytes.len() - at < len {
            break;
        }
        packets += u64::from(!HEADS.contains(&u32::from_le_bytes([*k0, *k1, *k2, *k3])));
        at += len;
    }
    (at, packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_are_written() {
        let block = |kind: u32, len: u32| {
            let mut block = vec![0; len as usize];
            block[..4].copy_from_slice(&kind.to_le_bytes());
            block[4..8].copy_from_slice(&len.to_le_bytes());
            block
        };
        let all = [block(HEADS[0], 28), block(HEADS[1], 20), block(6, 32), block(6, 40)].concat();
        assert_eq!(blocks(&all), (120, 2));
        assert_eq!(blocks(&all[..119]), (80, 1));
        assert_eq!(blocks(&all[..7]), (0, 0));
    }
}
