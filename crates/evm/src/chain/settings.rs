//! What the owner of a chain can set while it runs.
use std::collections::BTreeSet;

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};

/// How blocks are made and who may send without a signature. All of it outlives a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Gas of a block.
    pub gas_limit: u64,
    /// Who gets the fees.
    pub coinbase: Address,
    /// Wei per gas where the parent has no base fee.
    pub base_fee: u64,
    /// Wei per gas in the next block, whatever the parent says.
    pub next_base_fee: Option<u64>,
    /// `PREVRANDAO` of the next block.
    pub next_random: Option<B256>,
    /// The next block's time, in seconds since 1970.
    pub next_timestamp: Option<u64>,
    /// How far the chain's clock is ahead of the host's, in seconds.
    pub time_offset: i64,
    /// Seconds between blocks, whatever the clock says.
    pub timestamp_interval: Option<u64>,
    /// Each transaction gets a block at once.
    pub automine: bool,
    /// Seconds between blocks that come by themselves.
    pub interval: Option<u64>,
    /// Accounts that may send without a signature.
    pub impersonated: BTreeSet<Address>,
    /// Every account may.
    pub impersonate_all: bool,
}

impl Settings {
    /// The time of a block after one at `parent`, when the host's clock says `now`. Time only goes forward (yellow paper
    /// §4.4.4, equation 62).
    pub fn timestamp(&self, parent: u64, now: u64) -> u64 {
        let wanted = match (self.next_timestamp, self.timestamp_interval) {
            (Some(next), _) => next,
            (None, Some(interval)) => parent.saturating_add(interval),
            (None, None) => self.clock(now),
        };
        wanted.max(parent.saturating_add(1))
    }

    /// Whether `address` may send without a signature.
    pub fn may_send(&self, address: Address) -> bool {
        self.impersonate_all || self.impersonated.contains(&address)
    }

    /// The chain's clock when the host's says `now`.
    pub fn clock(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.time_offset)
    }

    /// Forgets what was said about the one block that is made now. Its time, if it was said, sets the clock.
    pub fn made(&mut self, now: u64) {
        if let Some(next) = self.next_timestamp.take() {
            self.time_offset = i64::try_from(i128::from(next) - i128::from(now)).unwrap_or(i64::MAX);
        }
        self.next_base_fee = None;
        self.next_random = None;
    }
}
