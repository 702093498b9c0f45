//! The chain as a library: blocks, states, snapshots, refusals, and the store.
use alloy_primitives::{Address, B256, Bytes, U256, address, hex};
use revm::primitives::hardfork::SpecId;
use serde_json::{Value, json};
use viv_evm::hardfork;
use viv_evm::node::{Config, Node};
use viv_evm::rpc::{Params, RpcError};

const ME: Address = address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
const OTHER: Address = address!("70997970C51812dc3A010C7d01b50e0d17dc79C8");
/// Returns slot 0, and adds one to it when there is calldata.
const COUNTER: &[u8] = &hex!("36600f5760005460005260206000f35b60005460010160005500");

fn node(config: Config) -> Node {
    Node::open(config).expect("the chain opens")
}

fn try_ask(node: &Node, method: &str, params: Value) -> Result<Value, RpcError> {
    node.rpc().call(method, &Params::new(Some(params)).expect("an array"))
}

fn ask(node: &Node, method: &str, params: Value) -> Value {
    try_ask(node, method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
}

fn number(value: &Value) -> u64 {
    serde_json::from_value::<U256>(value.clone()).expect("a quantity").to()
}

fn send(node: &Node, tx: Value) -> Value {
    let hash = ask(node, "eth_sendTransaction", json!([tx]));
    ask(node, "eth_getTransactionReceipt", json!([hash]))
}

/// A contract with this code, put there by its owner.
fn place(node: &Node, code: &[u8]) -> Address {
    let at = address!("c0de000000000000000000000000000000000001");
    ask(node, "anvil_setCode", json!([at, Bytes::copy_from_slice(code)]));
    at
}

#[test]
fn a_transfer_is_in_a_block_whose_parts_fit_together() {
    let node = node(Config::default());
    let receipt = send(&node, json!({ "from": ME, "to": OTHER, "value": "0x5" }));
    assert_eq!((number(&receipt["status"]), number(&receipt["gasUsed"])), (1, 21_000));
    let block = ask(&node, "eth_getBlockByNumber", json!(["latest", true]));
    assert_eq!(block["hash"], receipt["blockHash"]);
    assert_eq!(block["transactions"][0]["hash"], receipt["transactionHash"]);
    let genesis = ask(&node, "eth_getBlockByNumber", json!(["earliest", false]));
    assert_eq!(block["parentHash"], genesis["hash"]);
    // EIP-1559: an almost empty block lowers the fee by an eighth, here from 1 gwei.
    assert_eq!(
        (number(&genesis["baseFeePerGas"]), number(&block["baseFeePerGas"])),
        (1_000_000_000, 875_000_000)
    );
    let paid = U256::from(10_000) * U256::from(10).pow(U256::from(18)) + U256::from(5);
    assert_eq!(ask(&node, "eth_getBalance", json!([OTHER, "latest"])), json!(paid));
    assert_eq!(number(&ask(&node, "eth_getBalance", json!([Address::ZERO, "earliest"]))), 0);
    // The header's hash is the hash of its RLP.
    let raw: Bytes =
        serde_json::from_value(ask(&node, "debug_getRawHeader", json!(["latest"]))).expect("bytes");
    assert_eq!(json!(alloy_primitives::keccak256(raw)), block["hash"]);
}

/// Each fork's header has the fields that the fork brought, and a transfer works under all of them.
#[test]
fn every_fork_makes_blocks() {
    for id in 0..=SpecId::OSAKA as u8 {
        let spec = SpecId::try_from_u8(id).expect("ids are dense");
        let node = node(Config { hardfork: Some(spec), ..Config::default() });
        let receipt = send(&node, json!({ "from": ME, "to": OTHER, "value": "0x1" }));
        let block = ask(&node, "eth_getBlockByNumber", json!(["latest", false]));
        let name = hardfork::name(spec);
        assert_eq!(receipt["status"].is_null(), !spec.is_enabled_in(SpecId::BYZANTIUM), "{name}");
        for (field, since) in [
            ("baseFeePerGas", SpecId::LONDON),
            ("withdrawalsRoot", SpecId::SHANGHAI),
            ("excessBlobGas", SpecId::CANCUN),
            ("requestsHash", SpecId::PRAGUE),
        ] {
            assert_eq!(block.get(field).is_some(), spec.is_enabled_in(since), "{name}: {field}");
        }
        assert_eq!(number(&ask(&node, "eth_getTransactionCount", json!([ME, "latest"]))), 1, "{name}");
    }
}

#[test]
fn a_snapshot_brings_everything_back_and_is_used_up() {
    let node = node(Config::default());
    let counter = place(&node, COUNTER);
    let count = |block: &str| number(&ask(&node, "eth_call", json!([{ "to": counter }, block])));
    let add = || send(&node, json!({ "from": ME, "to": counter, "data": "0x01" }));
    add();
    let root = ask(&node, "eth_getProof", json!([counter, ["0x0"], "latest"]));
    let (first, later) = (ask(&node, "evm_snapshot", json!([])), ask(&node, "evm_snapshot", json!([])));
    add();
    add();
    assert_eq!((count("latest"), count("0x1"), count("0x2")), (3, 1, 2), "every block keeps its state");
    assert_eq!(ask(&node, "evm_revert", json!([first])), json!(true));
    assert_eq!((count("latest"), number(&ask(&node, "eth_blockNumber", json!([])))), (1, 1));
    assert_eq!(ask(&node, "eth_getProof", json!([counter, ["0x0"], "latest"])), root);
    assert_eq!(ask(&node, "evm_revert", json!([later])), json!(false), "those after it are gone too");
    add();
    assert_eq!(count("latest"), 2);
}

#[test]
fn refusals_say_what_is_wrong_in_the_words_that_clients_look_for() {
    let node = node(Config::default());
    let reverts = place(&node, &hex!("600160005260206000fd"));
    let refused = |tx: Value| try_ask(&node, "eth_sendTransaction", json!([tx])).expect_err("refused");
    let tx = |more: Value| {
        let mut tx = json!({ "from": ME, "to": OTHER, "gas": "0x5208" });
        tx.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        tx
    };
    send(&node, tx(json!({})));
    for (more, words) in [
        (json!({ "nonce": "0x0" }), "nonce too low"),
        (json!({ "gas": "0x5207" }), "intrinsic gas too low"),
        (json!({ "chainId": "0x5" }), "invalid chain id"),
        (json!({ "value": "0xffffffffffffffffffffffff" }), "insufficient funds"),
        (json!({ "maxFeePerGas": "0x1", "maxPriorityFeePerGas": "0x1" }), "underpriced"),
        (json!({ "gas": "0x1000001" }), "transaction gas limit too high"),
        (json!({ "data": Bytes::from(vec![0; 200_000]), "gas": "0xf00000" }), "oversized data"),
        (json!({ "from": Address::repeat_byte(7) }), "unknown account"),
    ] {
        let error = refused(tx(more.clone()));
        assert!(error.code == -32000 && error.message.contains(words), "{more}: {error:?}");
    }
    ask(&node, "evm_setBlockGasLimit", json!(["0x100000"]));
    let error = refused(tx(json!({ "gas": "0x100001" })));
    assert!(error.message.contains("exceeds block gas limit"), "{error:?}");
    let error = try_ask(&node, "eth_call", json!([{ "to": reverts }])).expect_err("it reverts");
    assert_eq!((error.code, error.data), (3, Some(json!(B256::with_last_byte(1)))));
    assert_eq!(try_ask(&node, "eth_getBalance", json!([ME, "0x99"])).expect_err("no block").code, -32001);
}

#[test]
fn transactions_behind_a_gap_wait_and_better_ones_replace() {
    let node = node(Config::default());
    let tx = |nonce: &str, cap: u64| json!([{ "from": ME, "to": OTHER, "gas": "0x5208", "nonce": nonce, "maxPriorityFeePerGas": U256::from(cap), "maxFeePerGas": U256::from(cap) }]);
    ask(&node, "eth_sendTransaction", tx("0x1", 2_000_000_000));
    assert_eq!(ask(&node, "txpool_status", json!([])), json!({ "pending": "0x0", "queued": "0x1" }));
    let error = try_ask(&node, "eth_sendTransaction", tx("0x1", 2_100_000_000)).expect_err("five percent");
    assert_eq!(error.message, "replacement transaction underpriced");
    let better = ask(&node, "eth_sendTransaction", tx("0x1", 2_200_000_000));
    ask(&node, "eth_sendTransaction", tx("0x0", 2_000_000_000));
    let receipt = ask(&node, "eth_getTransactionReceipt", json!([better]));
    assert_eq!(number(&receipt["status"]), 1, "the gap is closed, so both are in blocks");
    assert_eq!(number(&ask(&node, "eth_getTransactionCount", json!([ME, "latest"]))), 2);
}

#[test]
fn a_chain_goes_on_where_it_was_and_keeps_its_rules() {
    let dir = Scratch::new();
    let config = || Config { dir: Some(dir.0.clone()), hardfork: Some(SpecId::CANCUN), ..Config::default() };
    let (head, snapshot) = {
        let node = node(config());
        let counter = place(&node, COUNTER);
        send(&node, json!({ "from": ME, "to": counter, "data": "0x01" }));
        let snapshot = ask(&node, "evm_snapshot", json!([]));
        ask(&node, "evm_increaseTime", json!([1000]));
        send(&node, json!({ "from": ME, "to": counter, "data": "0x01" }));
        assert!(Node::open(config()).expect_err("in use").to_string().contains("in use"));
        (ask(&node, "eth_getBlockByNumber", json!(["latest", true])), snapshot)
    };
    let again = node(config());
    assert_eq!(ask(&again, "eth_getBlockByNumber", json!(["latest", true])), head);
    let counter = address!("c0de000000000000000000000000000000000001");
    assert_eq!(
        number(&ask(&again, "eth_call", json!([{ "to": counter }, "0x1"]))),
        1,
        "old states are there too"
    );
    assert_eq!(ask(&again, "evm_revert", json!([snapshot])), json!(true));
    assert_eq!(number(&ask(&again, "eth_call", json!([{ "to": counter }]))), 1);
    drop(again);
    let other = Config { hardfork: Some(SpecId::LONDON), ..config() };
    let error = Node::open(other).expect_err("another fork").to_string();
    assert!(error.contains("cancun") && error.contains("london"), "{error}");
}

#[test]
fn what_a_crash_cut_off_is_left_out_and_damage_is_told() {
    let dir = Scratch::new();
    let config = || Config { dir: Some(dir.0.clone()), ..Config::default() };
    {
        let node = node(config());
        for _ in 0..3 {
            send(&node, json!({ "from": ME, "to": OTHER, "value": "0x1" }));
        }
    }
    let log = dir.0.join("chain.log");
    let whole = std::fs::read(&log).expect("the log is there");
    std::fs::write(&log, &whole[..whole.len() - 5]).expect("it is cut");
    assert_eq!(number(&ask(&node(config()), "eth_blockNumber", json!([]))), 2);
    let mut broken = whole;
    let middle = broken.len() / 2;
    broken[middle] ^= 1;
    std::fs::write(&log, broken).expect("a bit falls over");
    let error = Node::open(config()).expect_err("damaged").to_string();
    assert!(error.contains("damaged at byte"), "{error}");
}

/// A directory that goes with its test.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Scratch {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("viv-evm-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Scratch(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is a temporary directory, whatever happens.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a client was told to wait for is waited for after a kill, too.
#[test]
fn transactions_that_wait_are_there_when_the_chain_is_opened_again() {
    let dir = std::env::temp_dir().join(format!("viv-evm-waiting-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let open = || node(Config { dir: Some(dir.clone()), no_mining: true, ..Config::default() });
    let first = open();
    let submit =
        |node: &Node| ask(node, "eth_sendTransaction", json!([{ "from": ME, "to": OTHER, "value": "0x5" }]));
    let hashes: Vec<Value> = (0..3).map(|_| submit(&first)).collect();
    ask(&first, "anvil_dropTransaction", json!([hashes[2]]));
    drop(first);
    let second = open();
    assert_eq!(ask(&second, "txpool_status", json!([]))["pending"], json!("0x2"));
    ask(&second, "anvil_mine", json!(["0x1"]));
    for (hash, is_there) in hashes.iter().zip([true, true, false]) {
        assert_eq!(ask(&second, "eth_getTransactionReceipt", json!([hash])).is_object(), is_there);
    }
    drop(second);
    assert_eq!(ask(&open(), "txpool_status", json!([]))["pending"], json!("0x0"), "they wait no more");
    std::fs::remove_dir_all(&dir).expect("it is ours");
}
