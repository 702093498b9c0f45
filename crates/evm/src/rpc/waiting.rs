//! What waits for a block (`txpool_*`).
use std::collections::{BTreeMap, HashMap};

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, U64};
use serde_json::{Map, Value, json};

use super::{Answer, Params, Rpc, RpcError, answers};
use crate::chain::Tx;

impl Rpc {
    pub(super) fn waiting(&self, method: &str, params: &Params) -> Option<Answer> {
        let shown = |tx: &alloy_consensus::transaction::Recovered<Tx>| json!(answers::waiting(tx));
        Some(match method {
            "txpool_status" => self.sorted(|_| Value::Null).map(|(pending, queued)| {
                let count = |part: &BTreeMap<Address, Map<String, Value>>| {
                    json!(U64::from(part.values().map(Map::len).sum::<usize>()))
                };
                json!({ "pending": count(&pending), "queued": count(&queued) })
            }),
            "txpool_content" => {
                self.sorted(shown).map(|(pending, queued)| json!({ "pending": pending, "queued": queued }))
            }
            "txpool_contentFrom" => params.get(0).and_then(|from: Address| {
                let (mut pending, mut queued) = self.sorted(shown)?;
                let of =
                    |part: &mut BTreeMap<Address, Map<String, Value>>| part.remove(&from).unwrap_or_default();
                Ok(json!({ "pending": of(&mut pending), "queued": of(&mut queued) }))
            }),
            "txpool_inspect" => self
                .sorted(|tx| {
                    let to = tx.to().map_or_else(|| "contract creation".to_string(), |to| to.to_string());
                    json!(format!(
                        "{to}: {} wei + {} gas × {} wei",
                        tx.value(),
                        tx.gas_limit(),
                        tx.max_fee_per_gas()
                    ))
                })
                .map(|(pending, queued)| json!({ "pending": pending, "queued": queued })),
            "eth_pendingTransactions" => {
                Ok(self.chain.read().pool.iter().map(|(_, _, tx)| shown(tx)).collect())
            }
            _ => return None,
        })
    }

    /// Transactions by sender and nonce: those that follow their account's nonce, and those behind a gap.
    #[allow(clippy::type_complexity)]
    fn sorted(
        &self,
        say: impl Fn(&alloy_consensus::transaction::Recovered<Tx>) -> Value,
    ) -> Result<(BTreeMap<Address, Map<String, Value>>, BTreeMap<Address, Map<String, Value>>), RpcError>
    {
        let data = self.chain.read();
        let (mut pending, mut queued) = (BTreeMap::new(), BTreeMap::new());
        let mut next = HashMap::new();
        for (sender, nonce, tx) in data.pool.iter() {
            let expected = match next.get(sender) {
                Some(next) => *next,
                None => data.pool.next_nonce(*sender, data.nonce(*sender)?),
            };
            next.insert(*sender, expected);
            let part = if nonce < expected { &mut pending } else { &mut queued };
            let of_sender: &mut Map<String, Value> = part.entry(*sender).or_default();
            of_sender.insert(nonce.to_string(), say(tx));
        }
        Ok((pending, queued))
    }
}
