//! Ethereum chains that are killed under a client: whatever was acknowledged is there, the blocks follow one another, and a second chain that
//! was never killed computes the same from the same transactions.
use crate::{LONG, Pids, Random, Whom, begin, end, rounds, shown};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use viv_e2e::{Home, until};

/// Accounts that every chain of ours has, and one that nobody sends from.
const SENDERS: [&str; 2] =
    ["0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"];
const TAKES: &str = "0x00000000000000000000000000000000000012ff";
/// A contract that hashes its last word (at 0) with the number of the block, and keeps the hash at 0 and at that number.
const CONTRACT: &str = "0x6016600c60003960166000f3600054600052436020526040600020806000554355\
                        00";

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What a chain answers; nothing if it goes away before that.
fn try_rpc(port: u16, method: &str, params: &Value) -> Option<Value> {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(LONG)).ok()?;
    let head =
        format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    assert!(answer["error"].is_null(), "{method} {params}: {answer}");
    Some(answer["result"].clone())
}

#[track_caller]
fn rpc(port: u16, method: &str, params: Value) -> Value {
    try_rpc(port, method, &params).unwrap_or_else(|| panic!("{method}: no answer"))
}

fn quantity(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no quantity"));
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

#[track_caller]
fn block(port: u16, number: u64) -> Value {
    let block = rpc(port, "eth_getBlockByNumber", json!([format!("{number:#x}"), true]));
    assert!(block.is_object(), "block {number} is missing");
    block
}

/// A chain, and what its clients know of it.
struct Chain<'a> {
    home: &'a Home,
    name: &'static str,
    port: u16,
    /// One that was never killed.
    other: u16,
    /// Whether each transaction has a block of its own.
    automine: bool,
    contract: String,
    /// Transactions that were acknowledged, and blocks that were shown, since the last look.
    acknowledged: Vec<Value>,
    heads: Vec<(u64, Value)>,
    /// The newest block that the other one has, too, with its hash.
    checked: (u64, Value),
    sent: u64,
    /// What the account that takes must have.
    took: u64,
}

impl<'a> Chain<'a> {
    fn start(home: &'a Home, name: &'static str, automine: bool) -> Chain<'a> {
        let (port, other) = (free_port(), free_port());
        // Of these rules no block's state depends on its time.
        let run = |name: &str, port: u16, options: &[&str], words: &[&str]| {
            let publish = port.to_string();
            let first = ["run", "-d", "--kind", "evm", "--name", name, "-p", &publish];
            home.run(&[&first, options, &["--", "--hardfork", "london"], words].concat()).ok();
        };
        match automine {
            true => run(name, port, &[], &[]),
            false => run(name, port, &["--restart", "on-failure"], &["--block-time", "1"]),
        }
        run(&format!("{name}-other"), other, &[], &["--no-mining"]);
        let genesis = block(other, 0)["stateRoot"].clone();
        assert_eq!(block(port, 0)["stateRoot"], genesis);
        let checked = (0, block(port, 0)["hash"].clone());
        let contract = String::new();
        let (acknowledged, heads) = (Vec::new(), Vec::new());
        let mut chain = Chain {
            home,
            name,
            port,
            other,
            automine,
            contract,
            acknowledged,
            heads,
            checked,
            sent: 0,
            took: 0,
        };
        let made = json!([{ "from": SENDERS[0], "data": CONTRACT, "gas": "0x30000" }]);
        let hash = rpc(port, "eth_sendTransaction", made);
        until("the contract is there", LONG, || {
            let receipt = rpc(port, "eth_getTransactionReceipt", json!([hash]));
            chain.contract = receipt["contractAddress"].as_str().unwrap_or_default().to_string();
            !chain.contract.is_empty()
        });
        chain.acknowledged.push(hash);
        chain.check();
        chain
    }

    /// A client that sends until it is told to stop or the chain goes away; gives what was acknowledged.
    fn send(&self, from: &str, stop: &AtomicBool) -> Vec<Value> {
        let mut hashes = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let transaction = match hashes.len() % 2 {
                0 => json!([{ "from": from, "to": TAKES, "value": "0x7" }]),
                _ => json!([{ "from": from, "to": self.contract, "gas": "0x30000" }]),
            };
            match try_rpc(self.port, "eth_sendTransaction", &transaction) {
                Some(hash) => hashes.push(hash),
                None => break,
            }
        }
        hashes
    }

    /// One that looks at the newest block.
    fn look(&self, stop: &AtomicBool) -> Vec<(u64, Value)> {
        let mut heads = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let Some(head) = try_rpc(self.port, "eth_getBlockByNumber", &json!(["latest", false])) else {
                break;
            };
            heads.push((quantity(&head["number"]), head["hash"].clone()));
            thread::sleep(Duration::from_millis(3));
        }
        heads
    }

    /// Kills it under its clients.
    fn kill(&mut self, random: &mut Random, whom: Whom) {
        let pids = Pids::of(self.home, self.name);
        let stop = AtomicBool::new(false);
        (self.acknowledged, self.heads) = thread::scope(|threads| {
            let (chain, stop) = (&*self, &stop);
            let senders = SENDERS.map(|from| threads.spawn(move || chain.send(from, stop)));
            let looks = threads.spawn(move || chain.look(stop));
            random.wait(Duration::from_millis(300));
            pids.kill(whom);
            if whom == Whom::Service {
                // The chain does not notice.
                random.wait(Duration::from_millis(50));
            }
            stop.store(true, Ordering::Relaxed);
            let hashes: Vec<Value> = senders.into_iter().flat_map(|one| one.join().unwrap()).collect();
            (hashes, looks.join().unwrap())
        });
        self.again(&pids, whom);
    }

    /// It runs again, or still.
    #[track_caller]
    fn again(&self, pids: &Pids, whom: Whom) {
        let vm = || shown(self.home, self.name).expect("it is there");
        if whom == Whom::Service {
            assert_eq!(Some(vm()["pid"].to_string()), pids.vm, "only the service was killed");
            return;
        }
        let is_another = || vm()["state"] == "running" && Some(vm()["pid"].to_string()) != pids.vm;
        if self.automine {
            until("it is known to be dead", LONG, || vm()["state"] != "running");
            self.home.run(&["start", self.name]).ok();
            assert!(is_another());
        } else {
            until("it is started again", LONG, is_another);
        }
    }

    /// Goes back to where it was by its own snapshot, and is killed when that has been acknowledged.
    fn revert(&mut self) {
        let rpc = |method: &str, params: Value| rpc(self.port, method, params);
        let height = || quantity(&rpc("eth_blockNumber", json!([])));
        let (before, snapshot) = (height(), rpc("evm_snapshot", json!([])));
        for _ in 0..3 {
            rpc("eth_sendTransaction", json!([{ "from": SENDERS[0], "to": TAKES, "value": "0x7" }]));
        }
        assert_eq!(height(), before + 3);
        assert_eq!(rpc("evm_revert", json!([snapshot])), json!(true));
        let pids = Pids::of(self.home, self.name);
        pids.kill(Whom::Vm);
        self.again(&pids, Whom::Vm);
        assert_eq!(height(), before, "what was taken back is back");
    }

    /// All that was acknowledged is there, and all blocks since the last look are what the other chain makes of them.
    #[track_caller]
    fn check(&mut self) {
        let (port, other) = (self.port, self.other);
        let hashes = std::mem::take(&mut self.acknowledged);
        for hash in &hashes {
            let receipt = || rpc(port, "eth_getTransactionReceipt", json!([hash]));
            if !self.automine {
                until("what was acknowledged is in a block", LONG, || receipt().is_object());
            }
            let receipt = receipt();
            assert_eq!(receipt["status"], json!("0x1"), "{}: {hash} was acknowledged: {receipt}", self.name);
        }
        for (number, hash) in std::mem::take(&mut self.heads) {
            assert_eq!(block(port, number)["hash"], hash, "{}: block {number} was another", self.name);
        }
        let (checked, mut parent) = self.checked.clone();
        assert_eq!(block(port, checked)["hash"], parent, "{}: block {checked} was another", self.name);
        let newest = quantity(&rpc(port, "eth_blockNumber", json!([])));
        let mut here = 0;
        for number in checked + 1..=newest {
            let block = block(port, number);
            assert_eq!(block["parentHash"], parent, "{}: block {number} follows another one", self.name);
            parent = block["hash"].clone();
            let transactions = block["transactions"].as_array().unwrap();
            assert!(!self.automine || transactions.len() == 1, "{block}");
            for transaction in transactions {
                let hash = json!([transaction["hash"]]);
                let raw = rpc(port, "eth_getRawTransactionByHash", hash.clone());
                assert_eq!(rpc(other, "eth_sendRawTransaction", json!([raw])), transaction["hash"]);
                let receipt = rpc(port, "eth_getTransactionReceipt", hash);
                assert_eq!(receipt["blockHash"], parent);
                here += u64::from(hashes.contains(&transaction["hash"]));
                self.sent += 1;
                self.took += 7 * u64::from(transaction["to"] == TAKES);
            }
            rpc(other, "evm_mine", json!([]));
            let same = self::block(other, number);
            for root in
                ["stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom", "gasUsed", "baseFeePerGas"]
            {
                assert_eq!(block[root], same[root], "{}: {root} of block {number}", self.name);
            }
        }
        self.checked = (newest, parent);
        assert_eq!(here, hashes.len() as u64, "{}: each is in one block", self.name);
        let nonces =
            SENDERS.map(|from| quantity(&rpc(port, "eth_getTransactionCount", json!([from, "latest"]))));
        // What comes between the two questions is the next look's.
        assert!(!self.automine || nonces.iter().sum::<u64>() == self.sent, "{nonces:?}, {}", self.sent);
        let took = quantity(&rpc(port, "eth_getBalance", json!([TAKES, format!("{newest:#x}")])));
        assert_eq!(took, self.took, "{}: what was sent has arrived", self.name);
    }

    /// Forked, and killed meanwhile: a fork that is there is this chain, with all that had been acknowledged.
    fn fork(&mut self, random: &mut Random, whom: Whom) -> bool {
        let (fork, pids) = (format!("{}-fork", self.name), Pids::of(self.home, self.name));
        let newest = rpc(self.port, "eth_getBlockByNumber", json!(["latest", false]));
        let work = begin(self.home, &["fork", "--name", &fork, self.name]);
        random.wait(Duration::from_millis(150));
        pids.kill(whom);
        let outcome = end(work);
        self.again(&pids, whom);
        let is = shown(self.home, &fork);
        let is_there = is.is_some();
        assert!(outcome.status != 0 || is_there, "the fork was said to be there");
        // What was cut off is as after a power cut.
        if is.is_some_and(|vm| vm["state"] != "running") {
            self.home.run(&["start", &fork]).ok();
        }
        if is_there {
            let block = ["exec", &fork, "--", "rpc", "eth_getBlockByNumber"];
            let number = newest["number"].as_str().unwrap();
            let block = self.home.run(&[&block[..], &[number, "false"]].concat()).ok().out;
            let block: Value = serde_json::from_str(&block).unwrap();
            assert_eq!(block["hash"], newest["hash"], "the fork is another chain");
            self.home.run(&["exec", &fork, "--", "send", TAKES, "--value", "1"]).ok();
        }
        self.home.run(&["rm", "-f", &fork]);
        is_there
    }
}

#[test]
#[ignore = "its engine takes minutes to build: cargo xtask nightly"]
fn a_chain_goes_on_with_the_next_block_wherever_it_is_killed() {
    let start = Instant::now();
    let home = Home::bare("engine-kills-evm");
    let mut random = Random::new();
    let mut chains = [Chain::start(&home, "auto", true), Chain::start(&home, "timed", false)];
    let rounds = rounds(6);
    let (mut acknowledged, mut forks) = (0, 0);
    for round in 0..rounds {
        let (whom, kind) = (Whom::any(&mut random), random.next(8));
        let chain = &mut chains[(round % 2) as usize];
        match kind {
            0 => forks += u32::from(chain.fork(&mut random, whom)),
            1 if chain.automine => chain.revert(),
            _ => chain.kill(&mut random, whom),
        }
        acknowledged += chain.acknowledged.len();
        println!("{round}: {} {whom:?}, {} acknowledged", chain.name, chain.acknowledged.len());
        chain.check();
    }
    for chain in &mut chains {
        let stop = AtomicBool::new(false);
        thread::scope(|threads| {
            let sends = threads.spawn(|| chain.send(SENDERS[1], &stop));
            thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
            assert!(!sends.join().unwrap().is_empty(), "and it goes on");
        });
    }
    let blocks: u64 = chains.iter().map(|chain| chain.checked.0).sum();
    println!(
        "{rounds} kills, {blocks} blocks, {acknowledged} transactions acknowledged under them, {forks} forks, {:.1} s",
        start.elapsed().as_secs_f64()
    );
}
