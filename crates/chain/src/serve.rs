//! `viv-evm serve`: a chain by itself, until a signal.
use std::net::TcpListener;
use std::path::PathBuf;

use clap::Args;
use viv_evm::node::{Config, Node};
use viv_evm::server::Listener;

use crate::Failure;
use crate::options::Options;

/// What it is told.
#[derive(Args)]
pub(crate) struct Serve {
    /// The address and port to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8545", value_name = "ADDR:PORT")]
    listen: String,
    /// Where to keep the chain; in memory without.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
    /// Go on from the state of a remote chain.
    #[arg(long, value_name = "URL")]
    fork_url: Option<String>,
    /// The remote chain's block [default: its newest].
    #[arg(long, value_name = "N", requires = "fork_url")]
    fork_block: Option<u64>,
}

impl Serve {
    /// Serves it.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let fork = self.fork_url.map(|url| (url, self.fork_block));
        let config = Config { dir: self.dir, fork, ..self.options.config()? };
        let listener = TcpListener::bind(&self.listen).map_err(|error| {
            format!("cannot listen on {}: {error}; choose another with --listen", self.listen)
        })?;
        let address = listener.local_addr()?;
        let node = Node::open(config)?;
        println!(
            "listening on http://{address} and ws://{address}, chain id {}",
            node.rpc().chain.chain_id()
        );
        let stopper = node.stopper();
        let mut signals =
            signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
        std::thread::spawn(move || {
            if signals.forever().next().is_some() {
                stopper.stop();
            }
        });
        Ok(node.serve(vec![Listener::Tcp(listener)])?)
    }
}
