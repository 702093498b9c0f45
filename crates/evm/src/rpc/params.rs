//! The parameters of a method, by their places.
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::RpcError;

/// What came in `params`.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<Value>);

impl Params {
    /// Reads `params`: an array, or nothing. The methods have no names for their parameters.
    pub fn new(params: Option<Value>) -> Result<Params, RpcError> {
        match params {
            None | Some(Value::Null) => Ok(Params::default()),
            Some(Value::Array(values)) => Ok(Params(values)),
            Some(_) => Err(RpcError::params("non-array args: parameters go by their place, in an array")),
        }
    }

    /// Parameter `index`, which the method needs.
    pub fn get<T: DeserializeOwned>(&self, index: usize) -> Result<T, RpcError> {
        self.opt(index)?
            .ok_or_else(|| RpcError::params(format!("missing value for required argument {index}")))
    }

    /// Parameter `index`, if it is there and not `null`.
    pub fn opt<T: DeserializeOwned>(&self, index: usize) -> Result<Option<T>, RpcError> {
        match self.0.get(index) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|error| RpcError::params(format!("invalid argument {index}: {error}"))),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
