//! Transactions that wait for a block, by sender and nonce.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use alloy_consensus::Transaction;
use alloy_consensus::transaction::Recovered;
use alloy_primitives::{Address, B256};

use super::{Tx, TxError};

/// Transactions of all senders that wait at one time.
const WAITING_MAX: usize = 16_384;
/// Transactions of one sender that wait at one time.
const WAITING_PER_SENDER_MAX: usize = 2_048;
/// How much more a transaction must pay, in percent, to replace another one with its nonce (geth's `PriceBump`).
const BUMP: u128 = 10;

#[derive(Clone, Debug)]
struct Waiting {
    tx: Arc<Recovered<Tx>>,
    arrival: u64,
}

/// The pool.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    senders: BTreeMap<Address, BTreeMap<u64, Waiting>>,
    hashes: HashMap<B256, (Address, u64)>,
    arrivals: u64,
}

impl Pool {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The transaction with this hash.
    pub fn get(&self, hash: &B256) -> Option<&Arc<Recovered<Tx>>> {
        let (sender, nonce) = self.hashes.get(hash)?;
        Some(&self.senders.get(sender)?.get(nonce)?.tx)
    }

    /// Takes a transaction in. One with the same sender and nonce goes, if this one pays enough more.
    pub fn add(&mut self, tx: Arc<Recovered<Tx>>) -> Result<(), TxError> {
        let hash = *tx.tx_hash();
        if self.hashes.contains_key(&hash) {
            return Err(TxError::AlreadyKnown);
        }
        let sender = self.senders.entry(tx.signer()).or_default();
        if let Some(old) = sender.get(&tx.nonce()) {
            let enough = |new: u128, old: u128| new >= old.saturating_add(old.saturating_mul(BUMP) / 100);
            let tip = |tx: &Tx| tx.max_priority_fee_per_gas().unwrap_or(tx.max_fee_per_gas());
            if !enough(tx.max_fee_per_gas(), old.tx.max_fee_per_gas()) || !enough(tip(&tx), tip(&old.tx)) {
                return Err(TxError::ReplacementUnderpriced);
            }
            self.hashes.remove(old.tx.tx_hash());
        } else if self.hashes.len() >= WAITING_MAX || sender.len() >= WAITING_PER_SENDER_MAX {
            if sender.is_empty() {
                self.senders.remove(&tx.signer());
            }
            return Err(TxError::PoolFull);
        }
        self.hashes.insert(hash, (tx.signer(), tx.nonce()));
        self.arrivals += 1;
        sender.insert(tx.nonce(), Waiting { tx, arrival: self.arrivals });
        Ok(())
    }

    /// Takes a transaction out.
    pub fn remove(&mut self, hash: &B256) -> Option<Arc<Recovered<Tx>>> {
        let (address, nonce) = self.hashes.remove(hash)?;
        let sender = self.senders.get_mut(&address)?;
        let waiting = sender.remove(&nonce);
        if sender.is_empty() {
            self.senders.remove(&address);
        }
        waiting.map(|waiting| waiting.tx)
    }

    /// Forgets what a sender's account has gone past.
    pub fn forget_below(&mut self, sender: Address, nonce: u64) {
        let stale: Vec<B256> = self
            .senders
            .get(&sender)
            .into_iter()
            .flat_map(|waiting| waiting.range(..nonce))
            .map(|(_, waiting)| *waiting.tx.tx_hash())
            .collect();
        for hash in &stale {
            self.remove(hash);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Pool { arrivals: self.arrivals, ..Pool::default() };
    }

    /// The nonce after the transactions of `sender` that follow `nonce` without a gap.
    pub fn next_nonce(&self, sender: Address, nonce: u64) -> u64 {
        let waiting = self.senders.get(&sender);
        (nonce..u64::MAX)
            .find(|next| !waiting.is_some_and(|waiting| waiting.contains_key(next)))
            .unwrap_or(nonce)
    }

    /// What could go into a block now, best payers first, each sender's in order of their nonces. `nonce` says an account's.
    pub fn ready(&self, base_fee: u64, mut nonce: impl FnMut(Address) -> u64) -> Vec<Arc<Recovered<Tx>>> {
        type Candidate<'a> = (u128, Reverse<u64>, Address, u64);
        let candidate = |sender: Address, nonce: u64| -> Option<Candidate<'_>> {
            let waiting = self.senders.get(&sender)?.get(&nonce)?;
            let tip = waiting.tx.effective_tip_per_gas(base_fee)?;
            Some((tip, Reverse(waiting.arrival), sender, nonce))
        };
        let mut heads: BinaryHeap<Candidate<'_>> =
            self.senders.keys().filter_map(|sender| candidate(*sender, nonce(*sender))).collect();
        let mut ready = Vec::new();
        while let Some((_, _, sender, nonce)) = heads.pop() {
            if let Some(waiting) = self.senders.get(&sender).and_then(|waiting| waiting.get(&nonce)) {
                ready.push(Arc::clone(&waiting.tx));
            }
            heads.extend(nonce.checked_add(1).and_then(|next| candidate(sender, next)));
        }
        ready
    }

    /// Everything that waits, by sender and nonce.
    pub fn iter(&self) -> impl Iterator<Item = (&Address, u64, &Arc<Recovered<Tx>>)> {
        self.senders.iter().flat_map(|(sender, waiting)| {
            waiting.iter().map(move |(nonce, waiting)| (sender, *nonce, &waiting.tx))
        })
    }
}
