//! An Ethereum chain, as a VM like any other: asked over its port and from within, paused, killed, limited, confined.
//!
//! Its engine takes minutes to build: `cargo xtask nightly` does, and runs these.
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};
use viv_e2e::{Home, until};

/// Two accounts that every tool knows.
const FIRST: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
const SECOND: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
/// Code that makes a contract which answers 42 to everything.
const ANSWERS: &str = "0x600a600c600039600a6000f3602a60005260206000f3";
/// Code that makes a contract which reverts with `Error("no")` (Solidity's `revert("no")`).
const REVERTS: &str = "0x6023600c60003960236000f36308c379a060e01b6000526020600452600260245261\
                       6e6f60f01b60445260646000fd";

/// A port that nobody has.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A request on its way to a chain.
fn begin(port: u16, method: &str, params: &Value) -> TcpStream {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head =
        format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
    stream
}

/// Its answer.
#[track_caller]
fn end(mut stream: TcpStream) -> Value {
    let mut answer = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

#[track_caller]
fn rpc(port: u16, method: &str, params: Value) -> Value {
    end(begin(port, method, &params))["result"].take()
}

/// Starts a chain with these options of `viv run`; gives its port.
fn start(home: &Home, name: &str, options: &[&str]) -> u16 {
    let port = free_port();
    let publish = port.to_string();
    let words = ["run", "-d", "--kind", "evm", "--name", name, "-p", &publish];
    home.run(&[&words, options].concat()).ok();
    port
}

fn shown(home: &Home, name: &str) -> Value {
    home.json(&["inspect", name])[0].clone()
}

/// Bytes that the VM's process has in memory.
fn resident(home: &Home, name: &str) -> u64 {
    home.json(&["stats", name])[0]["memory_bytes"].as_u64().unwrap()
}

/// What follows a word in a text.
fn after<'a>(text: &'a str, word: &str) -> &'a str {
    text.split_once(word)
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or_else(|| panic!("{text}"))
}

#[test]
#[ignore = "its engine takes minutes to build: cargo xtask nightly"]
fn it_is_asked_over_its_port_and_from_within() {
    let home = Home::bare("chain-ask");
    let port = start(&home, "chain", &["--", "--hardfork", "cancun", "--accounts", "3"]);
    let log = || home.run(&["logs", "chain"]).ok().out;
    until("it says where it is", Duration::from_secs(10), || {
        log().contains(&format!("ws://127.0.0.1:{port}"))
    });
    assert!(
        log().contains(FIRST) && log().contains("fork cancun") && log().matches("private key").count() == 3
    );
    assert_eq!(rpc(port, "eth_blockNumber", json!([])), json!("0x0"));
    assert_eq!(rpc(port, "eth_accounts", json!([])).as_array().map(Vec::len), Some(3));

    let ask = |words: &[&str]| home.run(&[&["exec", "chain", "--"], words].concat());
    let deployed = ask(&["deploy", ANSWERS]).ok().out;
    let contract = after(&deployed, "contract ").to_string();
    assert_eq!(ask(&["call", &contract, "answer()(uint256)"]).ok().out, "42\n");
    let sent = ask(&["send", SECOND, "--value", "5"]).ok().out;
    let hash = after(&sent, "transaction ").to_string();
    assert_eq!(rpc(port, "eth_getTransactionReceipt", json!([hash]))["blockNumber"], json!("0x2"));
    assert!(ask(&["trace", &hash]).ok().out.starts_with("CALL 0x70997970"));
    assert_eq!(ask(&["rpc", "eth_blockNumber"]).ok().out, "0x2\n");

    let reverting = ask(&["deploy", REVERTS]).ok().out;
    let reverting = after(&reverting, "contract ").to_string();
    let reverted = ask(&["send", &reverting, "--gas", "100000"]);
    assert!(reverted.status == 1 && reverted.err.contains("status      reverted"), "{reverted:?}");
    let refused = ask(&["call", &reverting]);
    assert!(refused.status == 1 && refused.err.contains("execution reverted: no"), "{refused:?}");
    until("the log has all of it", Duration::from_secs(10), || log().contains("reverted: no"));
    let text = log();
    for words in
        [&format!("transaction {hash} from {FIRST} to {SECOND}, gas 21000"), "block 2 0x", "made contract 0x"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    // Without words: help. With wrong ones: which there are, and the status of wrong usage.
    let help = ask(&[]).ok().out;
    assert!(["call", "send", "deploy", "trace", "rpc"].iter().all(|verb| help.contains(verb)), "{help}");
    assert_eq!(ask(&["dance"]).status, 2);
    assert!(ask(&["deploy", "@/etc/hostname"]).err.contains("$(cat /etc/hostname)"));

    let stats = home.json(&["stats", "chain"])[0]["program"].clone();
    assert_eq!((&stats["chain"]["height"], &stats["chain"]["transactions"]), (&json!(4), &json!(4)));
    assert!(stats["steps"].as_u64().unwrap() > 21_000 && stats["chain"]["calls"].as_u64().unwrap() > 10);
    assert!(home.run(&["stats", "chain"]).ok().out.contains("gas used"));
    assert!(home.run(&["ps"]).ok().out.contains(&format!("127.0.0.1:{port}:8545")));
    assert_eq!(home.run(&["port", "chain"]).ok().out, format!("8545/tcp -> 127.0.0.1:{port}\n"));
    let vm = shown(&home, "chain");
    assert_eq!(vm["kind"], "evm");
    for word in ["landlock", "seccomp", "no-new-privileges"] {
        assert!(vm["sandbox"].as_array().unwrap().contains(&word.into()), "{vm}");
    }
    // What a chain does not do is refused with what does it.
    let refused = home.run(&["snapshot", "create", "chain", "s"]);
    assert!(refused.status == 4 && refused.err.contains("evm_snapshot"), "{refused:?}");
    // A fork goes on from the newest block, and each its own way.
    home.run(&["fork", "--name", "other", "chain"]).ok();
    let newest = |name: &str| {
        let block = ["exec", name, "--", "rpc", "eth_getBlockByNumber", "latest", "false"];
        let block: Value = serde_json::from_str(&home.run(&block).ok().out).unwrap();
        (block["number"].clone(), block["hash"].clone())
    };
    assert_eq!(newest("other"), newest("chain"));
    home.run(&["exec", "other", "--", "send", SECOND, "--value", "1"]).ok();
    assert_eq!((newest("other").0, newest("chain").0), (json!("0x5"), json!("0x4")));
    assert_eq!(home.run(&["port", "other"]).ok().out, "");
    // Without a port it is asked from within alone.
    home.run(&["run", "-d", "--kind", "evm", "--name", "inner"]).ok();
    assert_eq!(home.run(&["exec", "inner", "--", "rpc", "eth_chainId"]).ok().out, "0x7a69\n");
    assert_eq!(home.run(&["port", "inner"]).ok().out, "");
}

#[test]
#[ignore = "its engine takes minutes to build: cargo xtask nightly"]
fn a_pause_holds_requests_and_blocks_and_loses_none() {
    let home = Home::bare("chain-pause");
    let port = start(&home, "chain", &["--", "--block-time", "1"]);
    let height = || home.json(&["stats", "chain"])[0]["program"]["chain"]["height"].as_u64().unwrap();
    until("it makes blocks by itself", Duration::from_secs(20), || height() > 0);
    home.run(&["pause", "chain"]).ok();
    let before = height();
    let send = json!([{ "from": FIRST, "to": SECOND, "value": "0x1" }]);
    let none = json!([]);
    let asked = [("eth_blockNumber", &none), ("eth_sendTransaction", &send), ("eth_chainId", &none)];
    let waiting: Vec<TcpStream> = asked.iter().map(|(method, params)| begin(port, method, params)).collect();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(height(), before, "no block while it stands still");
    for stream in &waiting {
        stream.set_nonblocking(true).unwrap();
        let mut stream = stream;
        assert!(stream.read(&mut [0]).is_err(), "no answer while it stands still");
        stream.set_nonblocking(false).unwrap();
    }
    let refused = home.run(&["exec", "chain", "--", "rpc", "eth_chainId"]);
    assert!(refused.status != 0 && refused.err.contains("viv resume"), "{refused:?}");
    home.run(&["resume", "chain"]).ok();
    let answers: Vec<Value> = waiting.into_iter().map(end).collect();
    assert!(answers.iter().all(|answer| answer["result"].is_string()), "{answers:?}");
    let hash = answers[1]["result"].clone();
    until("what was sent is in a block", Duration::from_secs(20), || {
        rpc(port, "eth_getTransactionReceipt", json!([hash]))["status"] == json!("0x1")
    });
    assert!(height() > before);
}

#[test]
#[ignore = "its engine takes minutes to build: cargo xtask nightly"]
fn it_goes_on_after_a_kill_and_a_stop() {
    let home = Home::bare("chain-life");
    let port = start(&home, "chain", &["--restart", "on-failure"]);
    let send = json!([{ "from": FIRST, "to": SECOND, "value": "0x1" }]);
    for round in 0..3 {
        let hashes: Vec<Value> = (0..20).map(|_| rpc(port, "eth_sendTransaction", send.clone())).collect();
        let pid = shown(&home, "chain")["pid"].clone();
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        until("it is started again", Duration::from_secs(30), || {
            let vm = shown(&home, "chain");
            vm["state"] == "running" && vm["pid"] != pid
        });
        for hash in hashes {
            let receipt = rpc(port, "eth_getTransactionReceipt", json!([hash]));
            assert_eq!(receipt["status"], json!("0x1"), "round {round}: an acknowledged transaction is gone");
        }
        assert_eq!(rpc(port, "eth_blockNumber", json!([])), json!(format!("{:#x}", 20 * (round + 1))));
    }
    let newest = rpc(port, "eth_getBlockByNumber", json!(["latest", false]))["hash"].clone();
    let begin = Instant::now();
    home.run(&["stop", "chain"]).ok();
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!(shown(&home, "chain")["end"]["reason"], "power-off");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    // The port is somebody else's by now.
    let other = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let taken = home.run(&["start", "chain"]);
    assert!(taken.status == 4 && taken.err.contains(&port.to_string()), "{taken:?}");
    drop(other);
    home.run(&["start", "chain"]).ok();
    assert_eq!(rpc(port, "eth_getBlockByNumber", json!(["latest", false]))["hash"], newest);
    // A log that is damaged in its middle is not gone on with.
    home.run(&["stop", "chain"]).ok();
    let log = format!("{}/chain/chain.log", shown(&home, "chain")["dir"].as_str().unwrap());
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, bytes).unwrap();
    let damaged = home.run(&["start", "chain"]);
    assert!(damaged.status != 0 && damaged.err.contains("damaged at byte"), "{damaged:?}");
}

#[test]
#[ignore = "its engine takes minutes to build: cargo xtask nightly"]
fn it_stays_within_its_memory_and_its_calls_end() {
    let home = Home::bare("chain-limits");
    let port = start(&home, "chain", &["--memory", "64M", "--", "--call-gas-cap", "18446744073709551615"]);
    let call = |code: &str| {
        rpc(port, "anvil_setCode", json!([SECOND, code]));
        let begun = Instant::now();
        let answer = end(begin(port, "eth_call", &json!([{ "to": SECOND, "gas": "0xffffffffffff" }])));
        assert!(begun.elapsed() < Duration::from_secs(20), "{code}: {:?}", begun.elapsed());
        answer["error"].clone()
    };
    // Memory that grows in a loop; one that is asked for at once; a loop; itself twice, for ever.
    for code in ["0x5b595150600056", "0x63010000005100", "0x5b600056", "0x5b60006000600060006000305af1600056"]
    {
        let error = call(code);
        assert!(error["message"].is_string(), "{code}: {error}");
        assert!(resident(&home, "chain") < 64 << 20, "{code}: {}", resident(&home, "chain"));
    }
    // A state that grows until there is no more room: then only what is there is told.
    let code = format!("0x{}", "00".repeat(500_000));
    let full = (0..200_u64).find_map(|number| {
        let address = format!("0x{:040x}", 0x1000 + number);
        let answer = end(begin(port, "anvil_setCode", &json!([address, format!("{code}{number:04x}")])));
        Some(answer["error"].clone()).filter(Value::is_object)
    });
    let full = full.expect("200 MB of code do not fit into 64 MiB");
    assert!(full["code"] == json!(-32005) && full["message"].as_str().unwrap().contains("memory"), "{full}");
    assert!(resident(&home, "chain") < 64 << 20, "{}", resident(&home, "chain"));
    assert_eq!(rpc(port, "eth_blockNumber", json!([])), json!("0x0"), "it goes on");
    let little = home.run(&["run", "-d", "--kind", "evm", "--memory", "8M"]);
    assert!(little.status == 2 && little.err.contains("--memory"), "{little:?}");
    // A flood of blocks is told of, in few lines.
    let port = start(&home, "flood", &[]);
    rpc(port, "anvil_mine", json!(["0x4e20"]));
    let log = || home.run(&["logs", "flood"]).ok().out;
    until("it says how many more", Duration::from_secs(20), || log().contains("more blocks"));
    assert!(log().lines().count() < 10_000, "{} lines", log().lines().count());
}

#[test]
#[ignore = "its engine takes minutes to build: cargo xtask nightly"]
fn what_cannot_be_is_refused_with_the_way_out() {
    let home = Home::bare("chain-refused");
    for (words, status, text) in [
        (&["--", "--listen", "0.0.0.0:1"][..], 2, "-p [ADDRESS:]PORT"),
        (&["--", "--fork-url", "http://127.0.0.1:1"], 2, "viv-evm serve --fork-url"),
        (&["--", "--hardfrok", "london"], 2, "--hardfork"),
        (&["--", "--hardfork", "brussels"], 2, "brussels"),
        (&["--", "--accounts", "10001"], 2, "10000"),
        (&["/etc/hostname"], 2, "/etc/hostname"),
        (&["-p", "8080:80"], 2, "8545"),
        (&["-p", "8545/udp"], 2, "8545"),
        (&["-v", "/tmp:/tmp"], 2, "-v"),
        (&["-e", "A=b"], 2, "-e"),
        (&["--net", "user"], 2, "--net"),
        (&["--fuel", "5"], 2, "--fuel"),
    ] {
        let refused = home.run(&[&["run", "-d", "--kind", "evm"], words].concat());
        assert!(refused.status == status && refused.err.contains(text), "{words:?}: {refused:?}");
    }
    assert_eq!(home.json(&["ps", "-a"]).as_array().map(Vec::len), Some(0), "nothing is left over");
}
