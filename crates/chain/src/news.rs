//! What happens on a chain, as lines: a line for each block and for each transaction.
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use alloy_consensus::{ReceiptEnvelope, Transaction};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use viv_evm::chain::{Block, Event};
use viv_evm::rpc::{Params, Rpc};

/// Lines in one [`SPAN`]; of what comes beyond them, the number is told.
const LINES_MAX: usize = 500;
/// What [`LINES_MAX`] counts for.
const SPAN: Duration = Duration::from_secs(1);
/// Letters of a reason that a contract gives.
const REASON_MAX: usize = 200;

/// Blocks and transactions that were not shown.
#[derive(Default)]
struct Skipped {
    blocks: u64,
    transactions: u64,
}

impl Skipped {
    fn tell(&mut self, say: &mut impl FnMut(&str)) {
        let Skipped { blocks, transactions } = std::mem::take(self);
        if blocks > 0 {
            say(&format!("and {blocks} more blocks with {transactions} transactions\n"));
        }
    }
}

/// Says what happens, for as long as the chain is there.
pub(crate) fn tell(rpc: &Rpc, mut events: broadcast::Receiver<Event>, mut say: impl FnMut(&str)) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
    let (mut began, mut lines, mut skipped) = (Instant::now(), 0, Skipped::default());
    loop {
        if began.elapsed() >= SPAN {
            skipped.tell(&mut say);
            (began, lines) = (Instant::now(), 0);
        }
        let rest = if skipped.blocks > 0 { SPAN.saturating_sub(began.elapsed()) } else { Duration::MAX };
        let event = runtime.block_on(async { tokio::time::timeout(rest, events.recv()).await });
        match event {
            Err(_) => {} // what was skipped is told now
            Ok(Ok(Event::Block(block))) if lines < LINES_MAX => {
                let text = text_of(rpc, &block);
                lines += text.lines().count();
                say(&text);
            }
            Ok(Ok(Event::Block(block))) => {
                skipped.blocks += 1;
                skipped.transactions += block.txs.len() as u64;
            }
            Ok(Ok(Event::Waiting(hash))) => {
                let is_next = rpc.chain.read().settings.automine;
                if !is_next && lines < LINES_MAX {
                    lines += 1;
                    say(&format!("transaction {hash} waits for its block\n"));
                }
            }
            Ok(Err(RecvError::Lagged(count))) => say(&format!("and {count} more blocks or transactions\n")),
            Ok(Err(RecvError::Closed)) => return,
        }
    }
}

/// A block and its transactions, the first of them if they are too many.
fn text_of(rpc: &Rpc, block: &Block) -> String {
    let count = block.txs.len();
    let s = if count == 1 { "" } else { "s" };
    let mut text = format!(
        "block {} {} with {count} transaction{s}, gas {}\n",
        block.number(),
        block.hash(),
        block.header.gas_used
    );
    for (index, tx) in block.txs.iter().enumerate().take(LINES_MAX) {
        let _ = write!(text, "  transaction {} from {}", tx.tx_hash(), tx.signer());
        let has_succeeded = block.receipts.get(index).is_none_or(ReceiptEnvelope::status);
        let _ = match tx.to() {
            Some(to) => write!(text, " to {to}"),
            None if has_succeeded => write!(text, " made contract {}", tx.signer().create(tx.nonce())),
            None => write!(text, " made no contract"),
        };
        let _ = write!(text, ", gas {}", block.gas_used(index));
        if !has_succeeded {
            let _ = write!(text, ", reverted: {}", reason(rpc, &json!(tx.tx_hash())));
        }
        text.push('\n');
    }
    if let Some(more @ 1..) = count.checked_sub(LINES_MAX) {
        let _ = writeln!(text, "  and {more} more transactions");
    }
    text
}

/// Why a transaction did nothing, in one line.
fn reason(rpc: &Rpc, hash: &Value) -> String {
    let tracer = json!([hash, { "tracer": "callTracer", "tracerConfig": { "onlyTopCall": true } }]);
    let frame = Params::new(Some(tracer)).and_then(|params| rpc.call("debug_traceTransaction", &params));
    let text = frame.map_or_else(
        |error| error.message,
        |frame| {
            let text = |name: &str| frame[name].as_str().filter(|text| !text.is_empty());
            text("revertReason").or(text("error")).unwrap_or("without a reason").to_string()
        },
    );
    // It is the contract's: no control characters, and not too much of it.
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().take(REASON_MAX).map(plain).collect()
}
