//! Transactions that come in, signed elsewhere or here.
use alloy_consensus::transaction::Recovered;
use alloy_consensus::{
    EthereumTxEnvelope, EthereumTypedTransaction, SignableTransaction, TxEip4844Variant, TypedTransaction,
};
use alloy_dyn_abi::TypedData;
use alloy_eips::BlockId;
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bytes, Signature, U256, eip191_hash_message};
use alloy_rpc_types_eth::TransactionRequest;
use revm::primitives::hardfork::SpecId;
use serde_json::{Value, json};

use super::{Answer, Params, Rpc, RpcError, answers, fees};
use crate::accounts::Signer;
use crate::chain::{Tx, admit};

impl Rpc {
    pub(super) fn sending(&self, method: &str, params: &Params) -> Option<Answer> {
        Some(match method {
            "eth_sendRawTransaction" => self.send_raw(params).map(|hash| json!(hash)),
            "eth_sendTransaction" | "eth_sendUnsignedTransaction" => {
                self.send(params).map(|hash| json!(hash))
            }
            "eth_sendRawTransactionSync" => self.send_raw(params).and_then(|hash| self.receipt_of(&hash)),
            "eth_sendTransactionSync" => self.send(params).and_then(|hash| self.receipt_of(&hash)),
            "eth_signTransaction" => self.sign_transaction(params),
            "eth_fillTransaction" => self.fill_transaction(params),
            "eth_sign" => self.sign(params, 0, 1),
            "personal_sign" => self.sign(params, 1, 0),
            "eth_signTypedData_v4" => self.sign_typed(params),
            _ => return None,
        })
    }

    fn send_raw(&self, params: &Params) -> Result<B256, RpcError> {
        let bytes: Bytes = params.get(0)?;
        Ok(self.chain.submit(admit::decode(&bytes, self.chain.spec())?)?)
    }

    fn receipt_of(&self, hash: &B256) -> Answer {
        let data = self.chain.read();
        let found = data.transaction(hash);
        found
            .and_then(|(block, index)| answers::receipt(block, index, self.chain.spec()))
            .map(|it| json!(it))
            .ok_or_else(|| RpcError {
                data: Some(json!(hash)),
                ..RpcError::new(4, "the transaction was added but is not in a block yet")
            })
    }

    fn send(&self, params: &Params) -> Result<B256, RpcError> {
        let request: TransactionRequest = params.get(0)?;
        let from = self.sender(&request)?;
        let tx = self.fill(request, from)?;
        Ok(self.chain.submit(self.signed(tx, from)?)?)
    }

    fn sender(&self, request: &TransactionRequest) -> Result<Address, RpcError> {
        request
            .from
            .or(self.signers.first().map(|signer| signer.address))
            .ok_or_else(|| RpcError::params("missing from"))
    }

    fn signer(&self, address: Address) -> Result<&Signer, RpcError> {
        self.signers.iter().find(|signer| signer.address == address).ok_or_else(|| {
            RpcError::server(format!(
                "unknown account {address}: it has no key here; impersonate it to send in its name"
            ))
        })
    }

    /// Signs, or for an impersonated account puts something in the signature's place that makes the hash its own.
    fn signed(&self, tx: TypedTransaction, from: Address) -> Result<Recovered<Tx>, RpcError> {
        let impersonated = self.chain.read().settings.may_send(from);
        let signature = match self.signer(from) {
            Ok(signer) => signer.sign(tx.signature_hash()),
            Err(_) if impersonated => {
                Signature::new(U256::from_be_slice(from.as_slice()), U256::from(1), false)
            }
            Err(error) => return Err(error),
        };
        let tx: EthereumTypedTransaction<TxEip4844Variant> = tx;
        let signed: EthereumTxEnvelope<TxEip4844Variant> = tx.into_signed(signature).into();
        Ok(Recovered::new_unchecked(admit::without_blobs(signed, self.chain.spec())?, from))
    }

    /// Adds what the sender left open.
    fn fill(&self, mut request: TransactionRequest, from: Address) -> Result<TypedTransaction, RpcError> {
        request.from = Some(from);
        let pending = self.next_header();
        if request.chain_id.is_some_and(|id| id != self.chain.chain_id()) {
            return Err(RpcError::server(format!(
                "invalid chain id for signer: have {} want {}",
                request.chain_id.unwrap_or_default(),
                self.chain.chain_id()
            )));
        }
        request.chain_id = Some(self.chain.chain_id());
        request.to.get_or_insert_default();
        if request.nonce.is_none() {
            let data = self.chain.read();
            request.nonce = Some(data.pool.next_nonce(from, data.nonce(from)?));
        }
        if request.sidecar.is_some() {
            request.populate_blob_hashes();
        }
        if request.gas.is_none() {
            let view = self.view(Some(BlockId::pending()))?;
            let mut free = TransactionRequest { gas_price: None, max_fee_per_gas: None, ..request.clone() };
            free.max_priority_fee_per_gas = None;
            let setting = self.setting(&free, &view, None, None)?;
            request.gas = Some(self.estimate(&free, setting)?);
        }
        let base = u128::from(pending.base_fee_per_gas.unwrap_or_default());
        if self.chain.spec().is_enabled_in(SpecId::LONDON) && request.gas_price.is_none() {
            let tip = *request
                .max_priority_fee_per_gas
                .get_or_insert_with(|| request.max_fee_per_gas.map_or(fees::TIP, |cap| fees::TIP.min(cap)));
            request.max_fee_per_gas.get_or_insert(base.saturating_mul(2).saturating_add(tip));
        } else if request.gas_price.is_none() && request.max_fee_per_gas.is_none() {
            request.gas_price = Some(self.gas_price());
        }
        if request.blob_versioned_hashes.is_some() && request.max_fee_per_blob_gas.is_none() {
            let fee = super::calls::blob_fee(pending.excess_blob_gas, self.chain.spec());
            request.max_fee_per_blob_gas = Some(fee.saturating_mul(2));
        }
        request.normalize_input();
        request.build_typed_tx().map_err(|request| {
            let missing = request.missing_keys().err().map(|(_, missing)| missing.join(", "));
            RpcError::params(format!(
                "not a transaction of any type; missing or conflicting: {}",
                missing.unwrap_or_default()
            ))
        })
    }

    fn sign_transaction(&self, params: &Params) -> Answer {
        let request: TransactionRequest = params.get(0)?;
        let from = self.sender(&request)?;
        self.signer(from)?;
        let tx = self.signed(self.fill(request, from)?, from)?;
        Ok(json!(Bytes::from(tx.encoded_2718())))
    }

    fn fill_transaction(&self, params: &Params) -> Answer {
        let request: TransactionRequest = params.get(0)?;
        let from = self.sender(&request)?;
        let tx = self.fill(request, from)?;
        let mut raw = Vec::new();
        tx.encode_for_signing(&mut raw);
        Ok(json!({ "raw": Bytes::from(raw), "tx": TransactionRequest { from: Some(from), ..tx.into() } }))
    }

    fn sign(&self, params: &Params, address: usize, message: usize) -> Answer {
        let (address, message): (Address, Bytes) = (params.get(address)?, params.get(message)?);
        Ok(written(&self.signer(address)?.sign(eip191_hash_message(message))))
    }

    fn sign_typed(&self, params: &Params) -> Answer {
        let (address, data): (Address, Value) = (params.get(0)?, params.get(1)?);
        // Wallets send it as an object or as a text of one.
        let data = match data {
            Value::String(text) => serde_json::from_str::<TypedData>(&text),
            other => serde_json::from_value(other),
        };
        let wrong = |error: &dyn std::fmt::Display| {
            RpcError::params(format!("invalid typed data (EIP-712): {error}"))
        };
        let hash =
            data.map_err(|error| wrong(&error))?.eip712_signing_hash().map_err(|error| wrong(&error))?;
        Ok(written(&self.signer(address)?.sign(hash)))
    }
}

/// A signature as wallets write it: r, s and 27 or 28.
fn written(signature: &Signature) -> Value {
    json!(Bytes::from(signature.as_bytes().to_vec()))
}
