//! What the EVM did, step by step or call by call (`debug_trace*`).
use std::sync::Arc;

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::B256;
use alloy_rpc_types_eth::TransactionRequest;
use alloy_rpc_types_trace::geth::{
    GethDebugBuiltInTracerType, GethDebugTracerType, GethDebugTracingCallOptions, GethDebugTracingOptions,
    GethTrace,
};
use revm::DatabaseCommit;
use revm_inspectors::tracing::{DebugInspector, TransactionContext};
use serde_json::{Value, json};

use super::calls::Setting;
use super::{Answer, Params, Rpc, RpcError, View};
use crate::chain::Block;
use crate::exec::{self, Machine};

/// Steps of a trace when the client names no number: a step takes some 300 bytes here and more as JSON.
const STEPS_MAX: u64 = 500_000;

impl Rpc {
    pub(super) fn tracing(&self, method: &str, params: &Params) -> Option<Answer> {
        Some(match method {
            "debug_traceTransaction" => self.trace_transaction(params),
            "debug_traceCall" => self.trace_call(params),
            "debug_traceBlockByNumber" => params.get(0).and_then(|tag: BlockNumberOrTag| {
                self.trace_block(tag.into(), params.opt(1)?.unwrap_or_default())
            }),
            "debug_traceBlockByHash" => params
                .get(0)
                .and_then(|hash: B256| self.trace_block(hash.into(), params.opt(1)?.unwrap_or_default())),
            _ => return None,
        })
    }

    /// A machine at the begin of a block that is on the chain, with its settings.
    fn before(
        &self,
        block: &Block,
        options: GethDebugTracingOptions,
    ) -> Result<Machine<DebugInspector>, RpcError> {
        let View { world, .. } = self.view(Some(block.header.parent_hash.into()))?;
        let mut db = self.chain.db(world);
        let system = crate::chain::block::system_changes(&db, &block.header, self.chain.spec())?;
        db.change(system)?;
        let mut rules = self.chain.rules();
        rules.disable_eip3607 = true;
        let environment = block.environment(self.chain.spec());
        Ok(exec::machine(db, rules, environment, Some(self.watch()), inspector(options)?))
    }

    fn trace_transaction(&self, params: &Params) -> Answer {
        let hash: B256 = params.get(0)?;
        let options = params.opt(1)?.unwrap_or_default();
        let found = self.chain.read().transaction(&hash).map(|(block, index)| (Arc::clone(block), index));
        let (block, index) =
            found.ok_or_else(|| RpcError::server(format!("transaction not found: {hash}")))?;
        let mut machine = self.before(&block, options)?;
        for tx in block.txs.iter().take(index) {
            let outcome = exec::transact(&mut machine, exec::environment(tx), false)?;
            machine.ctx.journaled_state.database.commit(outcome.state);
        }
        self.trace_one(&mut machine, &block, index).map(|trace| json!(trace))
    }

    /// Traces the transaction that is next in the block, and carries it out.
    fn trace_one(
        &self,
        machine: &mut Machine<DebugInspector>,
        block: &Block,
        index: usize,
    ) -> Result<GethTrace, RpcError> {
        let tx = block.txs.get(index).ok_or_else(|| RpcError::server("transaction not found"))?;
        let environment = exec::environment(tx);
        let outcome = exec::transact(machine, environment.clone(), true)?;
        let context = TransactionContext {
            block_hash: Some(block.hash()),
            tx_hash: Some(*tx.tx_hash()),
            tx_index: Some(index),
        };
        let trace = finish(machine, Some(context), &environment, &outcome)?;
        machine.ctx.journaled_state.database.commit(outcome.state);
        Ok(trace)
    }

    fn trace_block(&self, id: BlockId, options: GethDebugTracingOptions) -> Answer {
        let block = self.find_block(id)?.ok_or_else(|| RpcError::server("block not found"))?;
        if block.number() == self.chain.read().first() {
            return Err(RpcError::server("genesis is not traceable"));
        }
        let mut machine = self.before(&block, options)?;
        let mut traces = Vec::new();
        for (index, tx) in block.txs.iter().enumerate() {
            let result = self.trace_one(&mut machine, &block, index)?;
            machine.inspector.fuse().map_err(|error| RpcError::server(error.to_string()))?;
            traces.push(json!({ "txHash": tx.tx_hash(), "result": result }));
        }
        Ok(Value::Array(traces))
    }

    fn trace_call(&self, params: &Params) -> Answer {
        let request: TransactionRequest = params.get(0)?;
        let view = self.view(params.opt(1)?)?;
        let options: GethDebugTracingCallOptions = params.opt(2)?.unwrap_or_default();
        let setting = self.setting(
            &request,
            &view,
            options.state_overrides.as_ref(),
            options.block_overrides.as_ref(),
        )?;
        let Setting { db, rules, block, tx } = setting;
        let inspector = inspector(options.tracing_options)?;
        let mut machine = exec::machine(db, rules, block, Some(self.watch()), inspector);
        let outcome = exec::transact(&mut machine, tx.clone(), true)?;
        finish(&mut machine, None, &tx, &outcome).map(|trace| json!(trace))
    }
}

/// The inspector that a client wants. A trace of steps is bounded, since it takes memory for each.
fn inspector(mut options: GethDebugTracingOptions) -> Result<DebugInspector, RpcError> {
    let steps = match &options.tracer {
        None => true,
        Some(GethDebugTracerType::BuiltInTracer(GethDebugBuiltInTracerType::MuxTracer)) => false,
        Some(_) => false,
    };
    if steps {
        let limit = options.config.limit.filter(|limit| *limit > 0).unwrap_or(STEPS_MAX);
        options.config.limit = Some(limit.min(STEPS_MAX));
    }
    DebugInspector::new(options).map_err(|error| RpcError::params(error.to_string()))
}

fn finish(
    machine: &mut Machine<DebugInspector>,
    context: Option<TransactionContext>,
    tx: &revm::context::TxEnv,
    outcome: &revm::context::result::ResultAndState,
) -> Result<GethTrace, RpcError> {
    let block = machine.ctx.block.clone();
    let Machine { ctx, inspector, .. } = machine;
    inspector
        .get_result(context, tx, &block, outcome, &mut ctx.journaled_state.database)
        .map_err(|error| RpcError::server(error.to_string()))
}
