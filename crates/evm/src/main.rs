//! `viv-evm`: serves a chain, and speaks with one.
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;

use alloy_primitives::{Address, U256};
use clap::{Args, Parser, Subcommand};
use viv_evm::client::{Call, Client};
use viv_evm::hardfork;
use viv_evm::node::{Config, Node};
use viv_evm::server::Listener;

/// An Ethereum chain as a virtual machine.
#[derive(Parser)]
#[command(name = "viv-evm", version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve a chain: JSON-RPC over HTTP and WebSocket.
    Serve(Box<Serve>),
    /// Call a contract and print what it returns.
    Call(Target),
    /// Send a transaction from an account of the node and wait for its block.
    Send(Target),
    /// Deploy code and print the contract's address.
    Deploy(Deploy),
    /// Show the calls within a transaction.
    Trace {
        /// The transaction's hash.
        hash: String,
        #[command(flatten)]
        node: At,
    },
}

#[derive(Args)]
struct At {
    /// Where the chain is served.
    #[arg(long, default_value = "http://127.0.0.1:8545")]
    rpc: String,
}

#[derive(Args)]
struct Target {
    /// The contract or account.
    to: Address,
    /// Calldata (0x…), or a signature like balanceOf(address)(uint256).
    what: Option<String>,
    /// The signature's arguments.
    args: Vec<String>,
    #[command(flatten)]
    sender: Sender,
    /// The block to call at: a number or a tag.
    #[arg(long, default_value = "latest")]
    block: String,
}

#[derive(Args)]
struct Deploy {
    /// The code that makes the contract (0x…), or @FILE with it.
    code: String,
    /// The constructor's types, like (uint256,address), and a value for each.
    args: Vec<String>,
    #[command(flatten)]
    sender: Sender,
}

#[derive(Args)]
struct Sender {
    /// The sender; the node's first account for transactions.
    #[arg(long)]
    from: Option<Address>,
    /// Wei to send along.
    #[arg(long, default_value_t = U256::ZERO)]
    value: U256,
    /// Gas to give, instead of an estimate.
    #[arg(long)]
    gas: Option<u64>,
    #[command(flatten)]
    node: At,
}

#[derive(Args)]
struct Serve {
    /// The address and port to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8545", value_name = "ADDR:PORT")]
    listen: String,
    /// Where to keep the chain; in memory without.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The chain's id [default: 31337].
    #[arg(long, value_name = "N")]
    chain_id: Option<u64>,
    /// The fork whose rules hold, like london or cancun [default: the newest of the main network].
    #[arg(long, value_name = "NAME")]
    hardfork: Option<String>,
    /// A block each so many seconds, instead of one for each transaction.
    #[arg(long, value_name = "S")]
    block_time: Option<u64>,
    /// Make blocks only on request.
    #[arg(long)]
    no_mining: bool,
    /// Development accounts.
    #[arg(long, default_value_t = 10, value_name = "N")]
    accounts: u32,
    /// Ether of each account.
    #[arg(long, default_value_t = 10_000, value_name = "ETH")]
    balance: u64,
    /// Gas of a block.
    #[arg(long, default_value_t = 30_000_000, value_name = "N")]
    gas_limit: u64,
    /// Wei per gas in the first block.
    #[arg(long, default_value_t = 1_000_000_000, value_name = "N")]
    base_fee: u64,
    /// States of blocks that are kept, to ask for later.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    history: usize,
    /// Go on from the state of a remote chain.
    #[arg(long, value_name = "URL")]
    fork_url: Option<String>,
    /// The remote chain's block [default: its newest].
    #[arg(long, value_name = "N", requires = "fork_url")]
    fork_block: Option<u64>,
    /// Gas of a call that nobody pays for.
    #[arg(long, default_value_t = 50_000_000, value_name = "N")]
    call_gas_cap: u64,
}

type Failure = Box<dyn std::error::Error>;

impl Serve {
    fn run(self) -> Result<(), Failure> {
        let mut config = Config {
            dir: self.dir,
            chain_id: self.chain_id,
            hardfork: self.hardfork.as_deref().map(hardfork::parse).transpose()?,
            block_time: self.block_time,
            no_mining: self.no_mining,
            accounts: self.accounts,
            balance: self.balance,
            gas_limit: self.gas_limit,
            base_fee: self.base_fee,
            history: self.history,
            fork: self.fork_url.map(|url| (url, self.fork_block)),
            ..Config::default()
        };
        config.limits.call_gas = self.call_gas_cap;
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
        Ok(node.serve(Listener::Tcp(listener))?)
    }
}

impl Sender {
    fn call(&self, to: Option<Address>, what: Option<String>, args: Vec<String>) -> Call {
        Call { to, what, args, from: self.from, value: self.value, gas: self.gas }
    }
}

fn run(verb: Verb) -> Result<(), Failure> {
    let text = match verb {
        Verb::Serve(serve) => return serve.run(),
        Verb::Call(Target { to, what, args, sender, block }) => {
            let block = block.parse::<u64>().map_or(block, |number| format!("{number:#x}"));
            Client::new(&sender.node.rpc).call(&sender.call(Some(to), what, args), &block)?
        }
        Verb::Send(Target { to, what, args, sender, .. }) => {
            Client::new(&sender.node.rpc).send(&sender.call(Some(to), what, args))?
        }
        Verb::Deploy(Deploy { code, args, sender }) => {
            let code = match code.strip_prefix('@') {
                Some(path) => std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read {path}: {error}"))?
                    .trim()
                    .to_string(),
                None => code,
            };
            let code = if code.starts_with("0x") { code } else { format!("0x{code}") };
            Client::new(&sender.node.rpc).send(&sender.call(None, Some(code), args))?
        }
        Verb::Trace { hash, node } => Client::new(&node.rpc).trace(&hash)?,
    };
    println!("{text}");
    Ok(())
}

fn main() -> ExitCode {
    match run(Command::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("viv-evm: {error}");
            ExitCode::FAILURE
        }
    }
}
