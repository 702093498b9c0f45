//! What an Ethereum chain costs: `cargo run --release -p viv-evm --example evm_load [-- PEER]`.
//!
//! Measures the program beside this one, and PEER too when it is given: a program like `anvil` that takes `--port`. Prints
//! transactions a second with a block for each, start to first answer, idle memory, another call's wait beside endless ones;
//! then, in this process, loops against bare revm, and snapshots at 1,000,000 slots.
use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use alloy_consensus::{SignableTransaction, TxEip1559};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256, address, hex};
use revm::context::TxEnv;
use revm::database_interface::{BENCH_CALLER, BENCH_TARGET};
use revm::{Context, ExecuteEvm, MainBuilder, MainContext};
use serde_json::{Value, json};
use viv_evm::accounts;
use viv_evm::node::{Config, Node};
use viv_evm::rpc::Params;

type Outcome<T> = Result<T, Box<dyn Error>>;

const TRANSACTIONS: u64 = 10_000;
const SLOTS: u64 = 1_000_000;
const CONTRACT: Address = address!("c0de000000000000000000000000000000000002");
/// `for (i = 0x100000; i > 0; i--) {}`
const LOOP: [u8; 14] = hex!("621000005b600190038060045700");

struct Peer {
    child: Child,
    port: u16,
    started: Duration,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It is ours, and it may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    fn start(program: &str, options: &[&str], port: u16) -> Outcome<Peer> {
        let begin = Instant::now();
        let child =
            Command::new(program).args(options).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut peer = Peer { child, port, started: Duration::ZERO };
        while peer.ask("eth_chainId", json!([])).is_err() {
            if begin.elapsed() > Duration::from_secs(20) {
                return Err(format!("{program} does not answer").into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        peer.started = begin.elapsed();
        Ok(peer)
    }

    fn connect(&self) -> Outcome<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn ask(&self, method: &str, params: Value) -> Outcome<Value> {
        ask(&mut self.connect()?, method, params)
    }

    /// Resident memory in MiB.
    fn memory(&self) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).ok_or("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse::<f64>()? / 1024.0)
    }
}

/// One request on a connection that stays open.
fn ask(stream: &mut TcpStream, method: &str, params: Value) -> Outcome<Value> {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 16384]);
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err("the connection ended".into());
        }
        answer.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_string));
        if body.len() >= length.ok_or("no length")?.trim().parse()? {
            return Ok(serde_json::from_str(body)?);
        }
    }
}

/// Transactions of one account, signed before the clock starts.
fn signed(count: u64) -> Outcome<Vec<Bytes>> {
    let signer = accounts::development(2);
    let [from, to] = signer.as_slice() else { return Err("no accounts".into()) };
    let transaction = |nonce| {
        let tx = TxEip1559 {
            chain_id: 31_337,
            nonce,
            gas_limit: 21_000,
            max_fee_per_gas: 10_000_000_000,
            max_priority_fee_per_gas: 1,
            to: TxKind::Call(to.address),
            value: U256::from(1),
            ..TxEip1559::default()
        };
        let signature = from.sign(tx.signature_hash());
        tx.into_signed(signature).encoded_2718().into()
    };
    Ok((0..count).map(transaction).collect())
}

fn measure(name: &str, program: &str, options: &[&str], port: u16) -> Outcome<()> {
    let mut starts: Vec<f64> = (0..9)
        .map(|_| Peer::start(program, options, port).map(|peer| peer.started.as_secs_f64() * 1e3))
        .collect::<Outcome<_>>()?;
    starts.sort_by(f64::total_cmp);
    let peer = Peer::start(program, options, port)?;
    println!(
        "{name}: start to first answer {:.1} ms (median of 9), idle {:.1} MiB",
        starts[4],
        peer.memory()?
    );

    let raw = signed(TRANSACTIONS)?;
    let (mut stream, begin) = (peer.connect()?, Instant::now());
    for tx in &raw {
        let answer = ask(&mut stream, "eth_sendRawTransaction", json!([tx]))?;
        if answer.get("result").is_none() {
            return Err(format!("{name}: {answer}").into());
        }
    }
    let head: U64 = serde_json::from_value(peer.ask("eth_blockNumber", json!([]))?["result"].take())?;
    let rate = TRANSACTIONS as f64 / begin.elapsed().as_secs_f64();
    println!(
        "{name}: {rate:.0} transactions a second, one connection, a block for each ({head} blocks), then {:.1} MiB",
        peer.memory()?
    );

    // Another call beside endless ones.
    peer.ask("anvil_setCode", json!([CONTRACT, "0x5b600056"]))?;
    let mut waits: Vec<f64> = Vec::new();
    std::thread::scope(|threads| -> Outcome<()> {
        for _ in 0..4 {
            threads.spawn(|| {
                for _ in 0..4 {
                    // How it ends is not the question here.
                    let _ = peer.ask("eth_call", json!([{ "to": CONTRACT }, "latest"]));
                }
            });
        }
        std::thread::sleep(Duration::from_millis(50));
        let mut stream = peer.connect()?;
        for _ in 0..100 {
            let begin = Instant::now();
            ask(&mut stream, "eth_call", json!([{ "to": Address::ZERO }, "latest"]))?;
            waits.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        Ok(())
    })?;
    waits.sort_by(f64::total_cmp);
    println!(
        "{name}: a call beside 4 endless ones: p50 {:.2} ms, worst of 100 {:.2} ms",
        waits[50], waits[99]
    );
    Ok(())
}

/// A node's method, in this process.
fn local(node: &Node, method: &str, params: Value) -> Outcome<Value> {
    Ok(node.rpc().call(method, &Params::new(Some(params))?)?)
}

fn loops() -> Outcome<()> {
    let mut config = Config::default();
    config.limits.call_gas = 1 << 40;
    config.limits.call_time = Duration::from_secs(60);
    let node = Node::open(config)?;
    local(&node, "anvil_setCode", json!([CONTRACT, Bytes::from_static(&LOOP)]))?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        let begin = Instant::now();
        local(&node, "eth_call", json!([{ "to": CONTRACT, "gas": "0xffffffff" }]))?;
        ours.push(begin.elapsed().as_secs_f64());
        let code = revm::bytecode::Bytecode::new_legacy(Bytes::from_static(&LOOP));
        let db = revm::database::BenchmarkDB::new_bytecode(code);
        let context =
            Context::mainnet().with_db(db).modify_cfg_chained(|cfg| cfg.tx_gas_limit_cap = Some(u64::MAX));
        let mut evm = context.modify_block_chained(|block| block.gas_limit = u64::MAX).build_mainnet();
        let tx =
            TxEnv::builder().caller(BENCH_CALLER).kind(TxKind::Call(BENCH_TARGET)).gas_limit(0xffff_ffff);
        let begin = Instant::now();
        let done = evm.transact(tx.build().map_err(|error| format!("{error:?}"))?)?;
        bare.push(begin.elapsed().as_secs_f64());
        assert!(done.result.is_success(), "{:?}", done.result);
    }
    ours.sort_by(f64::total_cmp);
    bare.sort_by(f64::total_cmp);
    println!(
        "a loop of 1,048,576 rounds: eth_call {:.1} ms, bare revm {:.1} ms, ratio {:.2}",
        ours[7] * 1e3,
        bare[7] * 1e3,
        bare[7] / ours[7]
    );
    Ok(())
}

fn resident() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}

fn snapshots() -> Outcome<()> {
    let node = Node::open(Config::default())?;
    let before = resident()?;
    let begin = Instant::now();
    node.rpc().chain.change(CONTRACT, |change| {
        change.slots = (0..SLOTS)
            .map(|key| viv_evm::state::Word { key: U256::from(key), value: U256::from(key + 1) })
            .collect();
    })?;
    let (filled, full) = (begin.elapsed(), resident()?);
    println!(
        "{SLOTS} slots: {:.2} s to write and hash, {} bytes each",
        filled.as_secs_f64(),
        (full - before) * 1024 / SLOTS
    );
    let (mut taken, mut back) = (Vec::new(), Vec::new());
    for round in 0..101_u64 {
        let begin = Instant::now();
        let id = local(&node, "evm_snapshot", json!([]))?;
        taken.push(begin.elapsed().as_secs_f64() * 1e3);
        local(&node, "anvil_setStorageAt", json!([CONTRACT, U64::from(round), B256::with_last_byte(7)]))?;
        local(&node, "evm_mine", json!([]))?;
        let begin = Instant::now();
        local(&node, "evm_revert", json!([id]))?;
        back.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let before = resident()?;
    for _ in 0..1000 {
        local(&node, "evm_snapshot", json!([]))?;
    }
    let each = (resident()? - before) as f64 / 1000.0;
    taken.sort_by(f64::total_cmp);
    back.sort_by(f64::total_cmp);
    println!(
        "at {SLOTS} slots: snapshot {:.4} ms, {each:.2} KiB; revert {:.4} ms (medians), worst {:.3} ms",
        taken[50], back[50], back[100]
    );
    Ok(())
}

fn main() -> Outcome<()> {
    let ours = std::env::current_exe()?.with_file_name("").join("../viv-evm");
    let ours = ours.to_str().ok_or("a path that is text")?;
    measure("viv-evm", ours, &["serve", "--listen", "127.0.0.1:18545"], 18_545)?;
    if let Some(peer) = std::env::args().nth(1) {
        measure("peer", &peer, &["--port", "18546", "--silent"], 18_546)?;
    }
    loops()?;
    snapshots()
}
