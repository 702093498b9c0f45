//! The program from outside: hostile requests, a kill at any moment, calls that do not wait for each other.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const ME: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

struct Server {
    child: Child,
    at: String,
}

impl Server {
    fn start(options: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_viv-evm"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe"))
            .read_line(&mut line)
            .expect("it says where it is");
        let at =
            line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).expect(&line).to_string();
        Server { child, at }
    }

    /// The answer to a body, as it came.
    fn post(&self, body: &[u8]) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.at)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        // The server may answer before it has read everything.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or(text))
    }

    fn try_ask(&self, method: &str, params: Value) -> std::io::Result<Value> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        Ok(serde_json::from_str(&self.post(request.to_string().as_bytes())?)?)
    }

    fn ask(&self, method: &str, params: Value) -> Value {
        self.try_ask(method, params).expect("an answer")
    }

    /// Resident memory in MiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn code(answer: &str) -> i64 {
    serde_json::from_str::<Value>(answer).expect(answer)["error"]["code"].as_i64().expect(answer)
}

#[test]
fn hostile_requests_get_an_error_and_the_server_goes_on() {
    let server = Server::start(&[]);
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let method = |name: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{name}","params":[]}}"#);
    for (body, expected) in [
        (&b"{"[..], -32700),
        (&b"\xff\xfe"[..], -32700),
        (nested.as_bytes(), -32700),
        (&b"[]"[..], -32600),
        (&b"{}"[..], -32600),
        (&br#"{"jsonrpc":"2.0","id":{},"method":"eth_chainId"}"#[..], -32600),
        (&br#"{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}"#[..], -32600),
        (method("eth_nothing").as_bytes(), -32601),
        (method("eth_subscribe").as_bytes(), -32601),
        (method("eth_getBalance").as_bytes(), -32602),
        (&br#"{"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":{"address":"0x0"}}"#[..], -32602),
    ] {
        assert_eq!(
            code(&server.post(body).expect("an answer")),
            expected,
            "{}",
            String::from_utf8_lossy(&body[..body.len().min(80)])
        );
    }
    let batch = |many: usize| format!("[{}]", vec![method("eth_chainId"); many].join(","));
    assert_eq!(code(&server.post(batch(1001).as_bytes()).expect("an answer")), -32600);
    let answers: Vec<Value> =
        serde_json::from_str(&server.post(batch(1000).as_bytes()).expect("an answer")).expect("a batch");
    assert_eq!(answers.len(), 1000);
    assert_eq!(
        server.post(br#"{"jsonrpc":"2.0","method":"eth_chainId"}"#).expect("an answer"),
        "",
        "a notification"
    );

    // 10 MB of calldata cost more gas than a call may have; 64 MB are not even read.
    let data = format!("0x{}", "11".repeat(10_000_000));
    let answer = server.ask("eth_call", json!([{ "to": ME, "data": data }]));
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("gas")), "{answer}");
    let refused = server.post(&vec![b' '; 64 << 20]).map(|answer| answer.contains("at most")).unwrap_or(true);
    assert!(refused, "a body beyond the bound");
    let raw = format!("0x02{}", "ff".repeat(1_000_000));
    assert_eq!(server.ask("eth_sendRawTransaction", json!([raw]))["error"]["code"], json!(-32000));

    // Returns 2^32 bytes, jumps for ever, calls itself twice for ever.
    for code in [
        "0x6401000000006000f3",
        "0x5b600056",
        "0x5b60006000600060006000305af160006000600060006000305af1600056",
    ] {
        server.ask("anvil_setCode", json!([ME, code]));
        let begin = Instant::now();
        let answer = server.ask("eth_call", json!([{ "to": ME, "gas": "0xffffffffffff" }]));
        assert!(answer.get("error").is_some() || answer["result"] == json!("0x"), "{code}: {answer}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{code} took {:?}", begin.elapsed());
    }
    assert_eq!(server.ask("eth_chainId", json!([]))["result"], json!("0x7a69"));
    assert!(server.memory() < 400, "{} MiB after all that", server.memory());
}

#[test]
fn a_call_without_end_is_cut_in_time() {
    let server = Server::start(&["--call-gas-cap", "18446744073709551615"]);
    server.ask("anvil_setCode", json!([ME, "0x5b600056"]));
    let begin = Instant::now();
    let answer = server.ask("eth_call", json!([{ "to": ME }]));
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("timeout")), "{answer}");
    assert!((4..15).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
}

/// Kills the program under load, and every block that it told of is there afterwards.
#[test]
fn a_killed_chain_goes_on_without_a_gap() {
    let rounds = std::env::var("VIV_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(8_u64);
    let dir = std::env::temp_dir().join(format!("viv-evm-kill-{}", std::process::id()));
    let mut last = json!({ "number": "0x0" });
    for round in 0..rounds {
        let mut server = start_in(&dir);
        let known = server.ask("eth_getBlockByNumber", json!([last["number"], false]));
        assert!(
            last["hash"].is_null() || known["result"]["hash"] == last["hash"],
            "round {round}: {known} was {last}"
        );
        let until = Instant::now() + Duration::from_millis(60 + round * 37 % 140);
        std::thread::scope(|threads| {
            let loads: Vec<_> = (0..2).map(|_| threads.spawn(|| load(&server))).collect();
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            let killed = Command::new("kill").args(["-9", &server.child.id().to_string()]).status();
            assert!(killed.expect("kill is there").success());
            for load in loads {
                let told = load.join().expect("no panic");
                let number = |block: &Value| {
                    u64::from_str_radix(&block["number"].as_str().unwrap_or("0x0")[2..], 16).ok()
                };
                if number(&told) > number(&last) {
                    last = told;
                }
            }
        });
        let _ = server.child.wait();
    }
    let server = start_in(&dir);
    let head = server.ask("eth_blockNumber", json!([]))["result"].clone();
    let mut block = server.ask("eth_getBlockByNumber", json!([head, false]))["result"].clone();
    assert_ne!(block["number"], json!("0x0"), "nothing was sent: the test shows nothing");
    while block["number"] != json!("0x0") {
        block = server.ask("eth_getBlockByHash", json!([block["parentHash"], false]))["result"].clone();
        assert!(block.is_object(), "the chain has a gap");
    }
    let _ = std::fs::remove_dir_all(&dir);
}

fn start_in(dir: &Path) -> Server {
    Server::start(&["--dir", dir.to_str().expect("a plain path")])
}

/// Sends until the server is gone, and returns the block of the last receipt that it gave.
fn load(server: &Server) -> Value {
    let mut last = Value::Null;
    loop {
        let Ok(sent) =
            server.try_ask("eth_sendTransaction", json!([{ "from": ME, "to": ME, "value": "0x1" }]))
        else {
            return last;
        };
        let Ok(receipt) = server.try_ask("eth_getTransactionReceipt", json!([sent["result"]])) else {
            return last;
        };
        let receipt = &receipt["result"];
        last = json!({ "number": receipt["blockNumber"], "hash": receipt["blockHash"] });
    }
}
