//! A block: its header by the fork's rules, its transactions and receipts, and how one is made on top of another.
use std::sync::Arc;

use alloy_consensus::proofs::{calculate_receipt_root, calculate_transaction_root};
use alloy_consensus::transaction::Recovered;
use alloy_consensus::{
    Eip658Value, EthereumTxEnvelope, Header, Receipt, ReceiptEnvelope, ReceiptWithBloom, Sealable, Sealed,
    Transaction, TxEip4844, Typed2718,
};
use alloy_eips::eip1559::BaseFeeParams;
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_primitives::{B64, B256, Bloom, Bytes, U256, keccak256};
use alloy_trie::EMPTY_ROOT_HASH;
use revm::DatabaseCommit;
use revm::context::result::{ExecutionResult, Output};
use revm::context::{BlockEnv, CfgEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::inspector::NoOpInspector;
use revm::primitives::hardfork::SpecId;

use super::Settings;
use crate::exec;
use crate::hardfork;
use crate::state::{Change, Db, StateError, Word, World};

/// A transaction as a block holds it: blobs stay outside.
pub type Tx = EthereumTxEnvelope<TxEip4844>;

/// A block and what came of its transactions.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The header with its hash.
    pub header: Sealed<Header>,
    /// Transactions with their senders, in order.
    pub txs: Vec<Arc<Recovered<Tx>>>,
    /// A receipt for each transaction.
    pub receipts: Vec<ReceiptEnvelope>,
}

impl Block {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.header.number
    }

    /// Its hash.
    pub fn hash(&self) -> B256 {
        self.header.hash()
    }

    /// Gas that transaction `index` used.
    pub fn gas_used(&self, index: usize) -> u64 {
        let until = |index: usize| self.receipts.get(index).map_or(0, ReceiptEnvelope::cumulative_gas_used);
        until(index).saturating_sub(index.checked_sub(1).map_or(0, until))
    }

    /// The environment that its transactions saw.
    pub fn environment(&self, spec: SpecId) -> BlockEnv {
        environment(&self.header, spec)
    }
}

/// The environment of a block with this header.
pub fn environment(header: &Header, spec: SpecId) -> BlockEnv {
    BlockEnv {
        number: U256::from(header.number),
        beneficiary: header.beneficiary,
        timestamp: U256::from(header.timestamp),
        gas_limit: header.gas_limit,
        basefee: header.base_fee_per_gas.unwrap_or_default(),
        difficulty: header.difficulty,
        prevrandao: spec.is_enabled_in(SpecId::MERGE).then_some(header.mix_hash),
        blob_excess_gas_and_price: hardfork::blobs(spec).map(|blobs| {
            let excess = header.excess_blob_gas.unwrap_or_default();
            BlobExcessGasAndPrice { excess_blob_gas: excess, blob_gasprice: blobs.calc_blob_fee(excess) }
        }),
        slot_num: 0,
    }
}

/// The header of the block after `parent`, without what its transactions will say.
pub fn begin(parent: &Sealed<Header>, settings: &Settings, spec: SpecId, now: u64) -> Header {
    let after = |fork| spec.is_enabled_in(fork);
    let number = parent.number.saturating_add(1);
    let random = settings
        .next_random
        .unwrap_or_else(|| keccak256([parent.hash().0, B256::from(U256::from(number)).0].concat()));
    let excess_blob_gas = hardfork::blobs(spec).map(|blobs| {
        blobs.next_block_excess_blob_gas_osaka(
            parent.excess_blob_gas.unwrap_or_default(),
            parent.blob_gas_used.unwrap_or_default(),
            parent.base_fee_per_gas.unwrap_or_default(),
        )
    });
    Header {
        parent_hash: parent.hash(),
        beneficiary: settings.coinbase,
        number,
        gas_limit: settings.gas_limit,
        timestamp: settings.timestamp(parent.timestamp, now),
        mix_hash: if after(SpecId::MERGE) { random } else { B256::ZERO },
        nonce: B64::ZERO,
        base_fee_per_gas: after(SpecId::LONDON).then(|| {
            settings.next_base_fee.unwrap_or_else(|| {
                parent.next_block_base_fee(BaseFeeParams::ethereum()).unwrap_or(settings.base_fee)
            })
        }),
        withdrawals_root: after(SpecId::SHANGHAI).then_some(EMPTY_ROOT_HASH),
        blob_gas_used: excess_blob_gas.map(|_| 0),
        excess_blob_gas,
        parent_beacon_block_root: after(SpecId::CANCUN).then_some(B256::ZERO),
        requests_hash: after(SpecId::PRAGUE).then_some(EMPTY_REQUESTS_HASH),
        ..Header::default()
    }
}

/// A block that was made, and what it changed.
#[derive(Debug)]
pub struct Made {
    /// The block.
    pub block: Block,
    /// The state after it, with the changes that led there.
    pub db: Db,
    /// Transactions that turned out to be invalid, with the reason.
    pub refused: Vec<(B256, exec::Refusal)>,
}

/// Slots of a ring in the system contracts (EIP-4788 and EIP-2935: `HISTORY_BUFFER_LENGTH` and `HISTORY_SERVE_WINDOW`).
const RING: u64 = 8191;

/// What the two system calls at the begin of a block write, when their contracts are there.
pub fn system_changes(db: &Db, header: &Header, spec: SpecId) -> Result<Vec<Change>, StateError> {
    let mut changes = Vec::new();
    let mut write = |contract, slots: Vec<Word>| -> Result<(), StateError> {
        if db.world.account(contract)?.is_some_and(|account| !account.code.is_empty()) {
            changes.push(Change { slots, ..db.world.unchanged(contract)? });
        }
        Ok(())
    };
    if spec.is_enabled_in(SpecId::CANCUN) {
        let at = header.timestamp % RING;
        let root = header.parent_beacon_block_root.unwrap_or_default();
        write(
            alloy_eips::eip4788::BEACON_ROOTS_ADDRESS,
            vec![
                Word { key: U256::from(at), value: U256::from(header.timestamp) },
                Word { key: U256::from(at + RING), value: root.into() },
            ],
        )?;
    }
    if spec.is_enabled_in(SpecId::PRAGUE) {
        let key = U256::from(header.number.saturating_sub(1) % RING);
        write(
            alloy_eips::eip2935::HISTORY_STORAGE_ADDRESS,
            vec![Word { key, value: header.parent_hash.into() }],
        )?;
    }
    Ok(changes)
}

/// Executes `txs` in order on top of `db` and makes a block of those that are valid and fit.
pub fn make(
    mut db: Db,
    mut header: Header,
    txs: Vec<Arc<Recovered<Tx>>>,
    mut rules: CfgEnv,
) -> Result<Made, StateError> {
    let spec = rules.spec;
    let before = system_changes(&db, &header, spec)?;
    db.change(before)?;
    let blob_gas_max = hardfork::blobs(spec).map_or(0, |blobs| blobs.max_blob_gas_per_block());
    // Who may send was decided when the transaction came in: an impersonated contract may.
    rules.disable_eip3607 = true;
    let mut machine = exec::machine(db, rules, environment(&header, spec), None, NoOpInspector);
    let (mut included, mut receipts, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gas_used, mut blob_gas_used) = (0_u64, 0_u64);
    for tx in txs {
        let blob_gas = tx.blob_gas_used().unwrap_or_default();
        if gas_used.saturating_add(tx.gas_limit()) > header.gas_limit
            || blob_gas_used.saturating_add(blob_gas) > blob_gas_max && blob_gas > 0
        {
            continue;
        }
        let outcome = match exec::transact(&mut machine, exec::environment(&tx), false) {
            Ok(outcome) => outcome,
            Err(refusal) => {
                refused.push((*tx.tx_hash(), refusal));
                continue;
            }
        };
        let db = &mut machine.ctx.journaled_state.database;
        db.commit(outcome.state);
        db.failure()?;
        gas_used = gas_used.saturating_add(outcome.result.tx_gas_used());
        blob_gas_used = blob_gas_used.saturating_add(blob_gas);
        let status = if spec.is_enabled_in(SpecId::BYZANTIUM) {
            Eip658Value::Eip658(outcome.result.is_success())
        } else {
            Eip658Value::PostState(db.world.root())
        };
        let receipt = Receipt { status, cumulative_gas_used: gas_used, logs: outcome.result.into_logs() };
        receipts.push(envelope(tx.ty(), receipt.with_bloom()));
        included.push(tx);
    }
    let db = machine.ctx.journaled_state.database;
    header.gas_used = gas_used;
    header.blob_gas_used = header.blob_gas_used.map(|_| blob_gas_used);
    Ok(Made { block: assemble(header, included, receipts, &db.world), db, refused })
}

/// Completes a header with what its transactions and the state after them say.
pub fn assemble(
    mut header: Header,
    txs: Vec<Arc<Recovered<Tx>>>,
    receipts: Vec<ReceiptEnvelope>,
    world: &World,
) -> Block {
    header.logs_bloom = receipts.iter().fold(Bloom::ZERO, |bloom, receipt| bloom | *receipt.logs_bloom());
    header.state_root = world.root();
    let bodies: Vec<&Tx> = txs.iter().map(|tx| tx.inner()).collect();
    header.transactions_root = calculate_transaction_root(&bodies);
    header.receipts_root = calculate_receipt_root(&receipts);
    Block { header: header.seal_slow(), txs, receipts }
}

/// A receipt in the envelope of its transaction's type (EIP-2718).
pub fn envelope(kind: u8, receipt: ReceiptWithBloom<Receipt>) -> ReceiptEnvelope {
    match kind {
        1 => ReceiptEnvelope::Eip2930(receipt),
        2 => ReceiptEnvelope::Eip1559(receipt),
        3 => ReceiptEnvelope::Eip4844(receipt),
        4 => ReceiptEnvelope::Eip7702(receipt),
        _ => ReceiptEnvelope::Legacy(receipt),
    }
}

/// What a call returned, whether it succeeded or reverted.
pub fn output(result: &ExecutionResult) -> Bytes {
    match result {
        ExecutionResult::Success { output: Output::Call(bytes) | Output::Create(bytes, _), .. }
        | ExecutionResult::Revert { output: bytes, .. } => bytes.clone(),
        ExecutionResult::Halt { .. } => Bytes::new(),
    }
}
