//! Why a transaction is refused, in the words that clients look for (geth's `core/error.go` and `core/txpool/errors.go`).
use alloy_primitives::{Address, U256};
use revm::context::result::InvalidTransaction;

use crate::state::StateError;

/// A transaction that does not go into the pool or a block.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TxError {
    /// It is no transaction.
    #[error("failed to decode signed transaction: {0}")]
    Decode(String),
    /// Nobody signed it.
    #[error("invalid signature: the sender cannot be recovered, or s is in the upper half (EIP-2)")]
    Signature,
    /// It is for another chain.
    #[error("invalid chain id for signer: have {have} want {want}")]
    ChainId {
        /// The transaction's.
        have: u64,
        /// This chain's.
        want: u64,
    },
    /// The account has gone past it.
    #[error("nonce too low: address {address}, tx: {tx} state: {state}")]
    NonceTooLow {
        /// The sender.
        address: Address,
        /// The transaction's nonce.
        tx: u64,
        /// The account's nonce.
        state: u64,
    },
    /// No account can have a greater one (EIP-2681).
    #[error("nonce has max value: address {0}")]
    NonceMax(Address),
    /// The sender could not pay for it.
    #[error("insufficient funds for gas * price + value: address {address} have {have} want {want}")]
    Funds {
        /// The sender.
        address: Address,
        /// Its balance in wei.
        have: U256,
        /// What the transaction may cost in wei.
        want: U256,
    },
    /// More bytes than the pool takes.
    #[error("oversized data: transaction size {size}, limit {limit}")]
    Size {
        /// The transaction's bytes.
        size: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Its fee cap is below the block's base fee.
    #[error(
        "transaction underpriced: max fee per gas less than block base fee: address {address}, maxFeePerGas: {cap}, baseFee: {base}"
    )]
    Underpriced {
        /// The sender.
        address: Address,
        /// Its cap in wei per gas.
        cap: u128,
        /// The block's price in wei per gas.
        base: u64,
    },
    /// It waits already.
    #[error("already known")]
    AlreadyKnown,
    /// Another one with its nonce waits, and it does not pay ten percent more.
    #[error("replacement transaction underpriced")]
    ReplacementUnderpriced,
    /// Too many wait.
    #[error("txpool is full: mine a block, or drop transactions")]
    PoolFull,
    /// Its sender is a contract (EIP-3607).
    #[error("sender not an eoa: address {0}")]
    SenderHasCode(Address),
    /// Its blobs are missing or wrong.
    #[error("invalid blobs: {0}")]
    Blobs(String),
    /// The EVM's own checks.
    #[error("{}", words(.0))]
    Invalid(InvalidTransaction),
    /// The state could not be had.
    #[error(transparent)]
    State(#[from] StateError),
    /// The block could not be kept.
    #[error("{0}")]
    Store(String),
}

fn words(invalid: &InvalidTransaction) -> String {
    match invalid {
        InvalidTransaction::CallerGasLimitMoreThanBlock => "exceeds block gas limit".into(),
        InvalidTransaction::CallGasCostMoreThanGasLimit { initial_gas, gas_limit } => {
            format!("intrinsic gas too low: gas {gas_limit}, minimum needed {initial_gas}")
        }
        InvalidTransaction::GasFloorMoreThanGasLimit { gas_floor, gas_limit } => {
            format!("insufficient gas for floor data gas cost: gas {gas_limit}, minimum needed {gas_floor}")
        }
        InvalidTransaction::TxGasLimitGreaterThanCap { gas_limit, cap } => {
            format!("transaction gas limit too high (cap: {cap}, tx: {gas_limit})")
        }
        InvalidTransaction::PriorityFeeGreaterThanMaxFee => {
            "max priority fee per gas higher than max fee per gas".into()
        }
        InvalidTransaction::CreateInitCodeSizeLimit => "max initcode size exceeded".into(),
        InvalidTransaction::LackOfFundForMaxFee { fee, balance } => {
            format!("insufficient funds for gas * price + value: have {balance} want {fee}")
        }
        other => other.to_string(),
    }
}
