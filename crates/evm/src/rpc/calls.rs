//! Calls that nobody pays for: `eth_call`, `eth_estimateGas` and `eth_createAccessList`, on a state of their own.
use alloy_eips::BlockId;
use alloy_eips::eip2930::AccessListResult;
use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256};
use alloy_rpc_types_eth::state::{AccountOverride, StateOverride};
use alloy_rpc_types_eth::{BlockOverrides, TransactionRequest};
use revm::context::result::{ExecutionResult, HaltReason};
use revm::context::{BlockEnv, CfgEnv, TxEnv};
use revm::context_interface::Cfg;
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm_inspectors::access_list::AccessListInspector;
use serde_json::json;

use super::{Answer, Params, Rpc, RpcError, View};
use crate::chain::block::output;
use crate::exec::{self, Watch};
use crate::hardfork;
use crate::state::{Db, Word, World};

/// Gas of a transfer (yellow paper, appendix G: `Gtransaction`).
const TRANSFER: u64 = 21_000;
/// Gas that a call with value gives on top (appendix G: `Gcallstipend`).
const STIPEND: u64 = 2_300;
/// How exact an estimate is: geth's `estimateGasErrorRatio`, in parts of a thousand.
const ERROR_PER_MILLE: u64 = 15;

/// What a call runs with.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) db: Db,
    pub(super) rules: CfgEnv,
    pub(super) block: BlockEnv,
    pub(super) tx: TxEnv,
}

impl Rpc {
    pub(super) fn calls(&self, method: &str, params: &Params) -> Option<Answer> {
        Some(match method {
            "eth_call" => self.eth_call(params),
            "eth_estimateGas" => self.estimate_gas(params),
            "eth_createAccessList" => self.create_access_list(params),
            _ => return None,
        })
    }

    /// What ends a call of this client.
    pub(super) fn watch(&self) -> Watch {
        Watch::new(self.limits.call_time, self.chain.hold().clone(), self.limits.memory)
    }

    /// A call at a block, with overrides.
    pub(super) fn setting(
        &self,
        request: &TransactionRequest,
        view: &View,
        state: Option<&StateOverride>,
        block: Option<&BlockOverrides>,
    ) -> Result<Setting, RpcError> {
        let mut world = view.world.clone();
        if let Some(state) = state {
            override_state(&mut world, state)?;
        }
        let mut environment = self.environment(view);
        let mut db = self.chain.db(world);
        if let Some(overrides) = block {
            override_block(&mut environment, overrides);
            if let Some(hashes) = overrides.block_hash.clone() {
                let others = self.chain.hashes();
                let hash = move |number| hashes.get(&number).copied().unwrap_or_else(|| others(number));
                db = Db::new(db.world, std::sync::Arc::new(hash), self.chain.spec());
            }
        }
        let mut rules = exec::rules_of_a_call(self.chain.rules());
        let tx = self.environment_of(request, &db.world)?;
        rules.disable_base_fee = tx.gas_price == 0;
        Ok(Setting { db, rules, block: environment, tx })
    }

    fn environment_of(&self, request: &TransactionRequest, world: &World) -> Result<TxEnv, RpcError> {
        if request.gas_price.is_some()
            && (request.max_fee_per_gas.is_some() || request.max_priority_fee_per_gas.is_some())
        {
            return Err(RpcError::params(
                "both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified",
            ));
        }
        let have = request.chain_id.unwrap_or(self.chain.chain_id());
        if have != self.chain.chain_id() {
            return Err(RpcError::server(format!(
                "chainId does not match node's (have={have}, want={})",
                self.chain.chain_id()
            )));
        }
        let data = request.input.unique_input().map_err(|error| RpcError::params(error.to_string()))?;
        let caller = request.from.unwrap_or_default();
        let mut tx = TxEnv {
            caller,
            gas_limit: request.gas.unwrap_or(self.limits.call_gas).min(self.limits.call_gas),
            gas_price: request.gas_price.or(request.max_fee_per_gas).unwrap_or_default(),
            kind: request.to.unwrap_or(TxKind::Create),
            value: request.value.unwrap_or_default(),
            data: data.cloned().unwrap_or_default(),
            nonce: match request.nonce {
                Some(nonce) => nonce,
                None => world.account(caller)?.map_or(0, |account| account.nonce),
            },
            chain_id: Some(self.chain.chain_id()),
            access_list: request.access_list.clone().unwrap_or_default(),
            gas_priority_fee: request
                .max_fee_per_gas
                .map(|_| request.max_priority_fee_per_gas.unwrap_or_default()),
            blob_hashes: request.blob_versioned_hashes.clone().unwrap_or_default(),
            max_fee_per_blob_gas: request.max_fee_per_blob_gas.unwrap_or_default(),
            authorization_list: exec::authorizations(
                request.authorization_list.as_deref().unwrap_or_default(),
            ),
            ..TxEnv::default()
        };
        if !tx.blob_hashes.is_empty() && request.max_fee_per_blob_gas.is_none() {
            tx.max_fee_per_blob_gas = u128::MAX;
        }
        tx.derive_tx_type().map_err(|error| RpcError::params(format!("invalid transaction: {error:?}")))?;
        if tx.tx_type > 0 && !self.chain.spec().is_enabled_in(revm::primitives::hardfork::SpecId::BERLIN) {
            tx.tx_type = 0;
        }
        Ok(tx)
    }

    fn eth_call(&self, params: &Params) -> Answer {
        let request: TransactionRequest = params.get(0)?;
        let view = self.view(params.opt(1)?)?;
        let (state, block): (Option<StateOverride>, Option<BlockOverrides>) =
            (params.opt(2)?, params.opt(3)?);
        let Setting { db, rules, block, tx } =
            self.setting(&request, &view, state.as_ref(), block.as_ref())?;
        let result = exec::run(db, rules, block, tx, self.watch())?;
        RpcError::failed(&result).map_or_else(|| Ok(json!(output(&result))), Err)
    }

    fn estimate_gas(&self, params: &Params) -> Answer {
        let request: TransactionRequest = params.get(0)?;
        let id: Option<BlockId> = params.opt(1)?;
        let view = self.view(Some(id.unwrap_or(BlockId::pending())))?;
        let (state, block): (Option<StateOverride>, Option<BlockOverrides>) =
            (params.opt(2)?, params.opt(3)?);
        let setting = self.setting(&request, &view, state.as_ref(), block.as_ref())?;
        Ok(json!(U64::from(self.estimate(&request, setting)?)))
    }

    /// The least gas that a transaction needs, as geth looks for it (`eth/gasestimator`).
    pub(super) fn estimate(&self, request: &TransactionRequest, setting: Setting) -> Result<u64, RpcError> {
        let cap = self.chain.rules().tx_gas_limit_cap();
        let mut high = request.gas.filter(|gas| *gas >= TRANSFER).unwrap_or(setting.block.gas_limit);
        high = high.min(self.limits.call_gas).min(cap);
        if setting.tx.gas_price > 0 {
            let balance =
                setting.db.world.account(setting.tx.caller)?.map_or(U256::ZERO, |account| account.balance);
            let left = balance.checked_sub(setting.tx.value).ok_or_else(|| {
                RpcError::server(format!("insufficient funds for transfer: address {}", setting.tx.caller))
            })?;
            high = high.min((left / U256::from(setting.tx.gas_price)).saturating_to());
        }
        let watch = self.watch();
        let attempt = |gas: u64| -> Result<ExecutionResult, RpcError> {
            let tx = TxEnv { gas_limit: gas, ..setting.tx.clone() };
            Ok(exec::run(
                setting.db.clone(),
                setting.rules.clone(),
                setting.block.clone(),
                tx,
                watch.clone(),
            )?)
        };
        let enough = |gas: u64| -> Result<bool, RpcError> {
            let tx = TxEnv { gas_limit: gas, ..setting.tx.clone() };
            let (db, rules, block) = (setting.db.clone(), setting.rules.clone(), setting.block.clone());
            match exec::run(db, rules, block, tx, watch.clone()) {
                Ok(result) => Ok(result.is_success()),
                // Too little even to begin.
                Err(exec::Refusal::Transaction(_)) => Ok(false),
                Err(refusal) => Err(refusal.into()),
            }
        };
        let first = attempt(high)?;
        match &first {
            ExecutionResult::Halt { reason: HaltReason::OutOfGas(_), .. } => {
                return Err(RpcError::server(format!("gas required exceeds allowance ({high})")));
            }
            result => {
                if let Some(error) = RpcError::failed(result) {
                    return Err(error);
                }
            }
        }
        let used = first.gas().total_gas_spent().max(first.tx_gas_used());
        let mut low = first.tx_gas_used().saturating_sub(1);
        // A call keeps a sixty-fourth of its gas back (EIP-150); refunds come only at the end.
        let likely = used.saturating_add(STIPEND).saturating_mul(64) / 63;
        if first.tx_gas_used() == TRANSFER && enough(TRANSFER)? {
            return Ok(TRANSFER);
        }
        if likely < high {
            if enough(likely)? { high = likely } else { low = likely }
        }
        while low.saturating_add(1) < high {
            if (high - low).saturating_mul(1000) < high.saturating_mul(ERROR_PER_MILLE) {
                break;
            }
            // Most need little more than they use, so the middle is looked for near the low end.
            let middle = (high / 2 + low / 2).min(low.saturating_mul(2)).max(low + 1);
            if enough(middle)? { high = middle } else { low = middle }
        }
        Ok(high)
    }

    fn create_access_list(&self, params: &Params) -> Answer {
        let request: TransactionRequest = params.get(0)?;
        let view = self.view(params.opt(1)?)?;
        let state: Option<StateOverride> = params.opt(2)?;
        let Setting { db, mut rules, block, mut tx } = self.setting(&request, &view, state.as_ref(), None)?;
        rules.disable_fee_charge = tx.gas_price == 0;
        let inspector = AccessListInspector::new(tx.access_list.clone());
        let mut machine =
            exec::machine(db.clone(), rules.clone(), block.clone(), Some(self.watch()), inspector);
        exec::transact(&mut machine, tx.clone(), true)?;
        let access_list = machine.into_inspector().into_access_list();
        tx.access_list = access_list.clone();
        tx.derive_tx_type().map_err(|error| RpcError::params(format!("invalid transaction: {error:?}")))?;
        let result = exec::run(db, rules, block, tx, self.watch())?;
        let error = RpcError::failed(&result).map(|error| error.message);
        Ok(json!(AccessListResult { access_list, gas_used: U256::from(result.tx_gas_used()), error }))
    }
}

/// Changes a block's environment as a client says.
pub(super) fn override_block(block: &mut BlockEnv, overrides: &BlockOverrides) {
    let BlockOverrides {
        number, difficulty, time, gas_limit, coinbase, random, base_fee, blob_base_fee, ..
    } = overrides;
    block.number = number.unwrap_or(block.number);
    block.difficulty = difficulty.unwrap_or(block.difficulty);
    block.timestamp = time.map_or(block.timestamp, U256::from);
    block.gas_limit = gas_limit.unwrap_or(block.gas_limit);
    block.beneficiary = coinbase.unwrap_or(block.beneficiary);
    block.prevrandao = random.or(block.prevrandao);
    block.basefee = base_fee.map_or(block.basefee, |fee| fee.saturating_to());
    if let Some(price) = blob_base_fee {
        let excess = block.blob_excess_gas_and_price.map_or(0, |blobs| blobs.excess_blob_gas);
        block.blob_excess_gas_and_price =
            Some(BlobExcessGasAndPrice { excess_blob_gas: excess, blob_gasprice: price.saturating_to() });
    }
}

/// Changes accounts as a client says.
pub(super) fn override_state(world: &mut World, overrides: &StateOverride) -> Result<(), RpcError> {
    for (address, account) in overrides {
        override_account(world, *address, account)?;
    }
    Ok(())
}

fn override_account(world: &mut World, address: Address, account: &AccountOverride) -> Result<(), RpcError> {
    if account.move_precompile_to.is_some() {
        return Err(RpcError::params("movePrecompileToAddress is not supported: override the code instead"));
    }
    if account.state.is_some() && account.state_diff.is_some() {
        return Err(RpcError::params(format!("account {address} has both 'state' and 'stateDiff'")));
    }
    let mut change = world.unchanged(address)?;
    change.balance = account.balance.unwrap_or(change.balance);
    change.nonce = account.nonce.unwrap_or(change.nonce);
    let kept = || -> Result<Bytes, RpcError> {
        Ok(world.account(address)?.map(|it| it.code.original_bytes()).unwrap_or_default())
    };
    if account.state.is_some() {
        // All of the storage is replaced, and with it the account, which keeps its code.
        change.fresh = true;
        change.has_code = true;
        change.code = kept()?;
    }
    if let Some(code) = &account.code {
        change.has_code = true;
        change.code = code.clone();
    }
    let slots = account.state.iter().chain(&account.state_diff).flatten();
    change.slots = slots
        .map(|(key, value): (&B256, &B256)| Word { key: (*key).into(), value: (*value).into() })
        .collect();
    world.apply(&[change])?;
    Ok(())
}

/// Blobs cost nothing where there are none.
pub(super) fn blob_fee(excess: Option<u64>, spec: revm::primitives::hardfork::SpecId) -> u128 {
    hardfork::blobs(spec).map_or(0, |blobs| blobs.calc_blob_fee(excess.unwrap_or_default()))
}
