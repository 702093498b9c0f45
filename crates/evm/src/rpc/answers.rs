//! Blocks, transactions, receipts and logs in the shape that clients read (execution-apis).
use std::sync::Arc;

use alloy_consensus::transaction::Recovered;
use alloy_consensus::{Eip658Value, ReceiptEnvelope, ReceiptWithBloom, Transaction as _, TxReceipt};
use alloy_eips::eip2718::Encodable2718;
use alloy_eips::eip4895::Withdrawals;
use alloy_primitives::U256;
use alloy_rlp::Encodable;
use alloy_rpc_types_eth::{
    Block as RpcBlock, BlockTransactions, Header, Log, Receipt, Transaction, TransactionReceipt,
};
use revm::primitives::hardfork::SpecId;

use crate::chain::{Block, Tx};

/// A transaction as clients see it.
pub type RpcTransaction = Transaction<Tx>;

/// A transaction that waits.
pub fn waiting(tx: &Recovered<Tx>) -> RpcTransaction {
    Transaction {
        inner: tx.clone(),
        block_hash: None,
        block_number: None,
        transaction_index: None,
        effective_gas_price: None,
        block_timestamp: None,
    }
}

/// Transaction `index` of a block.
pub(super) fn transaction(block: &Block, index: usize) -> Option<RpcTransaction> {
    let tx = block.txs.get(index)?;
    Some(Transaction {
        inner: Recovered::clone(tx),
        block_hash: Some(block.hash()),
        block_number: Some(block.number()),
        transaction_index: Some(index as u64),
        effective_gas_price: Some(tx.effective_gas_price(block.header.base_fee_per_gas)),
        block_timestamp: Some(block.header.timestamp),
    })
}

/// The bytes of a block in RLP (EIP-2464's `Block` with withdrawals).
fn size(block: &Block) -> usize {
    let txs: usize = block.txs.iter().map(|tx| tx.network_len()).sum();
    let list = |payload_length| alloy_rlp::Header { list: true, payload_length }.length_with_payload();
    let withdrawals = usize::from(block.header.withdrawals_root.is_some());
    list(block.header.inner().length() + list(txs) + 1 + withdrawals)
}

/// A header.
pub fn header(block: &Block) -> Header {
    Header {
        hash: block.hash(),
        inner: block.header.inner().clone(),
        total_difficulty: Some(U256::ZERO),
        size: Some(U256::from(size(block))),
    }
}

/// A block with its transactions, or their hashes.
pub(super) fn block(block: &Block, full: bool) -> RpcBlock<RpcTransaction> {
    let transactions = if full {
        BlockTransactions::Full((0..block.txs.len()).filter_map(|index| transaction(block, index)).collect())
    } else {
        BlockTransactions::Hashes(block.txs.iter().map(|tx| *tx.tx_hash()).collect())
    };
    RpcBlock {
        header: header(block),
        uncles: Vec::new(),
        transactions,
        withdrawals: block.header.withdrawals_root.map(|_| Withdrawals::default()),
    }
}

/// The logs of a block, or of one transaction of it.
pub(super) fn logs(block: &Block, only: Option<usize>) -> Vec<Log> {
    let mut number = 0;
    let mut logs = Vec::new();
    for (index, (tx, receipt)) in block.txs.iter().zip(&block.receipts).enumerate() {
        for log in receipt.logs() {
            if only.is_none_or(|only| only == index) {
                logs.push(Log {
                    inner: log.clone(),
                    block_hash: Some(block.hash()),
                    block_number: Some(block.number()),
                    block_timestamp: Some(block.header.timestamp),
                    transaction_hash: Some(*tx.tx_hash()),
                    transaction_index: Some(index as u64),
                    log_index: Some(number),
                    removed: false,
                });
            }
            number += 1;
        }
    }
    logs
}

/// The receipt of transaction `index`.
pub(super) fn receipt(
    block: &Arc<Block>,
    index: usize,
    spec: SpecId,
) -> Option<TransactionReceipt<ReceiptEnvelope<Log>>> {
    let (tx, kept) = (block.txs.get(index)?, block.receipts.get(index)?);
    let inner = Receipt {
        status: match kept.status_or_post_state() {
            Eip658Value::Eip658(ok) => Eip658Value::Eip658(ok),
            Eip658Value::PostState(root) => Eip658Value::PostState(root),
        },
        cumulative_gas_used: kept.cumulative_gas_used(),
        logs: logs(block, Some(index)),
    };
    let with_bloom = ReceiptWithBloom { receipt: inner, logs_bloom: *kept.logs_bloom() };
    let blob_gas_price =
        || block.environment(spec).blob_excess_gas_and_price.map(|blobs| blobs.blob_gasprice);
    Some(TransactionReceipt {
        inner: match kept {
            ReceiptEnvelope::Legacy(_) => ReceiptEnvelope::Legacy(with_bloom),
            ReceiptEnvelope::Eip2930(_) => ReceiptEnvelope::Eip2930(with_bloom),
            ReceiptEnvelope::Eip1559(_) => ReceiptEnvelope::Eip1559(with_bloom),
            ReceiptEnvelope::Eip4844(_) => ReceiptEnvelope::Eip4844(with_bloom),
            ReceiptEnvelope::Eip7702(_) => ReceiptEnvelope::Eip7702(with_bloom),
        },
        transaction_hash: *tx.tx_hash(),
        transaction_index: Some(index as u64),
        block_hash: Some(block.hash()),
        block_number: Some(block.number()),
        gas_used: block.gas_used(index),
        effective_gas_price: tx.effective_gas_price(block.header.base_fee_per_gas),
        blob_gas_used: tx.blob_gas_used(),
        blob_gas_price: tx.blob_gas_used().and_then(|_| blob_gas_price()),
        from: tx.signer(),
        to: tx.to(),
        contract_address: tx.kind().is_create().then(|| tx.signer().create(tx.nonce())),
    })
}

/// The bytes of a transaction as it goes over the wire.
pub(super) fn raw(tx: &Tx) -> alloy_primitives::Bytes {
    tx.encoded_2718().into()
}
