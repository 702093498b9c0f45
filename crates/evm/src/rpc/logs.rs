//! Logs by filter.
use std::sync::Arc;

use alloy_rpc_types_eth::{Filter, FilterBlockOption, Log};
use serde_json::json;

use super::error::{LIMIT, NOT_FOUND};
use super::{Answer, Params, Rpc, RpcError, answers, number};
use crate::chain::Block;

/// Addresses or topics at one place of a filter (geth's `maxAddresses` and more).
const CHOICES_MAX: usize = 1000;

impl Rpc {
    pub(super) fn logs(&self, method: &str, params: &Params) -> Option<Answer> {
        (method == "eth_getLogs").then(|| {
            let filter = self.filter(params, 0)?;
            Ok(json!(self.find_logs(&filter)?))
        })
    }

    /// Reads a filter.
    pub(super) fn filter(&self, params: &Params, index: usize) -> Result<Filter, RpcError> {
        let filter: Filter = params.opt(index)?.unwrap_or_default();
        if filter.address.len() > CHOICES_MAX || filter.topics.iter().any(|topic| topic.len() > CHOICES_MAX) {
            return Err(RpcError::params(format!(
                "more than {CHOICES_MAX} addresses or topics at one place"
            )));
        }
        Ok(filter)
    }

    /// Every log that a filter lets through.
    pub(super) fn find_logs(&self, filter: &Filter) -> Result<Vec<Log>, RpcError> {
        let blocks: Vec<Arc<Block>> = {
            let data = self.chain.read();
            match filter.block_option {
                FilterBlockOption::AtBlockHash(hash) => {
                    let unknown = || RpcError::new(NOT_FOUND, format!("unknown block {hash}"));
                    vec![Arc::clone(data.block_by_hash(&hash).ok_or_else(unknown)?)]
                }
                FilterBlockOption::Range { from_block, to_block } => {
                    let (first, head) = (data.first(), data.head().number());
                    let from = from_block.map_or(head, |tag| number(tag, first, head));
                    let to = to_block.map_or(head, |tag| number(tag, first, head));
                    if from > to && from_block.is_some() && to_block.is_some() {
                        return Err(RpcError::params(format!(
                            "invalid block range params: from {from} to {to}"
                        )));
                    }
                    (from.max(first)..=to.min(head))
                        .filter_map(|number| data.block(number).cloned())
                        .collect()
                }
            }
        };
        let mut found = Vec::new();
        for block in blocks {
            found.extend(logs_of(&block, filter));
            if found.len() > self.limits.logs {
                return Err(RpcError::new(
                    LIMIT,
                    format!("query returned more than {} results: ask for fewer blocks", self.limits.logs),
                ));
            }
        }
        Ok(found)
    }
}

/// The logs of one block that a filter lets through, whatever blocks it asks for.
pub fn logs_of(block: &Block, filter: &Filter) -> Vec<Log> {
    if !filter.matches_bloom(block.header.logs_bloom) {
        return Vec::new();
    }
    let mut logs = answers::logs(block, None);
    logs.retain(|log| filter.matches(&log.inner));
    logs
}
