//! JSON-RPC 2.0: from bytes to a method and back.
//!
//! ```text
//!  bytes ─► request or batch ─► method table ─► chain_data · calls · sending · logs · tracing · simulation · control
//! ```
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy_eips::{BlockId, BlockNumberOrTag, RpcBlockHash};
use revm::context::BlockEnv;
use serde_json::{Value, json};

use crate::accounts::Signer;
use crate::chain::{Block, Chain};
use crate::state::World;

mod answers;
mod calls;
mod chain_data;
mod control;
mod dump;
pub mod error;
mod fees;
pub mod filters;
mod logs;
mod params;
mod proofs;
mod sending;
mod simulation;
mod tracing;
mod waiting;

pub use answers::{RpcTransaction, header, waiting as waiting_of};
pub use error::RpcError;
pub use logs::logs_of;
pub use params::Params;

/// What one client may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Gas of a call that nobody pays for.
    pub call_gas: u64,
    /// How long such a call may run.
    pub call_time: Duration,
    /// Calls of one batch.
    pub batch: usize,
    /// Bytes of a batch's answers.
    pub answer: usize,
    /// Logs of one answer.
    pub logs: usize,
    /// Bytes of a request.
    pub request: usize,
    /// Bytes that the process may have in memory: with more of them, only what is in memory anyway is answered.
    pub memory: Option<usize>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            call_gas: 50_000_000,
            call_time: Duration::from_secs(5),
            batch: 1000,
            answer: 64 << 20,
            logs: 50_000,
            request: 32 << 20,
            memory: None,
        }
    }
}

/// The methods of one chain.
#[derive(Debug)]
pub struct Rpc {
    /// The chain.
    pub chain: Arc<Chain>,
    /// Accounts that can sign here.
    pub signers: Vec<Signer>,
    /// What a client may ask for.
    pub limits: Limits,
    /// Filters that clients poll.
    pub filters: filters::Filters,
    /// How many methods clients have called.
    pub called: AtomicU64,
}

/// A block and the state after it, or before its first transaction when it is still open.
#[derive(Clone, Debug)]
pub struct View {
    /// The block.
    pub block: Arc<Block>,
    /// The state after it.
    pub world: World,
}

/// Methods that belong together: answers one of its own, and leaves the others.
type Group = fn(&Rpc, &str, &Params) -> Option<Answer>;
/// The result of a method.
pub type Answer = Result<Value, RpcError>;

/// A request as it was read.
#[derive(Debug)]
pub struct Request {
    id: Option<Value>,
    /// The method, or what is wrong with the request.
    call: Result<(String, Params), RpcError>,
}

/// One request or many.
#[derive(Debug)]
pub enum Message {
    /// A request.
    One(Request),
    /// A batch.
    Batch(Vec<Request>),
    /// Neither.
    Broken(RpcError),
}

fn request(value: Value) -> Request {
    let wrong = |text: &str| RpcError::new(error::REQUEST, text);
    let Value::Object(mut fields) = value else {
        return Request { id: Some(Value::Null), call: Err(wrong("invalid request: not an object")) };
    };
    let id = fields.remove("id");
    let readable = id.as_ref().is_none_or(|id| id.is_string() || id.is_number() || id.is_null());
    if !readable {
        return Request {
            id: Some(Value::Null),
            call: Err(wrong("invalid request: an id is a string, a number or null")),
        };
    }
    if fields.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Request {
            id: id.or(Some(Value::Null)),
            call: Err(wrong("invalid request: jsonrpc is not \"2.0\"")),
        };
    }
    let Some(Value::String(method)) = fields.remove("method") else {
        return Request { id: id.or(Some(Value::Null)), call: Err(wrong("invalid request: no method")) };
    };
    let call = Params::new(fields.remove("params")).map(|params| (method, params));
    Request { id, call }
}

/// Reads what a client sent.
pub fn parse(bytes: &[u8], limits: &Limits) -> Message {
    let wrong = |text: String| Message::Broken(RpcError::new(error::REQUEST, text));
    match serde_json::from_slice(bytes) {
        Err(error) => Message::Broken(RpcError::new(error::PARSE, format!("parse error: {error}"))),
        Ok(Value::Array(batch)) if batch.is_empty() => wrong("invalid request: the batch is empty".into()),
        Ok(Value::Array(batch)) if batch.len() > limits.batch => {
            wrong(format!("batch too large: {} requests, limit {}", batch.len(), limits.batch))
        }
        Ok(Value::Array(batch)) => Message::Batch(batch.into_iter().map(request).collect()),
        Ok(value) => Message::One(request(value)),
    }
}

fn response(id: &Value, answer: Answer) -> String {
    match answer {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error.to_json() }),
    }
    .to_string()
}

impl Request {
    /// The method that is asked for.
    pub fn method(&self) -> Option<&str> {
        self.call.as_ref().ok().map(|(method, _)| method.as_str())
    }
}

/// Whether a method only says what is there.
fn is_light(method: &str) -> bool {
    matches!(
        method,
        "eth_chainId"
            | "eth_blockNumber"
            | "eth_accounts"
            | "eth_gasPrice"
            | "eth_syncing"
            | "eth_getTransactionReceipt"
            | "eth_getTransactionByHash"
            | "eth_maxPriorityFeePerGas"
            | "eth_subscribe"
            | "eth_unsubscribe"
            | "net_version"
            | "web3_clientVersion"
    )
}

impl Message {
    /// Whether answering is a matter of microseconds, so that a thread is not worth it.
    pub fn is_light(&self) -> bool {
        let light = |request: &Request| request.method().is_none_or(is_light);
        match self {
            Message::One(request) => light(request),
            Message::Batch(_) => false,
            Message::Broken(_) => true,
        }
    }
}

impl Rpc {
    /// Answers a message; nothing for notifications. `own` has the methods of a connection (subscriptions).
    pub fn answer(
        &self,
        message: Message,
        own: &mut dyn FnMut(&str, &Params) -> Option<Answer>,
    ) -> Option<String> {
        match message {
            Message::Broken(error) => Some(response(&Value::Null, Err(error))),
            Message::One(request) => self.answer_one(request, own),
            Message::Batch(requests) => {
                let (mut out, mut bytes) = (Vec::new(), 0_usize);
                for request in requests {
                    let id = request.id.clone();
                    let answer = if bytes > self.limits.answer {
                        let error = RpcError::new(error::LIMIT, "response too large: ask for less at once");
                        id.map(|id| response(&id, Err(error)))
                    } else {
                        self.answer_one(request, own)
                    };
                    bytes += answer.as_ref().map_or(0, String::len);
                    out.extend(answer);
                }
                (!out.is_empty()).then(|| format!("[{}]", out.join(",")))
            }
        }
    }

    fn answer_one(
        &self,
        request: Request,
        own: &mut dyn FnMut(&str, &Params) -> Option<Answer>,
    ) -> Option<String> {
        self.count();
        let answer = request.call.and_then(|(method, params)| {
            own(&method, &params).unwrap_or_else(|| self.call(&method, &params))
        });
        request.id.map(|id| response(&id, answer))
    }

    /// Counts a call of a client's.
    pub fn count(&self) {
        self.called.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls a method.
    pub fn call(&self, method: &str, params: &Params) -> Answer {
        if self.limits.memory.is_some_and(|limit| !is_light(method) && crate::memory::resident() > limit) {
            return Err(RpcError::new(error::LIMIT, crate::memory::SHORT));
        }
        let groups: [Group; 11] = [
            Rpc::chain_data,
            Rpc::calls,
            Rpc::sending,
            Rpc::fees,
            Rpc::logs,
            Rpc::polling,
            Rpc::waiting,
            Rpc::tracing,
            Rpc::proofs,
            Rpc::simulation,
            Rpc::control,
        ];
        groups.iter().find_map(|group| group(self, method, params)).unwrap_or_else(|| {
            Err(RpcError::new(error::METHOD, format!("the method {method} does not exist/is not available")))
        })
    }

    /// A block and its state, by number, hash or tag; the newest when nothing is said.
    pub fn view(&self, id: Option<BlockId>) -> Result<View, RpcError> {
        let id = id.unwrap_or_default();
        if id.is_pending() {
            let (block, world) = self.chain.pending()?;
            return Ok(View { block: Arc::new(block), world });
        }
        let data = self.chain.read();
        let block = match id {
            BlockId::Hash(RpcBlockHash { block_hash, .. }) => data.block_by_hash(&block_hash),
            BlockId::Number(tag) => data.block(number(tag, data.first(), data.head().number())),
        };
        let block = Arc::clone(block.ok_or_else(|| RpcError::no_block(words(&id)))?);
        let world = data.world_at(block.number()).cloned().ok_or_else(|| {
            RpcError::server(format!(
                "missing trie node: the state of block {} is not kept; ask for a newer one, or start with a longer --history",
                block.number()
            ))
        })?;
        Ok(View { block, world })
    }

    /// The block for an answer; nothing when there is none.
    pub fn find_block(&self, id: BlockId) -> Result<Option<Arc<Block>>, RpcError> {
        if id.is_pending() {
            return Ok(Some(Arc::new(self.chain.pending()?.0)));
        }
        let data = self.chain.read();
        Ok(match id {
            BlockId::Hash(RpcBlockHash { block_hash, .. }) => data.block_by_hash(&block_hash),
            BlockId::Number(tag) => data.block(number(tag, data.first(), data.head().number())),
        }
        .cloned())
    }

    /// The environment of the block of `view`.
    pub fn environment(&self, view: &View) -> BlockEnv {
        view.block.environment(self.chain.spec())
    }
}

/// The number that a tag stands for. Every block of a chain of one node is final at once.
pub fn number(tag: BlockNumberOrTag, first: u64, head: u64) -> u64 {
    match tag {
        BlockNumberOrTag::Number(number) => number,
        BlockNumberOrTag::Earliest => first,
        _ => head,
    }
}

fn words(id: &BlockId) -> String {
    match id {
        BlockId::Hash(hash) => hash.block_hash.to_string(),
        BlockId::Number(tag) => tag.to_string(),
    }
}
