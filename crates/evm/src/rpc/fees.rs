//! What transactions cost, and did.
use alloy_consensus::Transaction as _;
use alloy_eips::BlockNumberOrTag;
use alloy_primitives::{U64, U128};
use alloy_rpc_types_eth::FeeHistory;
use serde_json::json;

use super::calls::blob_fee;
use super::{Answer, Params, Rpc, RpcError, number};
use crate::chain::{Block, block, now};
use crate::hardfork;

/// The tip that is proposed, in wei per gas: any is enough on an empty chain, and wallets know this one.
pub(super) const TIP: u128 = 1_000_000_000;
/// Blocks of one answer (geth's `maxFeeHistory`).
const BLOCKS_MAX: u64 = 1024;
/// Percentiles of one answer (geth's `maxQueryLimit`).
const PERCENTILES_MAX: usize = 100;

impl Rpc {
    pub(super) fn fees(&self, method: &str, params: &Params) -> Option<Answer> {
        Some(match method {
            "eth_gasPrice" => Ok(json!(U128::from(self.gas_price()))),
            "eth_maxPriorityFeePerGas" => Ok(json!(U128::from(TIP))),
            "eth_blobBaseFee" => {
                let header = self.next_header();
                Ok(json!(U128::from(blob_fee(header.excess_blob_gas, self.chain.spec()))))
            }
            "eth_feeHistory" => self.fee_history(params),
            _ => return None,
        })
    }

    /// The header that the next block would have, without transactions.
    pub(super) fn next_header(&self) -> alloy_consensus::Header {
        let data = self.chain.read();
        block::begin(&data.head().header, &data.settings, self.chain.spec(), now())
    }

    /// A price that the next block takes, in wei per gas.
    pub(super) fn gas_price(&self) -> u128 {
        u128::from(self.next_header().base_fee_per_gas.unwrap_or_default()) + TIP
    }

    fn fee_history(&self, params: &Params) -> Answer {
        let count: u64 = params.get::<U64>(0)?.to();
        let newest: BlockNumberOrTag = params.get(1)?;
        let percentiles: Option<Vec<f64>> = params.opt(2)?;
        let rising = percentiles.iter().flatten().is_sorted();
        if !rising || percentiles.iter().flatten().any(|it| !(0.0..=100.0).contains(it)) {
            return Err(RpcError::params("invalid reward percentile: they go from 0 to 100 and rise"));
        }
        if percentiles.as_ref().is_some_and(|list| list.len() > PERCENTILES_MAX) {
            return Err(RpcError::params(format!(
                "invalid reward percentile: over the query limit {PERCENTILES_MAX}"
            )));
        }
        let next = self.next_header();
        let data = self.chain.read();
        let last = number(newest, data.first(), data.head().number());
        if last > data.head().number() {
            return Err(RpcError::params(format!(
                "request beyond head block: requested {last}, head {}",
                data.head().number()
            )));
        }
        let count = count.min(BLOCKS_MAX).min(last - data.first() + 1);
        let mut history = FeeHistory { oldest_block: (last + 1) - count, ..FeeHistory::default() };
        let blob_gas_max =
            hardfork::blobs(self.chain.spec()).map_or(0, |blobs| blobs.max_blob_gas_per_block());
        let ratio = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        for block in
            (history.oldest_block..=last).filter(|_| count > 0).filter_map(|number| data.block(number))
        {
            history.base_fee_per_gas.push(block.header.base_fee_per_gas.unwrap_or_default().into());
            history.gas_used_ratio.push(ratio(block.header.gas_used, block.header.gas_limit));
            history.base_fee_per_blob_gas.push(blob_fee(block.header.excess_blob_gas, self.chain.spec()));
            history
                .blob_gas_used_ratio
                .push(ratio(block.header.blob_gas_used.unwrap_or_default(), blob_gas_max));
            if let Some(percentiles) = percentiles.as_ref().filter(|list| !list.is_empty()) {
                history.reward.get_or_insert_default().push(rewards(block, percentiles));
            }
        }
        let after = data.block(last + 1).map_or(&next, |block| block.header.inner());
        history.base_fee_per_gas.push(after.base_fee_per_gas.unwrap_or_default().into());
        history.base_fee_per_blob_gas.push(blob_fee(after.excess_blob_gas, self.chain.spec()));
        Ok(json!(history))
    }
}

/// Tips at percentiles of a block's gas, in wei per gas.
fn rewards(block: &Block, percentiles: &[f64]) -> Vec<u128> {
    let base = block.header.base_fee_per_gas.unwrap_or_default();
    let mut tips: Vec<(u128, u64)> = block
        .txs
        .iter()
        .enumerate()
        .map(|(index, tx)| (tx.effective_tip_per_gas(base).unwrap_or_default(), block.gas_used(index)))
        .collect();
    tips.sort_unstable();
    percentiles
        .iter()
        .map(|percentile| {
            let until = block.header.gas_used as f64 * percentile / 100.0;
            let mut sum = 0_u64;
            let at = tips.iter().find(|(_, gas)| {
                sum = sum.saturating_add(*gas);
                sum as f64 >= until
            });
            at.or(tips.last()).map_or(0, |(tip, _)| *tip)
        })
        .collect()
}
