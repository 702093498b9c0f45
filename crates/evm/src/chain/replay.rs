//! A chain and its store: opening one again, and writing it anew when its log has become long.
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::broadcast;

use super::{Chain, ChainError, Data, EVENTS_BEHIND_MAX, Genesis};
use crate::remote::Remote;
use crate::store::{Entry, Store, StoreError};

impl Chain {
    /// The chain in `dir`, or a new one that begins with `genesis`. Without a directory it lives in memory. The states
    /// after the newest `history` blocks are kept.
    pub fn open(
        genesis: Genesis,
        dir: Option<&Path>,
        history: usize,
        mut remote: Option<Arc<Remote>>,
    ) -> Result<Chain, ChainError> {
        let (mut found, mut data) = (None, None);
        let mut store = None;
        if let Some(dir) = dir {
            store = Some(Store::open(dir, |entry| {
                if let Entry::Genesis(text) = &entry {
                    let kept: Genesis = serde_json::from_slice(text)
                        .map_err(|error| StoreError::Content(format!("its first record: {error}")))?;
                    remote = kept.open_remote().map_err(|error| StoreError::Content(error.to_string()))?;
                    data = Some(
                        kept.data(remote.as_ref()).map_err(|error| StoreError::Content(error.to_string()))?,
                    );
                    found = Some(kept);
                    return Ok(());
                }
                let (Some(genesis), Some(data)) = (&found, &mut data) else {
                    return Err(StoreError::Content("it does not begin with the chain's first block".into()));
                };
                data.replay(entry, genesis, history, remote.as_ref())
            })?);
        }
        let fresh = found.is_none();
        let genesis = found.unwrap_or(genesis);
        let data = match data {
            Some(data) => data,
            None => genesis.data(remote.as_ref())?,
        };
        if let Some(store) = store.as_mut().filter(|_| fresh) {
            store.append(&Entry::genesis(&genesis))?;
        }
        let (events, _) = broadcast::channel(EVENTS_BEHIND_MAX);
        Ok(Chain {
            data: Arc::new(RwLock::new(data)),
            writer: Mutex::new(store),
            events,
            genesis,
            remote,
            history,
            hold: Default::default(),
            execution_memory: None,
            counts: Default::default(),
        })
    }

    /// The chain's begin.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Writes the log anew: blocks as they are, and one state, the newest. With snapshots it stays as it is, since only the
    /// whole log leads to them.
    pub(super) fn compact(&self, store: &mut Store) -> Result<(), ChainError> {
        let data = self.read();
        if !data.snapshots.is_empty() {
            store.grown();
            return Ok(());
        }
        let (blocks, world, settings) = (data.blocks.clone(), data.world().clone(), data.settings.clone());
        let id = data.next_snapshot;
        let waiting: Vec<_> = data.pool.iter().map(|(_, _, tx)| Arc::clone(tx)).collect();
        drop(data);
        store.rewrite(|log| {
            log.append(&Entry::genesis(&self.genesis))?;
            for block in blocks.iter().skip(1) {
                log.append(&Entry::block(block, &[]))?;
            }
            log.append(&Entry::Fresh(id))?;
            for change in world.dump() {
                // A contract may have millions of slots; a record is a bounded piece of them.
                let mut rest = change.slots.as_slice();
                let mut piece = crate::state::Change { slots: Vec::new(), ..change.clone() };
                loop {
                    let (now, later) = rest.split_at(rest.len().min(SLOTS_PER_RECORD));
                    piece.slots = now.to_vec();
                    log.append(&Entry::changes(std::slice::from_ref(&piece)))?;
                    if later.is_empty() {
                        break;
                    }
                    rest = later;
                    piece = crate::state::Change { fresh: false, has_code: false, ..piece };
                }
            }
            for tx in &waiting {
                log.append(&Entry::waiting(tx))?;
            }
            log.append(&Entry::settings(&settings))
        })?;
        Ok(())
    }
}

/// Slots of one record when a log is written anew: about 2 MiB.
const SLOTS_PER_RECORD: usize = 32_768;

impl Data {
    /// Does again what an entry of the log says.
    fn replay(
        &mut self,
        entry: Entry,
        genesis: &Genesis,
        history: usize,
        remote: Option<&Arc<Remote>>,
    ) -> Result<(), StoreError> {
        let failed = |error: crate::state::StateError| StoreError::Content(error.to_string());
        match entry {
            Entry::Genesis(_) => return Err(StoreError::Content("it begins twice".into())),
            Entry::Block { header, txs, receipts, changes } => {
                let block = Entry::read_block(&header, &txs, &receipts)?;
                if block.header.parent_hash != self.head().hash() {
                    return Err(StoreError::Content(format!(
                        "block {} does not follow block {}",
                        block.number(),
                        self.head().number()
                    )));
                }
                let mut world = self.world().clone();
                world.apply(&changes).map_err(failed)?;
                self.settle(&block);
                self.push(Arc::new(block), world, history);
            }
            Entry::Changes(changes) => {
                let mut world = self.world().clone();
                // The old clone would make the trie copy each path.
                self.worlds.pop_back();
                let applied = world.apply(&changes).map_err(failed);
                self.worlds.push_back(world);
                applied?;
            }
            Entry::Settings(text) => {
                self.settings = serde_json::from_slice(&text)
                    .map_err(|error| StoreError::Content(format!("its settings: {error}")))?;
            }
            Entry::Snapshot => {
                self.snapshot();
            }
            Entry::Revert(id) => {
                self.pool.clear();
                self.revert(id);
            }
            // It was let in by the rules of then, and its block will say whether it still may.
            Entry::Waiting(sent) => drop(self.pool.add(sent.read()?.into())),
            Entry::Dropped(hash) => drop(self.pool.remove(&hash)),
            Entry::Reset => *self = genesis.data(remote).map_err(failed)?,
            Entry::Fresh(id) => {
                // States before this one are not in the log: what they would be is what the genesis says, which is wrong.
                let empty = remote.map_or_else(Default::default, |remote| {
                    crate::state::World::of_remote(Arc::clone(remote))
                });
                self.worlds.clear();
                self.worlds.push_back(empty);
                self.next_snapshot = id;
            }
        }
        Ok(())
    }
}
