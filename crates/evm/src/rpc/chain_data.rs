//! Methods that say what is on the chain.
use std::sync::Arc;

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256, Bytes, U64, U256, hex, keccak256};
use serde_json::{Value, json};

use super::{Answer, Params, Rpc, RpcError, answers};
use crate::chain::Block;

/// The name in `web3_clientVersion`.
pub(super) const CLIENT: &str = concat!("viv-evm/v", env!("CARGO_PKG_VERSION"), "/linux/rust");

/// A number that clients write as a quantity.
pub(super) fn quantity(number: u64) -> Value {
    json!(U64::from(number))
}

impl Rpc {
    pub(super) fn chain_data(&self, method: &str, params: &Params) -> Option<Answer> {
        Some(match method {
            "eth_chainId" => Ok(quantity(self.chain.chain_id())),
            "net_version" => Ok(json!(self.chain.chain_id().to_string())),
            "net_listening" => Ok(json!(true)),
            "net_peerCount" => Ok(quantity(0)),
            "web3_clientVersion" => Ok(json!(CLIENT)),
            "web3_sha3" => params.get(0).map(|bytes: Bytes| json!(keccak256(bytes))),
            "rpc_modules" => Ok(json!({
                "anvil": "1.0", "debug": "1.0", "eth": "1.0", "evm": "1.0", "hardhat": "1.0", "net": "1.0",
                "txpool": "1.0", "web3": "1.0"
            })),
            "eth_syncing" | "eth_mining" => Ok(json!(false)),
            "eth_hashrate" => Ok(quantity(0)),
            "eth_coinbase" => Ok(json!(self.chain.read().settings.coinbase)),
            "eth_protocolVersion" => Ok(quantity(68)),
            "eth_blockNumber" => Ok(quantity(self.chain.read().head().number())),
            "eth_accounts" => Ok(self.signers.iter().map(|signer| json!(signer.address)).collect()),
            "eth_getBalance" => {
                self.of_account(params, |account| json!(account.map_or(U256::ZERO, |it| it.balance)))
            }
            "eth_getCode" => self.of_account(params, |account| {
                json!(account.map_or(Bytes::new(), |it| it.code.original_bytes()))
            }),
            "eth_getTransactionCount" => self.transaction_count(params),
            "eth_getStorageAt" => self.storage_at(params),
            "eth_getBlockByNumber" => {
                params.get(0).and_then(|tag: BlockNumberOrTag| self.block(tag.into(), params))
            }
            "eth_getBlockByHash" => params.get(0).and_then(|hash: B256| self.block(hash.into(), params)),
            "eth_getHeaderByNumber" => params.get(0).and_then(|tag: BlockNumberOrTag| {
                self.found(tag.into(), |block| json!(answers::header(block)))
            }),
            "eth_getHeaderByHash" => params
                .get(0)
                .and_then(|hash: B256| self.found(hash.into(), |block| json!(answers::header(block)))),
            "eth_getBlockTransactionCountByNumber" => params.get(0).and_then(|tag: BlockNumberOrTag| {
                self.found(tag.into(), |block| quantity(block.txs.len() as u64))
            }),
            "eth_getBlockTransactionCountByHash" => params
                .get(0)
                .and_then(|hash: B256| self.found(hash.into(), |block| quantity(block.txs.len() as u64))),
            "eth_getUncleCountByBlockNumber" => {
                params.get(0).and_then(|tag: BlockNumberOrTag| self.found(tag.into(), |_| quantity(0)))
            }
            "eth_getUncleCountByBlockHash" => {
                params.get(0).and_then(|hash: B256| self.found(hash.into(), |_| quantity(0)))
            }
            "eth_getUncleByBlockNumberAndIndex" | "eth_getUncleByBlockHashAndIndex" => Ok(Value::Null),
            "eth_getBlockReceipts" => params.get(0).and_then(|id: BlockId| self.receipts(id)),
            "eth_getTransactionByHash" => params.get(0).map(|hash| self.transaction(&hash)),
            "eth_getRawTransactionByHash" | "debug_getRawTransaction" => {
                params.get(0).map(|hash| self.raw_transaction(&hash))
            }
            "eth_getTransactionByBlockNumberAndIndex" => {
                params.get(0).and_then(|tag: BlockNumberOrTag| self.transaction_in(tag.into(), params))
            }
            "eth_getTransactionByBlockHashAndIndex" => {
                params.get(0).and_then(|hash: B256| self.transaction_in(hash.into(), params))
            }
            "eth_getTransactionReceipt" => params.get(0).map(|hash: B256| {
                let data = self.chain.read();
                let found = data.transaction(&hash);
                json!(found.and_then(|(block, index)| answers::receipt(block, index, self.chain.spec())))
            }),
            "debug_getRawHeader" => params.get(0).and_then(|id: BlockId| {
                self.found(id, |block| json!(Bytes::from(alloy_rlp::encode(block.header.inner()))))
            }),
            _ => return None,
        })
    }

    fn of_account(
        &self,
        params: &Params,
        say: impl FnOnce(Option<crate::state::Account>) -> Value,
    ) -> Answer {
        let address: Address = params.get(0)?;
        Ok(say(self.view(params.opt(1)?)?.world.account(address)?))
    }

    fn transaction_count(&self, params: &Params) -> Answer {
        let (address, id): (Address, Option<BlockId>) = (params.get(0)?, params.opt(1)?);
        if id.is_some_and(|id| id.is_pending()) {
            let data = self.chain.read();
            let nonce = data.nonce(address)?;
            return Ok(quantity(data.pool.next_nonce(address, nonce)));
        }
        Ok(quantity(self.view(id)?.world.account(address)?.map_or(0, |account| account.nonce)))
    }

    fn storage_at(&self, params: &Params) -> Answer {
        let (address, key): (Address, U256) = (params.get(0)?, slot(params.get(1)?)?);
        Ok(json!(B256::from(self.view(params.opt(2)?)?.world.slot(address, key)?)))
    }

    fn found(&self, id: BlockId, say: impl FnOnce(&Arc<Block>) -> Value) -> Answer {
        Ok(self.find_block(id)?.as_ref().map_or(Value::Null, say))
    }

    fn block(&self, id: BlockId, params: &Params) -> Answer {
        let full = params.opt(1)?.unwrap_or(false);
        let mut answer = self.found(id, |block| json!(answers::block(block, full)))?;
        if id.is_pending()
            && let Some(fields) = answer.as_object_mut()
        {
            // A block that is not made yet has no name.
            for field in ["hash", "nonce"] {
                fields.insert(field.into(), Value::Null);
            }
        }
        Ok(answer)
    }

    fn receipts(&self, id: BlockId) -> Answer {
        self.found(id, |block| {
            let receipt = |index| json!(answers::receipt(block, index, self.chain.spec()));
            (0..block.txs.len()).map(receipt).collect()
        })
    }

    fn transaction(&self, hash: &B256) -> Value {
        let data = self.chain.read();
        match data.transaction(hash) {
            Some((block, index)) => json!(answers::transaction(block, index)),
            None => json!(data.pool.get(hash).map(|tx| answers::waiting(tx))),
        }
    }

    fn raw_transaction(&self, hash: &B256) -> Value {
        let data = self.chain.read();
        let mined = data.transaction(hash).and_then(|(block, index)| block.txs.get(index));
        json!(mined.or_else(|| data.pool.get(hash)).map(|tx| answers::raw(tx)))
    }

    fn transaction_in(&self, id: BlockId, params: &Params) -> Answer {
        let index: U64 = params.get(1)?;
        self.found(id, |block| json!(answers::transaction(block, index.to())))
    }
}

/// A slot's number: a quantity, or up to 32 bytes in hexadecimal with their zeros.
pub(super) fn slot(text: String) -> Result<U256, RpcError> {
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    let wrong = || RpcError::params(format!("invalid storage slot {text:?}: up to 64 hexadecimal digits"));
    if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let bytes = hex::decode(format!("{digits:0>64}")).map_err(|_| wrong())?;
    U256::try_from_be_slice(&bytes).ok_or_else(wrong)
}
