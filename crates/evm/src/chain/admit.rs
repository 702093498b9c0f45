//! What a transaction must be before it may wait for a block.
use alloy_consensus::transaction::Recovered;
use alloy_consensus::{EthereumTxEnvelope, Transaction, TxEip4844Variant};
use alloy_eips::eip2718::{Decodable2718, Encodable2718};
use alloy_eips::eip4844::env_settings::EnvKzgSettings;
use alloy_primitives::U256;
use revm::context_interface::Cfg;
use revm::handler::validation::{validate_env, validate_initial_tx_gas};
use revm::primitives::hardfork::SpecId;
use revm::{Context, MainContext};

use super::{Tx, TxError};
use crate::exec::{self, Refusal};
use crate::state::World;
use crate::{accounts, hardfork};

/// Bytes of a transaction (geth's `txMaxSize`).
const SIZE_MAX: usize = 128 << 10;
/// Bytes of a transaction with its blobs (geth's `blobpool.txMaxSize`).
const SIZE_WITH_BLOBS_MAX: usize = 1 << 20;

/// Reads a signed transaction in its network form: blobs are checked and left behind.
pub fn decode(bytes: &[u8], spec: SpecId) -> Result<Recovered<Tx>, TxError> {
    let limit = if bytes.first() == Some(&3) { SIZE_WITH_BLOBS_MAX } else { SIZE_MAX };
    if bytes.len() > limit {
        return Err(TxError::Size { size: bytes.len(), limit });
    }
    let decoded = EthereumTxEnvelope::<TxEip4844Variant>::decode_2718_exact(bytes)
        .map_err(|error| TxError::Decode(error.to_string()))?;
    let tx = without_blobs(decoded, spec)?;
    let sender = accounts::recover(tx.signature(), tx.signature_hash()).ok_or(TxError::Signature)?;
    Ok(Recovered::new_unchecked(tx, sender))
}

/// Checks the blobs of a transaction and leaves them behind.
pub fn without_blobs(tx: EthereumTxEnvelope<TxEip4844Variant>, spec: SpecId) -> Result<Tx, TxError> {
    if let EthereumTxEnvelope::Eip4844(signed) = &tx {
        let TxEip4844Variant::TxEip4844WithSidecar(tx) = signed.tx() else {
            return Err(TxError::Blobs(
                "the transaction comes without its blobs; send the network form".into(),
            ));
        };
        // Since Osaka blobs come with proofs of their cells (EIP-7594), before with one proof each.
        if tx.sidecar.is_eip7594() != spec.is_enabled_in(SpecId::OSAKA) {
            return Err(TxError::Blobs(format!(
                "{} has sidecars of another version (EIP-7594)",
                hardfork::name(spec)
            )));
        }
        tx.validate_blob(EnvKzgSettings::Default.get()).map_err(|error| TxError::Blobs(error.to_string()))?;
    }
    Ok(tx.into())
}

/// The rules of the chain and its next block, for [`check`].
#[derive(Debug)]
pub struct Next<'a> {
    /// The state that the block begins with.
    pub world: &'a World,
    /// The block.
    pub block: revm::context::BlockEnv,
    /// The fork.
    pub spec: SpecId,
    /// The chain.
    pub chain_id: u64,
    /// Whether the transaction must be able to go into this very block.
    pub now: bool,
    /// Whether its sender may be a contract.
    pub impersonated: bool,
}

/// Checks whatever can be said of a transaction before it runs.
pub fn check(tx: &Recovered<Tx>, next: &Next<'_>) -> Result<(), TxError> {
    let size = tx.encode_2718_len();
    if size > SIZE_MAX {
        return Err(TxError::Size { size, limit: SIZE_MAX });
    }
    let address = tx.signer();
    if let Some(have) = tx.chain_id().filter(|have| *have != next.chain_id) {
        return Err(TxError::ChainId { have, want: next.chain_id });
    }
    let base = next.block.basefee;
    if next.now && tx.max_fee_per_gas() < u128::from(base) {
        return Err(TxError::Underpriced { address, cap: tx.max_fee_per_gas(), base });
    }
    let mut rules = exec::rules(next.spec, next.chain_id);
    rules.disable_base_fee = !next.now;
    let cap = rules.tx_gas_limit_cap();
    let environment = exec::environment(tx);
    let mut context =
        Context::mainnet().with_cfg(rules).with_block(next.block.clone()).with_tx(environment.clone());
    let invalid = |refusal: Refusal| match refusal {
        Refusal::Transaction(invalid) => TxError::Invalid(invalid),
        other => TxError::Store(other.to_string()),
    };
    validate_env(&mut context).map_err(invalid)?;
    validate_initial_tx_gas(&environment, next.spec, false, false, cap, None).map_err(TxError::Invalid)?;
    let account = next.world.account(address)?;
    let (nonce, have, code) =
        account.map_or((0, U256::ZERO, None), |account| (account.nonce, account.balance, Some(account.code)));
    if tx.nonce() < nonce {
        return Err(TxError::NonceTooLow { address, tx: tx.nonce(), state: nonce });
    }
    if tx.nonce() == u64::MAX {
        return Err(TxError::NonceMax(address));
    }
    if !next.impersonated && code.is_some_and(|code| !code.is_empty() && !code.is_eip7702()) {
        return Err(TxError::SenderHasCode(address));
    }
    let gas = U256::from(tx.gas_limit()).saturating_mul(U256::from(tx.max_fee_per_gas()));
    let blobs = U256::from(tx.blob_gas_used().unwrap_or_default())
        .saturating_mul(U256::from(tx.max_fee_per_blob_gas().unwrap_or_default()));
    let want = gas.saturating_add(blobs).saturating_add(tx.value());
    if have < want {
        return Err(TxError::Funds { address, have, want });
    }
    Ok(())
}
