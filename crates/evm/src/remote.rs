//! The state of a remote chain at one block, by JSON-RPC, each answer asked for once.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U64, U256, keccak256};
use alloy_rpc_types_eth::Header;
use revm::bytecode::Bytecode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::state::{Account, StateError};
use crate::trie::Trie;

/// How long the remote chain may take for one answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of one answer.
const ANSWER_MAX: u64 = 32 << 20;
/// Accounts and slots that are remembered; beyond, they are asked for again.
const CACHE_MAX: usize = 1 << 20;

/// A block of a remote chain.
#[derive(Debug)]
pub struct Remote {
    url: String,
    agent: ureq::Agent,
    /// The block that everything is read at.
    block: u64,
    accounts: Mutex<HashMap<Address, Option<Account>>>,
    slots: Mutex<HashMap<(Address, U256), U256>>,
}

impl Remote {
    /// Looks at the chain at `url`, at `block` or its newest one. Returns its id and the block's header too.
    pub fn open(url: &str, block: Option<u64>) -> Result<(Remote, u64, Header), StateError> {
        let agent = ureq::Agent::new_with_config(
            ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build(),
        );
        let mut remote = Remote {
            url: url.to_string(),
            agent,
            block: 0,
            accounts: Mutex::default(),
            slots: Mutex::default(),
        };
        let chain: U64 = remote.ask("eth_chainId", json!([]))?;
        let tag = block.map_or(json!("latest"), |number| json!(U64::from(number)));
        let header: Option<Header> = remote.ask("eth_getBlockByNumber", json!([tag, false]))?;
        let header = header.ok_or_else(|| StateError(format!("{url} has no block {tag}")))?;
        remote.block = header.number;
        Ok((remote, chain.to(), header))
    }

    fn ask<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T, StateError> {
        let failed = |what: String| StateError(format!("{method} at {}: {what}", self.url));
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let mut answer = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json")
            .send(request)
            .map_err(|error| failed(error.to_string()))?;
        let text = answer
            .body_mut()
            .with_config()
            .limit(ANSWER_MAX)
            .read_to_vec()
            .map_err(|error| failed(error.to_string()))?;
        let mut answer: Value = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        if let Some(error) = answer.get("error") {
            return Err(failed(error.to_string()));
        }
        serde_json::from_value(answer["result"].take()).map_err(|error| failed(error.to_string()))
    }

    fn at(&self) -> Value {
        json!(U64::from(self.block))
    }

    /// The account at `address`.
    pub fn account(&self, address: Address) -> Result<Option<Account>, StateError> {
        let known = self.accounts.lock().unwrap_or_else(PoisonError::into_inner).get(&address).cloned();
        if let Some(account) = known {
            return Ok(account);
        }
        let balance: U256 = self.ask("eth_getBalance", json!([address, self.at()]))?;
        let nonce: U64 = self.ask("eth_getTransactionCount", json!([address, self.at()]))?;
        let code: Bytes = self.ask("eth_getCode", json!([address, self.at()]))?;
        let there = !balance.is_zero() || !nonce.is_zero() || !code.is_empty();
        let account = there.then(|| Account {
            address,
            nonce: nonce.to(),
            balance,
            code_hash: if code.is_empty() { KECCAK256_EMPTY } else { keccak256(&code) },
            code: Bytecode::new_raw_checked(code.clone()).unwrap_or_else(|_| Bytecode::new_legacy(code)),
            storage: Trie::default(),
            local: false,
        });
        keep(&self.accounts, address, account.clone());
        Ok(account)
    }

    /// What slot `key` of `address` holds.
    pub fn slot(&self, address: Address, key: U256) -> Result<U256, StateError> {
        let known = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(&(address, key)).copied();
        if let Some(value) = known {
            return Ok(value);
        }
        let value: B256 = self.ask("eth_getStorageAt", json!([address, key, self.at()]))?;
        keep(&self.slots, (address, key), value.into());
        Ok(value.into())
    }

    /// The hash of one of the blocks before.
    pub fn block_hash(&self, number: u64) -> Option<B256> {
        let header: Option<Header> =
            self.ask("eth_getBlockByNumber", json!([U64::from(number), false])).ok()?;
        header.map(|header| header.hash)
    }
}

fn keep<K: Eq + std::hash::Hash, V>(cache: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() >= CACHE_MAX {
        cache.clear();
    }
    cache.insert(key, value);
}
