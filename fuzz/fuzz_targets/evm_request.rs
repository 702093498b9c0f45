//! JSON-RPC bytes at a chain: whatever they are, the answer is JSON or nothing, and blocks are found again.
#![no_main]
use std::sync::LazyLock;
use std::time::Duration;

use viv_evm::node::{Config, Node};
use viv_evm::rpc;

static NODE: LazyLock<Node> = LazyLock::new(|| {
    let mut config = Config { accounts: 2, history: 64, ..Config::default() };
    config.limits.call_gas = 200_000;
    config.limits.call_time = Duration::from_millis(200);
    Node::open(config).expect("a chain in memory opens")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let rpc = NODE.rpc();
    let message = rpc::parse(data, &rpc.limits);
    if let Some(text) = rpc.answer(message, &mut |_, _| None) {
        serde_json::from_str::<serde_json::Value>(&text).expect("an answer is JSON");
    }
    let chain = rpc.chain.read();
    let head = chain.head();
    assert_eq!(chain.block_by_hash(&head.hash()).map(|block| block.number()), Some(head.number()));
    drop(chain);
    if rpc.chain.read().head().number() > 1000 {
        rpc.chain.reset().expect("a chain in memory begins anew");
    }
});
