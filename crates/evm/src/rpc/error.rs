//! Errors as JSON-RPC 2.0 (§5.1) and EIP-1474 number them.
use alloy_primitives::Bytes;
use alloy_sol_types::decode_revert_reason;
use revm::context::result::{ExecutionResult, HaltReason};
use serde_json::{Value, json};

use crate::chain::{ChainError, TxError};
use crate::exec::Refusal;
use crate::state::StateError;

/// Invalid JSON.
pub const PARSE: i64 = -32700;
/// JSON that is no request.
pub const REQUEST: i64 = -32600;
/// No such method.
pub const METHOD: i64 = -32601;
/// The parameters are not what the method takes.
pub const PARAMS: i64 = -32602;
/// The chain refuses.
pub const SERVER: i64 = -32000;
/// There is no such block (EIP-1898).
pub const NOT_FOUND: i64 = -32001;
/// More than the node gives at once (EIP-1474).
pub const LIMIT: i64 = -32005;
/// A call reverted; `data` is what it returned.
const REVERTED: i64 = 3;

/// What a client gets instead of a result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// The number.
    pub code: i64,
    /// What happened.
    pub message: String,
    /// More about it.
    pub data: Option<Value>,
}

impl RpcError {
    /// An error without data.
    pub fn new(code: i64, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into(), data: None }
    }

    /// The chain refuses.
    pub fn server(message: impl Into<String>) -> RpcError {
        RpcError::new(SERVER, message)
    }

    /// The parameters are wrong.
    pub fn params(message: impl Into<String>) -> RpcError {
        RpcError::new(PARAMS, message)
    }

    /// There is no such block.
    pub fn no_block(which: impl std::fmt::Display) -> RpcError {
        RpcError::new(NOT_FOUND, format!("header not found: there is no block {which}"))
    }

    /// The error of an execution that did not succeed.
    pub fn failed(result: &ExecutionResult) -> Option<RpcError> {
        match result {
            ExecutionResult::Success { .. } => None,
            ExecutionResult::Revert { output, .. } => Some(RpcError::reverted(output)),
            ExecutionResult::Halt { reason, .. } => Some(RpcError::server(halted(reason))),
        }
    }

    fn reverted(output: &Bytes) -> RpcError {
        let reason = decode_revert_reason(output).filter(|_| output.len() >= 4);
        let message = match reason {
            Some(reason) => format!("execution reverted: {}", reason.trim_start_matches("revert: ")),
            None => "execution reverted".into(),
        };
        RpcError { code: REVERTED, message, data: Some(json!(output)) }
    }

    /// As it goes over the wire.
    pub fn to_json(&self) -> Value {
        match &self.data {
            None => json!({ "code": self.code, "message": self.message }),
            Some(data) => json!({ "code": self.code, "message": self.message, "data": data }),
        }
    }
}

/// Why the EVM stopped, in geth's words (`core/vm/errors.go`).
pub fn halted(reason: &HaltReason) -> String {
    match reason {
        HaltReason::OutOfGas(_) => "out of gas".into(),
        HaltReason::OpcodeNotFound => "invalid opcode".into(),
        HaltReason::InvalidFEOpcode => "invalid opcode: INVALID".into(),
        HaltReason::InvalidJump => "invalid jump destination".into(),
        HaltReason::StackUnderflow => "stack underflow".into(),
        HaltReason::StackOverflow => "stack limit reached 1024 (1023)".into(),
        HaltReason::CreateCollision => "contract address collision".into(),
        HaltReason::CreateContractSizeLimit => "max code size exceeded".into(),
        HaltReason::CreateInitCodeSizeLimit => "max initcode size exceeded".into(),
        HaltReason::CallTooDeep => "max call depth exceeded".into(),
        HaltReason::StateChangeDuringStaticCall | HaltReason::CallNotAllowedInsideStatic => {
            "write protection".into()
        }
        HaltReason::OutOfFunds => "insufficient balance for transfer".into(),
        other => format!("execution halted: {other:?}"),
    }
}

impl From<TxError> for RpcError {
    fn from(error: TxError) -> RpcError {
        match error {
            TxError::Decode(_) => RpcError::params(error.to_string()),
            error => RpcError::server(error.to_string()),
        }
    }
}

impl From<ChainError> for RpcError {
    fn from(error: ChainError) -> RpcError {
        match error {
            ChainError::TooMany(_) | ChainError::Past(..) => RpcError::params(error.to_string()),
            error => RpcError::server(error.to_string()),
        }
    }
}

impl From<StateError> for RpcError {
    fn from(error: StateError) -> RpcError {
        RpcError::server(error.to_string())
    }
}

impl From<Refusal> for RpcError {
    fn from(refusal: Refusal) -> RpcError {
        match refusal {
            Refusal::Transaction(invalid) => TxError::Invalid(invalid).into(),
            Refusal::Database(error) => error.into(),
            Refusal::Custom(message) => RpcError::server(message),
            other => RpcError::server(other.to_string()),
        }
    }
}
