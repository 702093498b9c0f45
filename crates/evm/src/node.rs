//! A chain with its door: what `viv-evm serve` and a runner of virtual machines start and stop.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, U256};
use revm::primitives::hardfork::SpecId;
use tokio::sync::watch;

use crate::accounts::{self, Signer};
use crate::chain::{Chain, ChainError, Genesis, Settings, now};
use crate::hardfork;
use crate::hold::Hold;
use crate::remote::Remote;
use crate::rpc::{Limits, Rpc};
use crate::server::{self, Listener};
use crate::state::StateError;
use crate::workers::Workers;

/// The chain id that development tools expect.
const CHAIN_ID: u64 = 31_337;
/// Gas of a block when nothing else is said.
const GAS_LIMIT: u64 = 30_000_000;
/// Wei per gas in the first block (EIP-1559, `INITIAL_BASE_FEE`).
const BASE_FEE: u64 = 1_000_000_000;
/// Whole ether of a development account.
const BALANCE: u64 = 10_000;
/// States of blocks that are kept.
const HISTORY: usize = 16_384;
/// What part of the process' memory one execution may have.
const EXECUTION_SHARE: u64 = 8;
/// Development accounts; deriving one takes a tenth of a millisecond.
const ACCOUNTS_MAX: u32 = 10_000;

/// How a chain is to be. What is not said is as development tools expect it, or as the directory has it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the chain is kept; in memory without.
    pub dir: Option<PathBuf>,
    /// Its id (EIP-155).
    pub chain_id: Option<u64>,
    /// The fork whose rules hold.
    pub hardfork: Option<SpecId>,
    /// Seconds between blocks, instead of a block for each transaction.
    pub block_time: Option<u64>,
    /// Blocks only on request.
    pub no_mining: bool,
    /// Development accounts.
    pub accounts: u32,
    /// Whole ether of each.
    pub balance: u64,
    /// Gas of a block.
    pub gas_limit: u64,
    /// Wei per gas in the first block.
    pub base_fee: u64,
    /// States of blocks that are kept.
    pub history: usize,
    /// A remote chain to go on from, and its block.
    pub fork: Option<(String, Option<u64>)>,
    /// What a client may ask for.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            dir: None,
            chain_id: None,
            hardfork: None,
            block_time: None,
            no_mining: false,
            accounts: 10,
            balance: BALANCE,
            gas_limit: GAS_LIMIT,
            base_fee: BASE_FEE,
            history: HISTORY,
            fork: None,
            limits: Limits::default(),
        }
    }
}

/// A chain cannot be opened or served.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The chain or its store.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The remote chain.
    #[error("cannot go on from the remote chain: {0}; is the address one of a JSON-RPC server?")]
    Remote(#[from] StateError),
    /// The directory has another chain.
    #[error(
        "the chain in the directory has {what} {kept}, not {wanted}: leave the option away, or choose another directory"
    )]
    Other {
        /// What is different.
        what: &'static str,
        /// As it is kept.
        kept: String,
        /// As it was asked for.
        wanted: String,
    },
    /// A number is out of its bounds.
    #[error("{0}")]
    Bounds(String),
    /// The listener or the runtime.
    #[error("cannot serve: {0}")]
    Io(#[from] std::io::Error),
}

/// A chain that can be served.
#[derive(Debug)]
pub struct Node {
    rpc: Arc<Rpc>,
    workers: Workers,
    stop: watch::Sender<bool>,
}

/// Ends a node's service from anywhere.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>, Hold);

impl Stopper {
    /// Asks the service to end. Blocks that were acknowledged stay.
    pub fn stop(&self) {
        self.1.end();
        // Nobody serves: then there is nothing to stop.
        self.0.send_replace(true);
    }
}

impl Node {
    /// Opens the chain that `config` says, or makes it.
    pub fn open(config: Config) -> Result<Node, NodeError> {
        if config.accounts > ACCOUNTS_MAX {
            return Err(NodeError::Bounds(format!(
                "{} accounts are more than {ACCOUNTS_MAX}",
                config.accounts
            )));
        }
        let signers = accounts::development(config.accounts);
        let (genesis, remote) = begin(&config, &signers)?;
        let mut chain = Chain::open(genesis, config.dir.as_deref(), config.history, remote)?;
        if let Some(bytes) = config.limits.memory {
            chain.limit_memory(bytes as u64 / EXECUTION_SHARE);
        }
        same("chain id", chain.chain_id(), config.chain_id)?;
        same("fork", hardfork::name(chain.spec()), config.hardfork.map(hardfork::name))?;
        let rpc = Rpc {
            chain: Arc::new(chain),
            signers,
            limits: config.limits,
            filters: Default::default(),
            called: Default::default(),
        };
        let (stop, _) = watch::channel(false);
        Ok(Node { rpc: Arc::new(rpc), workers: Workers::default(), stop })
    }

    /// The chain's methods, without a network between.
    pub fn rpc(&self) -> &Arc<Rpc> {
        &self.rpc
    }

    /// Runs `job` on a thread of those that answer requests.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.workers.run(job);
    }

    /// Something that ends [`Node::serve`].
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone(), self.rpc.chain.hold().clone())
    }

    /// Serves clients on bound listeners until a [`Stopper`] says so. Without listeners it makes its blocks all the same.
    pub fn serve(&self, listeners: Vec<Listener>) -> Result<(), NodeError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = runtime.block_on(async {
            let ticking = tokio::spawn(tick(Arc::clone(&self.rpc), self.workers.clone()));
            let served =
                server::serve(Arc::clone(&self.rpc), self.workers.clone(), listeners, self.stop.subscribe())
                    .await;
            ticking.abort();
            served
        });
        runtime.shutdown_timeout(Duration::from_millis(100));
        self.rpc.chain.sync()?;
        Ok(served?)
    }
}

fn same<T: PartialEq + ToString>(what: &'static str, kept: T, wanted: Option<T>) -> Result<(), NodeError> {
    match wanted {
        Some(wanted) if wanted != kept => {
            Err(NodeError::Other { what, kept: kept.to_string(), wanted: wanted.to_string() })
        }
        _ => Ok(()),
    }
}

fn begin(config: &Config, signers: &[Signer]) -> Result<(Genesis, Option<Arc<Remote>>), NodeError> {
    let balance = U256::from(config.balance).saturating_mul(U256::from(10).pow(U256::from(18)));
    let mut settings = Settings {
        gas_limit: config.gas_limit,
        coinbase: Address::ZERO,
        base_fee: config.base_fee,
        next_base_fee: None,
        next_random: None,
        next_timestamp: None,
        time_offset: 0,
        timestamp_interval: None,
        automine: !config.no_mining && config.block_time.is_none(),
        interval: config.block_time.filter(|seconds| *seconds > 0),
        impersonated: Default::default(),
        impersonate_all: false,
    };
    let (mut chain_id, mut remote, mut kept) = (CHAIN_ID, None, None);
    if let Some((url, block)) = &config.fork {
        let (opened, id, header) = Remote::open(url, *block)?;
        chain_id = id;
        settings.gas_limit = header.inner.gas_limit;
        remote = Some(Arc::new(opened));
        kept = Some((url.clone(), Box::new(header.inner)));
    }
    let genesis = Genesis {
        chain_id: config.chain_id.unwrap_or(chain_id),
        spec: config.hardfork.unwrap_or(hardfork::NEWEST),
        timestamp: now(),
        accounts: signers.iter().map(|signer| (signer.address, balance)).collect(),
        settings,
        remote: kept,
    };
    Ok((genesis, remote))
}

/// Blocks that come by themselves, and a sync of what was written, once a second.
async fn tick(rpc: Arc<Rpc>, workers: Workers) {
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut waited = 0;
    loop {
        clock.tick().await;
        rpc.chain.hold().passed().await;
        let interval = rpc.chain.read().settings.interval;
        waited = if interval.is_some() { waited + 1 } else { 0 };
        let due = interval.is_some_and(|seconds| waited > seconds);
        if due {
            waited = 1;
        }
        let rpc = Arc::clone(&rpc);
        workers.run(move || {
            let made = if due { rpc.chain.mine(1, None).map(|_| ()) } else { Ok(()) };
            if let Err(error) = made.and_then(|()| rpc.chain.sync()) {
                eprintln!("viv-evm: {error}");
            }
        });
    }
}
