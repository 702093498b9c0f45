//! A chain as a VM: made ready in its directory, with its ports taken, before the process is confined.
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, setrlimit};
use viv_evm::memory;
use viv_evm::node::{Node, NodeError};
use viv_evm::server::Listener;
use viv_model::{Fault, GuestKind, Kind};
use viv_net::switch::Listeners;
use viv_process::{Confinement, Engine, Prepared, Setting};

use crate::instance::ChainVm;
use crate::options;

/// Where the chain is, in its VM's directory.
const DIR: &str = "chain";
/// Least memory of a chain, MiB: its program, and room for some blocks.
const MEMORY_MIB_MIN: u64 = 32;
/// This part of the memory is kept for what is going on when no more is begun.
const RESERVE: usize = 8;
/// Bytes of a request become so many in memory, at worst.
const SWELLS: usize = 32;
/// Bytes of a request that every chain takes.
const REQUEST_MIN: usize = 1 << 20;
/// Address space besides the memory: stacks of threads, which are mostly never touched, MiB.
const STACKS_MIB: u64 = 320;

/// The Ethereum virtual machine.
pub(crate) struct Evm;

impl Engine for Evm {
    fn kind(&self) -> GuestKind {
        GuestKind::Evm
    }

    fn prepare(&self, setting: Setting<'_>) -> Result<Prepared, Fault> {
        let Setting { vm, program, streams, gate, .. } = setting;
        let mut config = options::of_vm(&program.spec.args)?;
        let mib = vm.machine.memory_mib;
        let more = |text: String| {
            Fault::new(Kind::Usage, text, "give it more with --memory: viv run, or viv update")
        };
        if mib < MEMORY_MIB_MIN {
            return Err(more(format!(
                "{mib} MiB of memory is too little for a chain, which needs {MEMORY_MIB_MIN}"
            )));
        }
        let bytes = usize::try_from(mib << 20).unwrap_or(usize::MAX);
        let most = bytes - bytes / RESERVE;
        config.limits.memory = Some(most);
        config.limits.request = config.limits.request.min((bytes / SWELLS).max(REQUEST_MIN));
        config.limits.answer = config.limits.answer.min(bytes / RESERVE);
        config.dir = Some(DIR.into());
        GuestKind::Evm.check_ports(&vm.machine.ports)?; // a document may say what the command would not
        let listeners = Listeners::open(&vm.machine.ports).map_err(|error| Fault::from(&error))?.into_tcp();
        let node = Node::open(config).map_err(|error| refusal(&error))?;
        let used = memory::resident();
        if used > most {
            return Err(more(format!("the chain has {} MiB in memory, and its VM {mib} MiB", used >> 20)));
        }
        // What the checks of the chain do not see in time ends the process, and not its neighbours'.
        let bytes = mib.saturating_add(STACKS_MIB) << 20;
        let _ = setrlimit(Resource::Data, Rlimit { current: Some(bytes), maximum: Some(bytes) });
        let listeners = listeners.into_iter().map(|(listener, _)| Listener::Tcp(listener)).collect();
        let chain = Arc::new(ChainVm::new(node, listeners, vm.machine.ports.clone(), streams, gate.clone()));
        let weak = Arc::downgrade(&chain);
        gate.on_change(move || {
            if let Some(chain) = weak.upgrade() {
                chain.follow();
            }
        });
        // It has its ports already, and needs no other file or call.
        Ok(Prepared { instance: chain, confinement: Confinement::default() })
    }
}

fn refusal(error: &NodeError) -> Fault {
    let (kind, fix) = match error {
        NodeError::Other { .. } | NodeError::Bounds(_) => {
            (Kind::Usage, "describe another VM with these options: viv run --kind evm -- OPTIONS")
        }
        _ => (Kind::Error, "see its directory with viv inspect; a new chain: viv run --kind evm"),
    };
    Fault::new(kind, format!("the chain cannot be opened: {error}"), fix)
}
