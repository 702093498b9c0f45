//! Filters that clients poll (`eth_newFilter` and its kin).
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use alloy_primitives::{B256, U256};
use alloy_rpc_types_eth::{Filter, FilterBlockOption};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use super::{Answer, Params, Rpc, RpcError, logs_of};
use crate::chain::Event;

/// A filter that nobody polls for so long goes (geth's `filters.Config.Timeout`).
const IDLE: Duration = Duration::from_secs(300);
/// Filters at one time.
const FILTERS_MAX: usize = 4096;

#[derive(Debug)]
enum Kind {
    Logs(Box<Filter>),
    Blocks,
    Waiting(Receiver<Event>),
}

#[derive(Debug)]
struct Polled {
    kind: Kind,
    /// The first block that was not told of.
    next: u64,
    last: Instant,
}

/// All filters.
#[derive(Debug, Default)]
pub struct Filters {
    polled: Mutex<(u64, HashMap<U256, Polled>)>,
}

impl Rpc {
    pub(super) fn polling(&self, method: &str, params: &Params) -> Option<Answer> {
        Some(match method {
            "eth_newFilter" => {
                self.filter(params, 0).and_then(|filter| self.new_filter(Kind::Logs(Box::new(filter))))
            }
            "eth_newBlockFilter" => self.new_filter(Kind::Blocks),
            "eth_newPendingTransactionFilter" => self.new_filter(Kind::Waiting(self.chain.events())),
            "eth_getFilterChanges" => params.get(0).and_then(|id| self.filter_changes(id)),
            "eth_getFilterLogs" => params.get(0).and_then(|id| self.filter_logs(id)),
            "eth_uninstallFilter" => params.get(0).map(|id: U256| {
                let mut filters = self.filters.polled.lock().unwrap_or_else(PoisonError::into_inner);
                json!(filters.1.remove(&id).is_some())
            }),
            _ => return None,
        })
    }

    fn new_filter(&self, kind: Kind) -> Answer {
        let next = self.chain.read().head().number().saturating_add(1);
        let mut filters = self.filters.polled.lock().unwrap_or_else(PoisonError::into_inner);
        filters.1.retain(|_, filter| filter.last.elapsed() < IDLE);
        if filters.1.len() >= FILTERS_MAX {
            return Err(RpcError::server(format!("more than {FILTERS_MAX} filters: uninstall some")));
        }
        filters.0 += 1;
        let id = U256::from(filters.0);
        filters.1.insert(id, Polled { kind, next, last: Instant::now() });
        Ok(json!(id))
    }

    fn filter_changes(&self, id: U256) -> Answer {
        let mut filters = self.filters.polled.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = filters.1.get_mut(&id).ok_or_else(no_filter)?;
        filter.last = Instant::now();
        let data = self.chain.read();
        // After a revert the chain is shorter, and what comes then is new.
        let head = data.head().number();
        let from = filter.next.min(head.saturating_add(1));
        filter.next = head.saturating_add(1);
        let blocks = (from..=head).filter_map(|number| data.block(number));
        Ok(match &mut filter.kind {
            Kind::Blocks => blocks.map(|block| json!(block.hash())).collect(),
            Kind::Logs(filter) => {
                let (low, high) = match filter.block_option {
                    FilterBlockOption::Range { from_block, to_block } => (
                        from_block.and_then(|tag| tag.as_number()).unwrap_or_default(),
                        to_block.and_then(|tag| tag.as_number()).unwrap_or(u64::MAX),
                    ),
                    FilterBlockOption::AtBlockHash(_) => (0, u64::MAX),
                };
                blocks
                    .filter(|block| (low..=high).contains(&block.number()))
                    .flat_map(|block| logs_of(block, filter))
                    .map(|log| json!(log))
                    .collect()
            }
            Kind::Waiting(events) => waiting(events).into_iter().map(|hash| json!(hash)).collect(),
        })
    }

    fn filter_logs(&self, id: U256) -> Answer {
        let filter = {
            let mut filters = self.filters.polled.lock().unwrap_or_else(PoisonError::into_inner);
            let polled = filters.1.get_mut(&id).ok_or_else(no_filter)?;
            polled.last = Instant::now();
            match &polled.kind {
                Kind::Logs(filter) => Filter::clone(filter),
                _ => return Err(RpcError::server("filter not found: it is not one of logs")),
            }
        };
        Ok(Value::from_iter(self.find_logs(&filter)?.into_iter().map(|log| json!(log))))
    }
}

fn no_filter() -> RpcError {
    RpcError::server("filter not found")
}

/// Hashes that came since the last time. What is too long ago is lost.
fn waiting(events: &mut Receiver<Event>) -> Vec<B256> {
    let mut hashes = Vec::new();
    loop {
        match events.try_recv() {
            Ok(Event::Waiting(hash)) => hashes.push(hash),
            Ok(Event::Block(_)) | Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return hashes,
        }
    }
}
