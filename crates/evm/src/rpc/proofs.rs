//! Proofs of accounts and slots against a state root (EIP-1186).
use alloy_primitives::{Address, B256, KECCAK256_EMPTY, U256};
use alloy_rpc_types_eth::{EIP1186AccountProofResponse, EIP1186StorageProof};
use alloy_trie::EMPTY_ROOT_HASH;
use serde_json::json;

use super::chain_data::slot;
use super::{Answer, Params, Rpc, RpcError};
use crate::state::slot_key;

/// Slots of one proof.
const SLOTS_MAX: usize = 1024;

impl Rpc {
    pub(super) fn proofs(&self, method: &str, params: &Params) -> Option<Answer> {
        (method == "eth_getProof").then(|| self.proof(params))
    }

    fn proof(&self, params: &Params) -> Answer {
        let (address, keys): (Address, Vec<String>) = (params.get(0)?, params.get(1)?);
        if keys.len() > SLOTS_MAX {
            return Err(RpcError::params(format!(
                "{} slots are more than one proof has, which is {SLOTS_MAX}",
                keys.len()
            )));
        }
        let view = self.view(params.opt(2)?)?;
        let account = view.world.account(address)?;
        let mut storage_proof = Vec::with_capacity(keys.len());
        for text in keys {
            let key = slot(text.clone())?;
            let storage = account.as_ref().map(|account| &account.storage);
            storage_proof.push(EIP1186StorageProof {
                // The key comes back as it was written: 32 bytes, or a quantity.
                key: if text.len() == 66 { B256::from(key).into() } else { key.into() },
                value: view.world.slot(address, key)?,
                proof: storage.map(|storage| storage.prove(&slot_key(key))).unwrap_or_default(),
            });
        }
        Ok(json!(EIP1186AccountProofResponse {
            address,
            balance: account.as_ref().map_or(U256::ZERO, |account| account.balance),
            code_hash: account.as_ref().map_or(KECCAK256_EMPTY, |account| account.code_hash),
            nonce: account.as_ref().map_or(0, |account| account.nonce),
            storage_hash: account.as_ref().map_or(EMPTY_ROOT_HASH, |account| account.storage.root()),
            account_proof: view.world.prove(address),
            storage_proof,
        }))
    }
}
