//! A chain's life as a VM.
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use clap::error::ErrorKind;
use viv_api::agent::Output;
use viv_api::stats::{ChainStats, ProgramStats};
use viv_evm::accounts::Signer;
use viv_evm::client::Client;
use viv_evm::hardfork;
use viv_evm::node::{Node, Stopper};
use viv_evm::server::Listener;
use viv_model::{End, Fault, Kind, PortSpec};
use viv_process::{Channel, Gate, Instance, Streams};

use crate::news;
use crate::verbs::{Files, Inside};

/// Accounts that are shown at the start.
const SHOWN: usize = 10;
/// The status of words that make no sense, and of what the chain refuses.
const USAGE: u8 = 2;
const REFUSED: u8 = 1;

/// A chain with its ports.
pub(crate) struct ChainVm {
    node: Node,
    /// Until it runs.
    listeners: Mutex<Vec<Listener>>,
    ports: Vec<PortSpec>,
    streams: Arc<Streams>,
    gate: Arc<Gate>,
    stopper: Stopper,
}

impl ChainVm {
    pub(crate) fn new(
        node: Node,
        listeners: Vec<Listener>,
        ports: Vec<PortSpec>,
        streams: Arc<Streams>,
        gate: Arc<Gate>,
    ) -> ChainVm {
        let stopper = node.stopper();
        ChainVm { node, listeners: Mutex::new(listeners), ports, streams, gate, stopper }
    }

    /// Does what the gate says.
    pub(crate) fn follow(&self) {
        let hold = self.node.rpc().chain.hold();
        match (self.gate.end(), self.gate.is_closed()) {
            (Some(_), _) => self.stopper.stop(),
            (None, true) => hold.close(),
            (None, false) => hold.open(),
        }
    }

    /// What a user needs to begin.
    fn greeting(&self) -> String {
        let rpc = self.node.rpc();
        let (id, fork) = (rpc.chain.chain_id(), hardfork::name(rpc.chain.spec()));
        let (number, hash) = {
            let data = rpc.chain.read();
            (data.head().number(), data.head().hash())
        };
        let account = |(index, signer): (usize, &Signer)| {
            format!("account {index} {} private key {}\n", signer.address, signer.private_key())
        };
        let mut text: String = rpc.signers.iter().take(SHOWN).enumerate().map(account).collect();
        if let Some(more @ 1..) = rpc.signers.len().checked_sub(SHOWN) {
            text += &format!("and {more} more accounts\n");
        }
        text += "everybody knows these keys: send nothing of value to them\n";
        text += &format!("chain id {id}, fork {fork}, block {number} {hash}\n");
        if self.ports.is_empty() {
            text += "no port is published; ask it with: viv exec VM -- rpc eth_blockNumber\n";
        }
        for port in &self.ports {
            let at = std::net::SocketAddr::new(port.ip, port.host);
            text += &format!("listening on http://{at} and ws://{at}\n");
        }
        text
    }
}

impl Instance for ChainVm {
    fn run(&self) -> End {
        self.follow(); // what came before it began
        let (rpc, streams) = (self.node.rpc().clone(), self.streams.clone());
        let events = rpc.chain.events();
        streams.write(Channel::Out, self.greeting().as_bytes());
        let tell = move || news::tell(&rpc, events, |text| streams.write(Channel::Out, text.as_bytes()));
        let _ = thread::Builder::new().name("news".into()).spawn(tell);
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        match self.node.serve(listeners) {
            Ok(()) => End::PowerOff,
            Err(error) => End::Failed { message: format!("the chain cannot go on: {error}") },
        }
    }

    fn stats(&self) -> ProgramStats {
        let rpc = self.node.rpc();
        let counts = rpc.chain.counts();
        let chain = ChainStats {
            height: rpc.chain.read().head().number(),
            blocks: counts.blocks.load(Ordering::Relaxed),
            transactions: counts.transactions.load(Ordering::Relaxed),
            calls: rpc.called.load(Ordering::Relaxed),
        };
        ProgramStats {
            steps: Some(counts.gas.load(Ordering::Relaxed)),
            memory_bytes: viv_cell::memory_bytes(),
            chain: Some(chain),
            ..ProgramStats::default()
        }
    }

    fn exec(&self, argv: &[String], output: &mut dyn FnMut(Output)) -> Result<u8, Fault> {
        self.gate.pass().map_err(|stopped| {
            Fault::new(
                Kind::Conflict,
                format!("nothing can be asked: {stopped}"),
                "start it again: viv start VM",
            )
        })?;
        let line = |text: &str| format!("{}\n", text.trim_end()).into_bytes();
        let verb = match Inside::read(argv) {
            Ok(inside) => inside.verb,
            Err(error) => {
                let text = line(&error.render().to_string());
                let is_help = error.kind() == ErrorKind::DisplayHelp;
                output(if is_help { Output::Stdout(text) } else { Output::Stderr(text) });
                return Ok(if is_help { 0 } else { USAGE });
            }
        };
        let (done, answer) = mpsc::channel();
        let client = Client::direct(self.node.rpc().clone());
        self.node.run(move || {
            let answered = verb.run(&client, Files::OutOfReach).map_err(|error| error.to_string());
            let _ = done.send(answered); // whoever asked is gone
        });
        let broke = || Err("the request ended without an answer: see runner.log of its VM".to_string());
        Ok(match answer.recv().unwrap_or_else(|_| broke()) {
            Ok(text) => {
                output(Output::Stdout(line(&text)));
                0
            }
            Err(text) => {
                output(Output::Stderr(line(&text)));
                REFUSED
            }
        })
    }
}
