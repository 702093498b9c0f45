//! The other side of the door: calls, transactions, deployments and traces as text.
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_dyn_abi::{DynSolType, DynSolValue};
use alloy_primitives::{Address, Bytes, U64, U256, hex, keccak256};
use serde_json::{Value, json};

use crate::rpc::{Params, Rpc};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a transaction may wait for its block.
const MINED_WITHIN: Duration = Duration::from_secs(120);
/// The pause between two looks for a receipt.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bytes of one answer.
const ANSWER_MAX: u64 = 64 << 20;

/// What a client could not do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("no answer from {url}: {why}; is the chain running there?")]
    Unreachable {
        /// Where.
        url: String,
        /// Why not.
        why: String,
    },
    /// The node refuses.
    #[error("{method}: {message} (code {code}){data}")]
    Refused {
        /// What was asked.
        method: String,
        /// JSON-RPC's number.
        code: i64,
        /// What the node says.
        message: String,
        /// More of it.
        data: String,
    },
    /// Arguments that do not fit.
    #[error("{0}")]
    Argument(String),
    /// A transaction is in a block, and did nothing but cost gas.
    #[error("the transaction reverted\n{0}")]
    Reverted(String),
    /// It waits still.
    #[error("transaction {0} is not in a block after {MINED_WITHIN:?}; does the chain make blocks?")]
    NotMined(String),
}

/// A node, here or somewhere else.
#[derive(Debug)]
pub struct Client(Way);

#[derive(Debug)]
enum Way {
    Http { url: String, agent: ureq::Agent },
    Direct(Arc<Rpc>),
}

/// What to call, and how.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// The contract; none for a deployment.
    pub to: Option<Address>,
    /// Code to deploy, calldata in hexadecimal, or a signature like `balanceOf(address)(uint256)`.
    pub what: Option<String>,
    /// The signature's arguments.
    pub args: Vec<String>,
    /// The sender.
    pub from: Option<Address>,
    /// Wei to send along.
    pub value: U256,
    /// Gas to give.
    pub gas: Option<u64>,
}

/// Calldata, and the types that the answer has.
type Encoded = (Bytes, Option<DynSolType>);

impl Call {
    fn encode(&self) -> Result<Encoded, ClientError> {
        let Some(what) = &self.what else { return Ok((Bytes::new(), None)) };
        if let Some(digits) = what.strip_prefix("0x") {
            let mut data =
                hex::decode(digits).map_err(|error| ClientError::Argument(format!("{what:.40}: {error}")))?;
            // After code come the constructor's arguments: a type and a value each, like `uint256 5`.
            if !self.args.is_empty() {
                let [types, values @ ..] = self.args.as_slice() else { return Ok((data.into(), None)) };
                data.extend(arguments(types, values)?);
            }
            return Ok((data.into(), None));
        }
        let (name, rest) = what.split_once('(').ok_or_else(|| signature(what))?;
        let close = closing(rest).ok_or_else(|| signature(what))?;
        let (inputs, outputs) = (&rest[..close], rest[close + 1..].trim());
        let types = tuple(&format!("({inputs})"))?;
        let canonical = format!("{name}{}", types.sol_type_name());
        let mut data = keccak256(canonical)[..4].to_vec();
        data.extend(arguments(&format!("({inputs})"), &self.args)?);
        let outputs = if outputs.is_empty() { None } else { Some(tuple(outputs)?) };
        Ok((data.into(), outputs))
    }
}

/// Where the parenthesis that was opened before `text` is closed.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    text.char_indices().find_map(|(at, letter)| {
        open += match letter {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        (open == 0).then_some(at)
    })
}

fn signature(what: &str) -> ClientError {
    ClientError::Argument(format!(
        "{what:?} is no calldata (0x…) and no signature like balanceOf(address)(uint256)"
    ))
}

fn tuple(types: &str) -> Result<DynSolType, ClientError> {
    DynSolType::parse(types).map_err(|error| ClientError::Argument(format!("{types}: {error}")))
}

fn arguments(types: &str, values: &[String]) -> Result<Vec<u8>, ClientError> {
    let types = match tuple(types)? {
        DynSolType::Tuple(types) => types,
        one => vec![one],
    };
    if types.len() != values.len() {
        return Err(ClientError::Argument(format!(
            "{} arguments are needed, {} are given",
            types.len(),
            values.len()
        )));
    }
    let values = types.iter().zip(values).map(|(kind, value)| {
        kind.coerce_str(value)
            .map_err(|error| ClientError::Argument(format!("{value:?} is no {kind}: {error}")))
    });
    Ok(DynSolValue::Tuple(values.collect::<Result<_, _>>()?).abi_encode_params())
}

impl Client {
    /// A client of the node at `url`.
    pub fn new(url: &str) -> Client {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build();
        Client(Way::Http { url: url.to_string(), agent: ureq::Agent::new_with_config(config) })
    }

    /// A client of a node in this process.
    pub fn direct(rpc: Arc<Rpc>) -> Client {
        Client(Way::Direct(rpc))
    }

    /// Calls a method.
    pub fn ask(&self, method: &str, params: Value) -> Result<Value, ClientError> {
        let answer = match &self.0 {
            Way::Http { url, agent } => over_http(url, agent, method, params)?,
            Way::Direct(rpc) => {
                rpc.count();
                Params::new(Some(params))
                    .and_then(|params| rpc.call(method, &params))
                    .map_err(|error| error.to_json())
            }
        };
        answer.map_err(|error| ClientError::Refused {
            method: method.to_string(),
            code: error.get("code").and_then(Value::as_i64).unwrap_or_default(),
            message: error.get("message").and_then(Value::as_str).unwrap_or_default().to_string(),
            data: error.get("data").map(|data| format!(": {data}")).unwrap_or_default(),
        })
    }

    fn request(&self, call: &Call) -> Result<(Value, Option<DynSolType>), ClientError> {
        let (data, outputs) = call.encode()?;
        let mut request = json!({ "data": data });
        if let Some(to) = call.to {
            request["to"] = json!(to);
        }
        if let Some(from) = call.from {
            request["from"] = json!(from);
        }
        if !call.value.is_zero() {
            request["value"] = json!(call.value);
        }
        if let Some(gas) = call.gas {
            request["gas"] = json!(U64::from(gas));
        }
        Ok((request, outputs))
    }

    /// What a call returns: its values, a line each, or bytes when their types are not said.
    pub fn call(&self, call: &Call, block: &str) -> Result<String, ClientError> {
        let (request, outputs) = self.request(call)?;
        let result = self.ask("eth_call", json!([request, block]))?;
        let Some(types) = outputs else { return Ok(plain(&result)) };
        let bytes: Bytes = serde_json::from_value(result).unwrap_or_default();
        let wrong =
            |error: &dyn std::fmt::Display| ClientError::Argument(format!("{bytes} is no {types}: {error}"));
        match types.abi_decode_params(&bytes).map_err(|error| wrong(&error))? {
            DynSolValue::Tuple(values) => Ok(values.iter().map(shown).collect::<Vec<_>>().join("\n")),
            one => Ok(shown(&one)),
        }
    }

    /// Sends a transaction and waits for its block. The text says what became of it; a transaction that reverted is an error.
    pub fn send(&self, call: &Call) -> Result<String, ClientError> {
        let (mut request, _) = self.request(call)?;
        if call.from.is_none() {
            let accounts = self.ask("eth_accounts", json!([]))?;
            request["from"] = accounts.get(0).cloned().ok_or_else(|| {
                ClientError::Argument("the node has no accounts: say --from, and impersonate it first".into())
            })?;
        }
        let hash = self.ask("eth_sendTransaction", json!([request]))?;
        let until = Instant::now() + MINED_WITHIN;
        loop {
            let receipt = self.ask("eth_getTransactionReceipt", json!([hash]))?;
            if !receipt.is_null() {
                let text = receipt_text(&receipt);
                return if has_succeeded(&receipt) { Ok(text) } else { Err(ClientError::Reverted(text)) };
            }
            if Instant::now() > until {
                return Err(ClientError::NotMined(plain(&hash)));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Calls a method with words: each is JSON, or a text if it is none.
    pub fn rpc(&self, method: &str, words: &[String]) -> Result<String, ClientError> {
        let word = |word: &String| serde_json::from_str(word).unwrap_or_else(|_| json!(word));
        let result = self.ask(method, words.iter().map(word).collect())?;
        Ok(match result {
            Value::String(text) => text,
            other => serde_json::to_string_pretty(&other).unwrap_or_default(),
        })
    }

    /// The calls within a transaction, as an indented tree.
    pub fn trace(&self, hash: &str) -> Result<String, ClientError> {
        let frame = self.ask(
            "debug_traceTransaction",
            json!([hash, { "tracer": "callTracer", "tracerConfig": { "withLog": true } }]),
        )?;
        let mut text = String::new();
        frame_text(&frame, 0, &mut text);
        Ok(text.trim_end().to_string())
    }
}

/// The result of a method, or its error, as they came.
fn over_http(
    url: &str,
    agent: &ureq::Agent,
    method: &str,
    params: Value,
) -> Result<Result<Value, Value>, ClientError> {
    let failed = |why: String| ClientError::Unreachable { url: url.to_string(), why };
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let post = agent.post(url).header("content-type", "application/json");
    let mut answer = post.send(request).map_err(|error| failed(error.to_string()))?;
    let body = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_vec();
    let body = body.map_err(|error| failed(error.to_string()))?;
    let mut answer: Value = serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))?;
    match answer.get_mut("error") {
        Some(error) => Ok(Err(error.take())),
        None => Ok(Ok(answer.get_mut("result").map(Value::take).unwrap_or_default())),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn shown(value: &DynSolValue) -> String {
    match value {
        DynSolValue::Uint(number, _) => number.to_string(),
        DynSolValue::Int(number, _) => number.to_string(),
        DynSolValue::Bool(truth) => truth.to_string(),
        DynSolValue::Address(address) => address.to_string(),
        DynSolValue::String(text) => text.clone(),
        DynSolValue::Bytes(bytes) => hex::encode_prefixed(bytes),
        DynSolValue::FixedBytes(word, size) => hex::encode_prefixed(&word[..*size]),
        DynSolValue::Array(list) | DynSolValue::FixedArray(list) => {
            format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(", "))
        }
        DynSolValue::Tuple(list) => format!("({})", list.iter().map(shown).collect::<Vec<_>>().join(", ")),
        other => format!("{other:?}"),
    }
}

fn number(value: &Value) -> U256 {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

/// Receipts before Byzantium do not say (EIP-658).
fn has_succeeded(receipt: &Value) -> bool {
    receipt.get("status").is_none_or(|status| number(status) == U256::from(1))
}

fn receipt_text(receipt: &Value) -> String {
    let mut text = format!(
        "transaction {}\nstatus      {}\nblock       {}\ngas used    {}",
        plain(&receipt["transactionHash"]),
        if has_succeeded(receipt) { "success" } else { "reverted" },
        number(&receipt["blockNumber"]),
        number(&receipt["gasUsed"]),
    );
    if let Some(contract) = receipt["contractAddress"].as_str() {
        let _ = write!(text, "\ncontract    {contract}");
    }
    text
}

fn frame_text(frame: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    let input: String = plain(&frame["input"]).chars().take(74).collect();
    let _ = writeln!(
        text,
        "{indent}{} {} value {} gas {} {input}",
        plain(&frame["type"]),
        frame["to"].as_str().unwrap_or("?"),
        number(&frame["value"]),
        number(&frame["gasUsed"]),
    );
    for log in frame["logs"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "{indent}  LOG {} {}", log["topics"], plain(&log["data"]));
    }
    for inner in frame["calls"].as_array().into_iter().flatten() {
        frame_text(inner, depth + 1, text);
    }
    if let Some(error) = frame["error"].as_str() {
        let _ = writeln!(text, "{indent}  ✗ {error} {}", frame["revertReason"].as_str().unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_and_its_arguments_become_calldata() {
        let call = Call {
            what: Some("transfer(address,uint)(bool)".into()),
            args: vec!["0x00000000000000000000000000000000000000aa".into(), "5".into()],
            ..Call::default()
        };
        let (data, outputs) = call.encode().expect("it fits");
        assert_eq!(data[..4], [0xa9, 0x05, 0x9c, 0xbb], "the selector of ERC-20's transfer(address,uint256)");
        assert_eq!((data[35], data[67], data.len()), (0xaa, 5, 68));
        assert_eq!(outputs, Some(DynSolType::Tuple(vec![DynSolType::Bool])));
        let missing =
            Call { args: Vec::new(), ..call }.encode().expect_err("arguments are missing").to_string();
        assert!(missing.contains("2 arguments are needed, 0 are given"), "{missing}");
    }
}
