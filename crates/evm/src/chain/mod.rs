//! One chain: blocks on blocks, the states after them, transactions that wait, and snapshots of it all.
//!
//! ```text
//!  submit ──► pool ──► make a block (writer's lock) ──► store ──► publish (data's lock, microseconds)
//!                                                                   ▲
//!  readers: take the head's block and world, and let go ────────────┘
//! ```
//! A state is a value, so readers keep what they took whatever happens next, and a snapshot is a clone.
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy_consensus::Transaction;
use alloy_consensus::transaction::Recovered;
use alloy_primitives::{Address, B256};
use revm::context::CfgEnv;
use revm::primitives::hardfork::SpecId;
use tokio::sync::broadcast;

use crate::exec;
use crate::hold::{Ended, Hold};
use crate::remote::Remote;
use crate::state::{Change, Db, Hashes, StateError, World};
use crate::store::{Entry, Store, StoreError};

pub mod admit;
pub mod block;
mod error;
mod genesis;
pub mod pool;
mod replay;
mod settings;

pub use block::{Block, Tx};
pub use error::TxError;
pub use genesis::Genesis;
pub use settings::Settings;

/// Snapshots that are kept at one time; the oldest goes when there are more.
const SNAPSHOTS_MAX: usize = 4096;
/// Events that a slow subscriber may be behind.
const EVENTS_BEHIND_MAX: usize = 4096;
/// Blocks that one request may ask for.
pub const BLOCKS_AT_ONCE_MAX: u64 = 100_000;

/// Something that subscribers want to know.
#[derive(Clone, Debug)]
pub enum Event {
    /// A block was added.
    Block(Arc<Block>),
    /// A transaction waits.
    Waiting(B256),
}

/// What happened to a chain cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A remote chain failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// It is to end.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// More blocks than one request may ask for.
    #[error("{0} blocks are more than one request may ask for, which is {BLOCKS_AT_ONCE_MAX}")]
    TooMany(u64),
    /// A time before the newest block's.
    #[error("timestamp {0} is not after the newest block's, {1}")]
    Past(u64, u64),
}

impl From<ChainError> for TxError {
    fn from(error: ChainError) -> TxError {
        match error {
            ChainError::State(error) => TxError::State(error),
            other => TxError::Store(other.to_string()),
        }
    }
}

/// A moment to come back to.
#[derive(Clone, Debug)]
struct Snapshot {
    id: u64,
    height: u64,
    world: World,
    settings: Settings,
}

/// Everything that readers see.
#[derive(Debug)]
pub struct Data {
    /// Blocks from `first` on.
    blocks: Vec<Arc<Block>>,
    /// The number of the first block here: 0, or that of a remote chain's.
    first: u64,
    /// The states after the newest blocks, the newest last.
    worlds: VecDeque<World>,
    numbers: HashMap<B256, u64>,
    txs: HashMap<B256, (u64, usize)>,
    /// Transactions that wait.
    pub pool: pool::Pool,
    /// What the owner has set.
    pub settings: Settings,
    snapshots: Vec<Snapshot>,
    next_snapshot: u64,
}

impl Data {
    /// The newest block.
    pub fn head(&self) -> &Arc<Block> {
        // A chain is made with its first block, and nothing takes that away.
        self.blocks.last().expect("a chain has a first block")
    }

    /// The state now.
    pub fn world(&self) -> &World {
        self.worlds.back().expect("a chain has the state of its newest block")
    }

    /// The first block's number.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The block with this number.
    pub fn block(&self, number: u64) -> Option<&Arc<Block>> {
        self.blocks.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// The block with this hash.
    pub fn block_by_hash(&self, hash: &B256) -> Option<&Arc<Block>> {
        self.block(*self.numbers.get(hash)?)
    }

    /// The block of a transaction, and its place there.
    pub fn transaction(&self, hash: &B256) -> Option<(&Arc<Block>, usize)> {
        let (number, index) = self.txs.get(hash)?;
        Some((self.block(*number)?, *index))
    }

    /// The state after a block, unless that is too long ago.
    pub fn world_at(&self, number: u64) -> Option<&World> {
        let back = usize::try_from(self.head().number().checked_sub(number)?).ok()?;
        self.worlds.get(self.worlds.len().checked_sub(back.checked_add(1)?)?)
    }

    /// The nonce of an account now.
    pub fn nonce(&self, address: Address) -> Result<u64, StateError> {
        Ok(self.world().account(address)?.map_or(0, |account| account.nonce))
    }

    fn push(&mut self, block: Arc<Block>, world: World, history: usize) {
        self.numbers.insert(block.hash(), block.number());
        for (index, tx) in block.txs.iter().enumerate() {
            self.txs.insert(*tx.tx_hash(), (block.number(), index));
        }
        self.blocks.push(block);
        self.worlds.push_back(world);
        while self.worlds.len() > history.max(1) {
            self.worlds.pop_front();
        }
    }

    /// Forgets transactions that wait, of which a block says that they need not.
    fn settle(&mut self, block: &Block) {
        for tx in &block.txs {
            self.pool.remove(tx.tx_hash());
            self.pool.forget_below(tx.signer(), tx.nonce().saturating_add(1));
        }
    }

    fn cut(&mut self, height: u64) {
        while self.head().number() > height {
            let Some(block) = self.blocks.pop() else { return };
            self.worlds.pop_back();
            self.numbers.remove(&block.hash());
            for tx in &block.txs {
                self.txs.remove(tx.tx_hash());
            }
        }
    }
}

/// The chain.
#[derive(Debug)]
pub struct Chain {
    data: Arc<RwLock<Data>>,
    writer: Mutex<Option<Store>>,
    events: broadcast::Sender<Event>,
    genesis: Genesis,
    remote: Option<Arc<Remote>>,
    history: usize,
    hold: Hold,
    execution_memory: Option<u64>,
    counts: Counts,
}

/// What was made since the chain was opened.
#[derive(Debug, Default)]
pub struct Counts {
    /// Blocks.
    pub blocks: AtomicU64,
    /// Transactions in them.
    pub transactions: AtomicU64,
    /// Gas that these used.
    pub gas: AtomicU64,
}

impl Chain {
    /// The rules.
    pub fn spec(&self) -> SpecId {
        self.genesis.spec
    }

    /// The settings of the EVM.
    pub fn rules(&self) -> CfgEnv {
        let mut rules = exec::rules(self.spec(), self.chain_id());
        rules.memory_limit = self.execution_memory.unwrap_or(rules.memory_limit);
        rules
    }

    /// Has executions whose memory is longer than this, in bytes, halt: not as the book says, where gas is the only limit.
    pub fn limit_memory(&mut self, bytes: u64) {
        self.execution_memory = Some(bytes);
    }

    /// What lets it stand still.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// What was made since it was opened.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The chain's id (EIP-155).
    pub fn chain_id(&self) -> u64 {
        self.genesis.chain_id
    }

    /// What readers see now. Let go of it soon: a block waits for it.
    pub fn read(&self) -> RwLockReadGuard<'_, Data> {
        self.data.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Data> {
        self.data.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Store>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Says the hashes of blocks, for `BLOCKHASH`.
    pub fn hashes(&self) -> Hashes {
        let (data, remote) = (Arc::downgrade(&self.data), self.remote.clone());
        Arc::new(move |number| {
            let Some(data) = data.upgrade() else { return B256::ZERO };
            let data = data.read().unwrap_or_else(PoisonError::into_inner);
            let (known, first) = (data.block(number).map(|block| block.hash()), data.first);
            drop(data);
            let asked =
                remote.as_ref().filter(|_| number < first).and_then(|remote| remote.block_hash(number));
            known.or(asked).unwrap_or_default()
        })
    }

    /// A database of `world`, to execute on.
    pub fn db(&self, world: World) -> Db {
        Db::new(world, self.hashes(), self.spec())
    }

    /// Lets a signed transaction in. With automine it is in a block when this returns.
    pub fn submit(&self, tx: Recovered<Tx>) -> Result<B256, TxError> {
        let mut store = self.lock();
        let hash = *tx.tx_hash();
        let automine = {
            let data = self.read();
            if data.txs.contains_key(&hash) {
                return Err(TxError::AlreadyKnown);
            }
            let header = block::begin(&data.head().header, &data.settings, self.spec(), now());
            let next = admit::Next {
                world: data.world(),
                block: block::environment(&header, self.spec()),
                spec: self.spec(),
                chain_id: self.chain_id(),
                now: data.settings.automine,
                impersonated: data.settings.may_send(tx.signer()),
            };
            admit::check(&tx, &next)?;
            data.settings.automine
        };
        self.write().pool.add(Arc::new(tx))?;
        // Nobody listens: nobody minds.
        let _ = self.events.send(Event::Waiting(hash));
        if automine {
            let ready =
                |chain: &Chain| -> Result<bool, TxError> { Ok(!chain.ready(chain.base_fee())?.is_empty()) };
            while ready(self)? {
                let (block, refused) = self.seal(&mut store, None)?;
                if let Some((_, refusal)) = refused.into_iter().find(|(refused, _)| *refused == hash) {
                    return Err(match refusal {
                        crate::exec::Refusal::Transaction(invalid) => TxError::Invalid(invalid),
                        other => TxError::Store(other.to_string()),
                    });
                }
                if block.txs.is_empty() {
                    break;
                }
            }
        }
        self.keep_waiting(&mut store, &hash)?;
        Ok(hash)
    }

    /// Writes down a transaction that waits for its block, before its sender is told that it does.
    fn keep_waiting(&self, store: &mut Option<Store>, hash: &B256) -> Result<(), ChainError> {
        let waiting = self.read().pool.get(hash).cloned();
        let (Some(store), Some(tx)) = (store, waiting) else { return Ok(()) };
        store.append(&Entry::waiting(&tx)).inspect_err(|_| drop(self.write().pool.remove(hash)))?;
        Ok(())
    }

    fn base_fee(&self) -> u64 {
        let data = self.read();
        let header = block::begin(&data.head().header, &data.settings, self.spec(), now());
        header.base_fee_per_gas.unwrap_or_default()
    }

    fn ready(&self, base_fee: u64) -> Result<Vec<Arc<Recovered<Tx>>>, StateError> {
        let data = self.read();
        let mut failed = Ok(());
        let ready = data.pool.ready(base_fee, |sender| {
            data.nonce(sender).unwrap_or_else(|error| {
                failed = Err(error);
                u64::MAX
            })
        });
        failed.map(|()| ready)
    }

    /// The block that would come now, and the state after it. Nothing changes.
    pub fn pending(&self) -> Result<(Block, World), StateError> {
        let made = self.next_block()?;
        Ok((made.block, made.db.world))
    }

    fn next_block(&self) -> Result<block::Made, StateError> {
        let (header, world) = {
            let data = self.read();
            let header = block::begin(&data.head().header, &data.settings, self.spec(), now());
            (header, data.world().clone())
        };
        let ready = self.ready(header.base_fee_per_gas.unwrap_or_default())?;
        block::make(self.db(world), header, ready, self.rules())
    }

    /// Adds `count` blocks, `apart` seconds from each other if that is said. Returns the newest.
    pub fn mine(&self, count: u64, apart: Option<u64>) -> Result<Arc<Block>, ChainError> {
        if count > BLOCKS_AT_ONCE_MAX {
            return Err(ChainError::TooMany(count));
        }
        let mut store = self.lock();
        for index in 0..count {
            self.seal(&mut store, apart.filter(|_| index > 0))?;
        }
        Ok(Arc::clone(self.read().head()))
    }

    #[allow(clippy::type_complexity)]
    fn seal(
        &self,
        store: &mut Option<Store>,
        apart: Option<u64>,
    ) -> Result<(Arc<Block>, Vec<(B256, crate::exec::Refusal)>), ChainError> {
        if let Some(apart) = apart {
            let mut data = self.write();
            data.settings.next_timestamp = Some(data.head().header.timestamp.saturating_add(apart));
        }
        let made = self.next_block()?;
        self.hold.pass()?;
        let block = Arc::new(made.block);
        let mut settings = self.read().settings.clone();
        settings.made(now());
        if let Some(store) = store {
            // Kept first, then seen: what a client was told is on disk.
            store.append(&Entry::block(&block, &made.db.changes))?;
            if settings != self.read().settings {
                store.append(&Entry::settings(&settings))?;
            }
        }
        let mut data = self.write();
        data.settings = settings;
        data.push(Arc::clone(&block), made.db.world, self.history);
        data.settle(&block);
        for (hash, _) in &made.refused {
            data.pool.remove(hash);
        }
        drop(data);
        if let Some(store) = store.as_mut().filter(|store| store.is_long()) {
            self.compact(store)?;
        }
        self.counts.blocks.fetch_add(1, Ordering::Relaxed);
        self.counts.transactions.fetch_add(block.txs.len() as u64, Ordering::Relaxed);
        self.counts.gas.fetch_add(block.header.gas_used, Ordering::Relaxed);
        let _ = self.events.send(Event::Block(Arc::clone(&block)));
        Ok((block, made.refused))
    }

    /// Changes accounts from outside of any transaction.
    pub fn change(&self, address: Address, edit: impl FnOnce(&mut Change)) -> Result<(), ChainError> {
        let mut store = self.lock();
        let mut change = self.read().world().unchanged(address)?;
        edit(&mut change);
        self.apply(&mut store, &[change])
    }

    /// Applies changes from outside of any transaction to the state now.
    pub fn change_all(&self, changes: &[Change]) -> Result<(), ChainError> {
        let mut store = self.lock();
        self.apply(&mut store, changes)
    }

    fn apply(&self, store: &mut Option<Store>, changes: &[Change]) -> Result<(), ChainError> {
        let mut world = self.read().world().clone();
        world.apply(changes)?;
        // The root is hashed here, outside of the readers' lock.
        world.root();
        if let Some(store) = store {
            store.append(&Entry::changes(changes))?;
        }
        if let Some(now) = self.write().worlds.back_mut() {
            *now = world;
        }
        Ok(())
    }

    /// Changes what the owner can set.
    pub fn set<T>(&self, edit: impl FnOnce(&mut Settings) -> T) -> Result<T, ChainError> {
        let mut store = self.lock();
        let mut settings = self.read().settings.clone();
        let result = edit(&mut settings);
        if let Some(store) = store.as_mut() {
            store.append(&Entry::settings(&settings))?;
        }
        self.write().settings = settings;
        Ok(result)
    }

    /// Says when the next block is. It must be after the newest.
    pub fn set_next_timestamp(&self, timestamp: u64) -> Result<(), ChainError> {
        let newest = self.read().head().header.timestamp;
        if timestamp <= newest {
            return Err(ChainError::Past(timestamp, newest));
        }
        self.set(|settings| settings.next_timestamp = Some(timestamp))
    }

    /// Takes a transaction out of the pool.
    pub fn drop_transaction(&self, hash: &B256) -> Result<Option<Arc<Recovered<Tx>>>, ChainError> {
        let mut store = self.lock();
        let dropped = self.write().pool.remove(hash);
        if let Some(store) = store.as_mut().filter(|_| dropped.is_some()) {
            store.append(&Entry::Dropped(*hash))?;
        }
        Ok(dropped)
    }

    /// Remembers this moment and returns its number.
    pub fn snapshot(&self) -> Result<u64, ChainError> {
        let mut store = self.lock();
        if let Some(store) = store.as_mut() {
            store.append(&Entry::Snapshot)?;
        }
        Ok(self.write().snapshot())
    }

    /// Comes back to a snapshot, which is used up, as are those after it. False when there is none with this number.
    pub fn revert(&self, id: u64) -> Result<bool, ChainError> {
        let mut store = self.lock();
        if !self.read().snapshots.iter().any(|snapshot| snapshot.id == id) {
            return Ok(false);
        }
        if let Some(store) = store.as_mut() {
            store.append(&Entry::Revert(id))?;
        }
        let mut data = self.write();
        data.pool.clear();
        Ok(data.revert(id))
    }

    /// Goes back to the first block, as it was, and forgets the rest.
    pub fn reset(&self) -> Result<(), ChainError> {
        let mut store = self.lock();
        let fresh = self.genesis.data(self.remote.as_ref())?;
        if let Some(store) = store.as_mut() {
            store.append(&Entry::Reset)?;
        }
        *self.write() = fresh;
        Ok(())
    }

    /// Brings what was written to the disk itself, so that a power cut does not lose it.
    pub fn sync(&self) -> Result<(), ChainError> {
        match self.lock().as_mut() {
            Some(store) => Ok(store.sync()?),
            None => Ok(()),
        }
    }
}

impl Data {
    fn snapshot(&mut self) -> u64 {
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            self.snapshots.remove(0);
        }
        let (height, world) = (self.head().number(), self.world().clone());
        self.snapshots.push(Snapshot { id, height, world, settings: self.settings.clone() });
        id
    }

    fn revert(&mut self, id: u64) -> bool {
        let Some(at) = self.snapshots.iter().position(|snapshot| snapshot.id == id) else { return false };
        let Some(snapshot) = self.snapshots.drain(at..).next() else { return false };
        self.cut(snapshot.height);
        // The state of that block may be too long ago, and the owner may have changed it since.
        self.worlds.pop_back();
        self.worlds.push_back(snapshot.world);
        self.settings = snapshot.settings;
        true
    }
}

/// The host's clock, in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
