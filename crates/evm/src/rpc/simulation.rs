//! Blocks that nobody makes (`eth_simulateV1`, execution-apis): calls in blocks on top of one that is there.
use std::sync::Arc;

use alloy_consensus::transaction::Recovered;
use alloy_consensus::{Eip658Value, Header, Receipt, Sealable, Transaction as _, Typed2718};
use alloy_primitives::{Bytes, Signature, U64};
use alloy_rpc_types_eth::TransactionRequest;
use alloy_rpc_types_eth::simulate::{MAX_SIMULATE_BLOCKS, SimBlock, SimulatePayload};
use revm::DatabaseCommit;
use revm::context::result::ExecutionResult;
use revm_inspectors::transfer::TransferInspector;
use serde_json::{Value, json};

use super::calls::{override_block, override_state};
use super::{Answer, Params, Rpc, RpcError, View, answers};
use crate::chain::block::{self, Block, envelope, output};
use crate::chain::{Settings, Tx};
use crate::exec;
use crate::state::Db;

/// A block's number does not rise.
const NUMBER: i64 = -38020;
/// A block's time does not rise.
const TIME: i64 = -38021;
/// A block has more gas than it may.
const BLOCK_GAS: i64 = -38015;
/// More blocks than one request may have.
const TOO_MANY: i64 = -38026;
/// A call within that reverted.
const REVERTED: i64 = 3;
/// A call within that the EVM stopped.
const HALTED: i64 = -32015;

impl Rpc {
    pub(super) fn simulation(&self, method: &str, params: &Params) -> Option<Answer> {
        (method == "eth_simulateV1").then(|| self.simulate(params))
    }

    fn simulate(&self, params: &Params) -> Answer {
        let payload: SimulatePayload<TransactionRequest> = params.get(0)?;
        let View { block: base, world } = self.view(params.opt(1)?)?;
        if payload.block_state_calls.is_empty() {
            return Err(RpcError::params("empty input: no blocks to simulate"));
        }
        let mut parent = base;
        let mut db = self.chain.db(world);
        let mut gas_left = self.limits.call_gas;
        let mut blocks = Vec::new();
        let watch = self.watch();
        for wanted in self.without_gaps(&payload.block_state_calls, parent.number())? {
            let (block, calls) =
                self.simulate_block(&parent, &mut db, &wanted, &payload, &mut gas_left, watch.clone())?;
            let mut shown = json!(answers::block(&block, payload.return_full_transactions));
            shown["calls"] = Value::Array(calls);
            blocks.push(shown);
            parent = Arc::new(block);
        }
        Ok(Value::Array(blocks))
    }

    /// Every block up to the last one that is asked for, each with its number.
    fn without_gaps(&self, wanted: &[SimBlock], base: u64) -> Result<Vec<SimBlock>, RpcError> {
        let (mut blocks, mut last) = (Vec::<SimBlock>::new(), base);
        for block in wanted {
            let number =
                block.block_number_override().map_or(last.saturating_add(1), |number| number.saturating_to());
            if number <= last {
                return Err(RpcError::new(
                    NUMBER,
                    format!("block numbers must be in order: {number} <= {last}"),
                ));
            }
            if number - base > MAX_SIMULATE_BLOCKS {
                return Err(RpcError::new(TOO_MANY, format!("too many blocks: limit {MAX_SIMULATE_BLOCKS}")));
            }
            blocks.extend((last + 1..number).map(|_| SimBlock::default()));
            blocks.push(block.clone());
            last = number;
        }
        Ok(blocks)
    }

    fn simulate_block(
        &self,
        parent: &Block,
        db: &mut Db,
        wanted: &SimBlock,
        payload: &SimulatePayload<TransactionRequest>,
        gas_left: &mut u64,
        watch: exec::Watch,
    ) -> Result<(Block, Vec<Value>), RpcError> {
        let spec = self.chain.spec();
        let header = self.simulated_header(parent, wanted, payload.validation)?;
        if let Some(overrides) = &wanted.state_overrides {
            override_state(&mut db.world, overrides)?;
        }
        let system = block::system_changes(db, &header, spec)?;
        db.change(system)?;
        let mut rules = exec::rules_of_a_call(self.chain.rules());
        rules.disable_nonce_check = !payload.validation;
        rules.disable_base_fee = !payload.validation;
        let mut environment = block::environment(&header, spec);
        if let Some(overrides) = &wanted.block_overrides {
            override_block(&mut environment, overrides);
        }
        let inspector = TransferInspector::new(false).with_logs(true);
        let mut machine = exec::machine(db.clone(), rules, environment, Some(watch), inspector);
        let (mut txs, mut receipts, mut results, mut gas_used) = (Vec::new(), Vec::new(), Vec::new(), 0_u64);
        for call in &wanted.calls {
            let left = header.gas_limit.saturating_sub(gas_used).min(*gas_left);
            let tx = self.simulated(
                call,
                &machine.ctx.journaled_state.database,
                left,
                &header,
                payload.validation,
            )?;
            if tx.gas_limit() > header.gas_limit.saturating_sub(gas_used) {
                return Err(RpcError::new(
                    BLOCK_GAS,
                    format!("block gas limit reached: {} >= {}", tx.gas_limit(), left),
                ));
            }
            let outcome = exec::transact(&mut machine, exec::environment(&tx), payload.trace_transfers)
                .map_err(|refusal| numbered(refusal.into()))?;
            let used = outcome.result.tx_gas_used();
            gas_used = gas_used.saturating_add(used);
            *gas_left = gas_left.saturating_sub(used);
            let database = &mut machine.ctx.journaled_state.database;
            database.commit(outcome.state);
            database.failure()?;
            results.push(result(&outcome.result));
            let status = Eip658Value::Eip658(outcome.result.is_success());
            let receipt = Receipt { status, cumulative_gas_used: gas_used, logs: outcome.result.into_logs() };
            receipts.push(envelope(tx.ty(), receipt.with_bloom()));
            txs.push(Arc::new(tx));
        }
        *db = machine.ctx.journaled_state.database;
        let header = Header { gas_used, ..header };
        let block = block::assemble(header, txs, receipts, &db.world);
        for (index, result) in results.iter_mut().enumerate() {
            result["logs"] = json!(answers::logs(&block, Some(index)));
        }
        Ok((block, results))
    }

    fn simulated_header(
        &self,
        parent: &Block,
        wanted: &SimBlock,
        validation: bool,
    ) -> Result<Header, RpcError> {
        let overrides = wanted.block_overrides.clone().unwrap_or_default();
        let before = parent.header.timestamp;
        let time = overrides.time.unwrap_or(before.saturating_add(1));
        if time <= before {
            return Err(RpcError::new(
                TIME,
                format!("block timestamps must be in order: {time} <= {before}"),
            ));
        }
        let mut settings = Settings { next_timestamp: Some(time), ..self.chain.read().settings.clone() };
        settings.gas_limit = overrides.gas_limit.unwrap_or(parent.header.gas_limit);
        settings.coinbase = overrides.coinbase.unwrap_or(parent.header.beneficiary);
        settings.next_random = overrides.random.or(settings.next_random);
        let free = (!validation).then_some(0);
        settings.next_base_fee = overrides.base_fee.map(|fee| fee.saturating_to()).or(free);
        let sealed = parent.header.inner().clone().seal_slow();
        Ok(block::begin(&sealed, &settings, self.chain.spec(), time))
    }

    /// A call as a transaction that nobody signed.
    fn simulated(
        &self,
        call: &TransactionRequest,
        db: &Db,
        gas: u64,
        header: &Header,
        validation: bool,
    ) -> Result<Recovered<Tx>, RpcError> {
        let from = call.from.unwrap_or_default();
        let mut request = TransactionRequest { from: Some(from), ..call.clone() };
        request.normalize_input();
        request.to.get_or_insert_default();
        request.gas.get_or_insert(gas);
        request.chain_id = Some(self.chain.chain_id());
        if request.nonce.is_none() {
            request.nonce = Some(db.world.account(from)?.map_or(0, |account| account.nonce));
        }
        if request.gas_price.is_none() {
            let base = u128::from(header.base_fee_per_gas.unwrap_or_default());
            request.max_fee_per_gas.get_or_insert(if validation { base } else { 0 });
            request.max_priority_fee_per_gas.get_or_insert(0);
        }
        let typed = request
            .build_typed_tx()
            .map_err(|_| RpcError::params("a call has fields that no type of transaction has together"))?;
        let signature = Signature::new(Default::default(), Default::default(), false);
        let signed = typed.into_envelope(signature);
        Ok(Recovered::new_unchecked(Tx::from(signed), from))
    }
}

/// The result of one call.
fn result(result: &ExecutionResult) -> Value {
    let mut shown = json!({
        "returnData": output(result),
        "gasUsed": U64::from(result.tx_gas_used()),
        "maxUsedGas": U64::from(result.gas().total_gas_spent()),
        "status": U64::from(u8::from(result.is_success())),
        "logs": [],
    });
    if let Some(error) = RpcError::failed(result) {
        let code = if matches!(result, ExecutionResult::Revert { .. }) { REVERTED } else { HALTED };
        shown["error"] = RpcError { code, ..error }.to_json();
        shown["returnData"] = json!(if code == REVERTED { output(result) } else { Bytes::new() });
    }
    shown
}

/// The numbers that execution-apis has for transactions that cannot be in a block.
fn numbered(error: RpcError) -> RpcError {
    let code = match error.message.as_str() {
        text if text.contains("nonce") && text.contains("too low") => -38010,
        text if text.contains("nonce") && text.contains("too high") => -38011,
        text if text.contains("basefee") => -38012,
        text if text.contains("intrinsic gas") => -38013,
        text if text.contains("insufficient funds") => -38014,
        text if text.contains("initcode") => -38025,
        _ => error.code,
    };
    RpcError { code, ..error }
}
