//! How a chain begins: its first block, its accounts, its rules.
use std::sync::Arc;

use alloy_consensus::{Header, Sealable, Sealed};
use alloy_eips::{eip2935, eip4788};
use alloy_primitives::{Address, B256, Bytes, U256};
use revm::primitives::hardfork::SpecId;
use serde::{Deserialize, Serialize};

use super::{Block, Data, Settings, block};
use crate::hardfork;
use crate::remote::Remote;
use crate::state::{Change, StateError, World};

/// What never changes in the life of a chain. The store begins with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// The chain's id (EIP-155).
    pub chain_id: u64,
    /// The fork whose rules hold from the first block on.
    #[serde(with = "fork")]
    pub spec: SpecId,
    /// The first block's time, in seconds since 1970.
    pub timestamp: u64,
    /// Accounts that have something from the beginning, and how much, in wei.
    pub accounts: Vec<(Address, U256)>,
    /// What the owner can change later.
    pub settings: Settings,
    /// The block of a remote chain that this one goes on from, and where that is.
    pub remote: Option<(String, Box<Header>)>,
}

mod fork {
    use revm::primitives::hardfork::SpecId;
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::hardfork;

    pub(super) fn serialize<S: Serializer>(spec: &SpecId, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(hardfork::name(*spec))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SpecId, D::Error> {
        hardfork::parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl Genesis {
    /// The changes that make the first state.
    fn changes(&self) -> Vec<Change> {
        let mut changes: Vec<Change> = self
            .accounts
            .iter()
            .map(|(address, balance)| Change { address: *address, balance: *balance, ..Change::default() })
            .collect();
        let mut contract = |since, address, code: &Bytes| {
            // A remote chain has its own.
            if self.spec.is_enabled_in(since) && self.remote.is_none() {
                let code = code.clone();
                changes.push(Change { address, nonce: 1, has_code: true, code, ..Change::default() });
            }
        };
        contract(SpecId::CANCUN, eip4788::BEACON_ROOTS_ADDRESS, &eip4788::BEACON_ROOTS_CODE);
        contract(SpecId::PRAGUE, eip2935::HISTORY_STORAGE_ADDRESS, &eip2935::HISTORY_STORAGE_CODE);
        changes
    }

    /// The remote chain, at the block that this one goes on from.
    pub(super) fn open_remote(&self) -> Result<Option<Arc<Remote>>, StateError> {
        let Some((url, header)) = &self.remote else { return Ok(None) };
        Ok(Some(Arc::new(Remote::open(url, Some(header.number))?.0)))
    }

    /// The chain at its begin.
    pub(super) fn data(&self, remote: Option<&Arc<Remote>>) -> Result<Data, StateError> {
        let mut world = remote.map_or_else(World::default, |remote| World::of_remote(Arc::clone(remote)));
        let mut changes = self.changes();
        if remote.is_some() {
            for change in &mut changes {
                *change = Change { balance: change.balance, ..world.unchanged(change.address)? };
            }
        }
        world.apply(&changes)?;
        let header = match &self.remote {
            Some((_, header)) => Header::clone(header).seal_slow(),
            None => self.header(&world),
        };
        let mut data = Data {
            blocks: Vec::new(),
            first: header.number,
            worlds: Default::default(),
            numbers: Default::default(),
            txs: Default::default(),
            pool: Default::default(),
            settings: self.settings.clone(),
            snapshots: Vec::new(),
            next_snapshot: 0,
        };
        data.push(Arc::new(Block { header, txs: Vec::new(), receipts: Vec::new() }), world, 1);
        Ok(data)
    }

    fn header(&self, world: &World) -> Sealed<Header> {
        // The rules of a fork's headers are in one place: the first block is one after nothing.
        let nothing = Header { timestamp: self.timestamp.saturating_sub(1), ..Header::default() }.seal_slow();
        let settings = Settings {
            next_timestamp: Some(self.timestamp),
            next_base_fee: Some(self.settings.base_fee),
            next_random: Some(B256::ZERO),
            ..self.settings.clone()
        };
        let mut header = block::begin(&nothing, &settings, self.spec, self.timestamp);
        header.parent_hash = B256::ZERO;
        header.number = 0;
        header.excess_blob_gas = hardfork::blobs(self.spec).map(|_| 0);
        header.state_root = world.root();
        header.seal_slow()
    }
}
