//! Ethereum's own state tests against this crate's state and rules:
//! `git clone --depth 1 https://github.com/ethereum/tests && cargo run --release -p viv-evm --example state_tests -- tests/GeneralStateTests`.
//!
//! Each case executes one transaction and compares the root of all accounts and the hash of the logs.
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alloy_eips::eip2930::AccessList;
use alloy_eips::eip7702::SignedAuthorization;
use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256, keccak256};
use revm::DatabaseCommit;
use revm::context::{BlockEnv, TxEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::inspector::NoOpInspector;
use revm::primitives::hardfork::SpecId;
use serde::Deserialize;
use viv_evm::state::{Change, Db, Word, World};
use viv_evm::{exec, hardfork};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    env: Environment,
    pre: BTreeMap<Address, Account>,
    transaction: Transaction,
    post: BTreeMap<String, Vec<Post>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Environment {
    current_coinbase: Address,
    #[serde(default)]
    current_difficulty: U256,
    current_gas_limit: U256,
    current_number: U256,
    current_timestamp: U256,
    current_base_fee: Option<U256>,
    current_random: Option<U256>,
    current_excess_blob_gas: Option<U64>,
}

#[derive(Deserialize)]
struct Account {
    balance: U256,
    code: Bytes,
    nonce: U64,
    storage: BTreeMap<U256, U256>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transaction {
    data: Vec<Bytes>,
    gas_limit: Vec<U256>,
    value: Vec<String>,
    gas_price: Option<U256>,
    max_fee_per_gas: Option<U256>,
    max_priority_fee_per_gas: Option<U256>,
    max_fee_per_blob_gas: Option<U256>,
    blob_versioned_hashes: Option<Vec<B256>>,
    access_lists: Option<Vec<Option<AccessList>>>,
    authorization_list: Option<Vec<SignedAuthorization>>,
    nonce: U256,
    to: String,
    sender: Address,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Post {
    hash: B256,
    logs: B256,
    indexes: Indexes,
    expect_exception: Option<String>,
}

#[derive(Deserialize)]
struct Indexes {
    data: usize,
    gas: usize,
    value: usize,
}

fn block(env: &Environment, spec: SpecId) -> BlockEnv {
    BlockEnv {
        number: env.current_number,
        beneficiary: env.current_coinbase,
        timestamp: env.current_timestamp,
        gas_limit: env.current_gas_limit.saturating_to(),
        basefee: env.current_base_fee.unwrap_or_default().saturating_to(),
        difficulty: env.current_difficulty,
        prevrandao: spec.is_enabled_in(SpecId::MERGE).then(|| env.current_random.unwrap_or_default().into()),
        blob_excess_gas_and_price: hardfork::blobs(spec).map(|blobs| {
            let excess_blob_gas = env.current_excess_blob_gas.unwrap_or_default().to();
            BlobExcessGasAndPrice { excess_blob_gas, blob_gasprice: blobs.calc_blob_fee(excess_blob_gas) }
        }),
        slot_num: 0,
    }
}

/// The transaction of a case; none when it has what no transaction's encoding can have: a number that is too large, or blobs
/// without a recipient.
fn transaction(tx: &Transaction, at: &Indexes) -> Option<TxEnv> {
    let list = tx.access_lists.as_ref().and_then(|lists| lists.get(at.data).cloned().flatten());
    let mut env = TxEnv {
        caller: tx.sender,
        gas_limit: tx.gas_limit.get(at.gas)?.saturating_to(),
        gas_price: tx.gas_price.or(tx.max_fee_per_gas).unwrap_or_default().try_into().ok()?,
        gas_priority_fee: tx.max_priority_fee_per_gas.map(u128::try_from).transpose().ok()?,
        kind: if tx.to.is_empty() { TxKind::Create } else { TxKind::Call(tx.to.parse().ok()?) },
        value: tx.value.get(at.value)?.parse().ok()?,
        data: tx.data.get(at.data)?.clone(),
        nonce: tx.nonce.try_into().ok()?,
        chain_id: Some(1),
        blob_hashes: tx.blob_versioned_hashes.clone().unwrap_or_default(),
        max_fee_per_blob_gas: tx.max_fee_per_blob_gas.unwrap_or_default().try_into().ok()?,
        authorization_list: exec::authorizations(tx.authorization_list.as_deref().unwrap_or_default()),
        ..TxEnv::default()
    };
    env.tx_type = match () {
        () if tx.authorization_list.is_some() => 4,
        () if tx.max_fee_per_blob_gas.is_some() => 3,
        () if tx.max_fee_per_gas.is_some() => 2,
        () if list.is_some() => 1,
        () => 0,
    };
    if env.tx_type == 3 && env.kind.is_create() {
        return None;
    }
    env.access_list = list.unwrap_or_default();
    Some(env)
}

fn run(case: &Case, post: &Post, spec: SpecId) -> Result<(), String> {
    let mut world = World::default();
    let accounts: Vec<Change> = case
        .pre
        .iter()
        .map(|(address, account)| Change {
            address: *address,
            nonce: account.nonce.to(),
            balance: account.balance,
            has_code: true,
            code: account.code.clone(),
            slots: account.storage.iter().map(|(key, value)| Word { key: *key, value: *value }).collect(),
            ..Change::default()
        })
        .collect();
    world.apply(&accounts).map_err(|error| error.to_string())?;
    // BLOCKHASH in these tests is the hash of the number's digits.
    let db = Db::new(world, Arc::new(|number| keccak256(number.to_string())), spec);
    let mut machine = exec::machine(db, exec::rules(spec, 1), block(&case.env, spec), None, NoOpInspector);
    let outcome = transaction(&case.transaction, &post.indexes)
        .ok_or_else(|| "no transaction can be so".to_string())
        .and_then(|tx| exec::transact(&mut machine, tx, false).map_err(|refusal| refusal.to_string()));
    let logs = match outcome {
        Ok(outcome) => {
            if let Some(expected) = &post.expect_exception {
                return Err(format!("was executed, but should have been refused: {expected}"));
            }
            let db = &mut machine.ctx.journaled_state.database;
            db.commit(outcome.state);
            db.failure().map_err(|error| error.to_string())?;
            outcome.result.into_logs()
        }
        Err(refusal) if post.expect_exception.is_none() => return Err(format!("was refused: {refusal}")),
        Err(_) => Vec::new(),
    };
    let root = machine.ctx.journaled_state.database.world.root();
    if root != post.hash {
        return Err(format!("state root {root}, expected {}", post.hash));
    }
    let mut rlp = Vec::new();
    alloy_rlp::encode_list(&logs, &mut rlp);
    if keccak256(rlp) != post.logs {
        return Err("other logs".into());
    }
    Ok(())
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    Ok(())
}

/// Runs the cases of a file; returns how many there are and what is wrong with some.
fn file(path: &Path) -> (usize, Vec<String>) {
    let cases: BTreeMap<String, Case> = match std::fs::read(path).map(|text| serde_json::from_slice(&text)) {
        Ok(Ok(cases)) => cases,
        Ok(Err(error)) => return (1, vec![format!("{}: {error}", path.display())]),
        Err(error) => return (1, vec![format!("{}: {error}", path.display())]),
    };
    let (mut count, mut wrong) = (0, Vec::new());
    for (name, case) in &cases {
        for (fork, posts) in &case.post {
            for (index, post) in posts.iter().enumerate() {
                count += 1;
                let result = hardfork::parse(fork)
                    .map_err(|error| error.to_string())
                    .and_then(|spec| run(case, post, spec));
                if let Err(error) = result {
                    wrong.push(format!("{name} {fork} {index}: {error}"));
                }
            }
        }
    }
    (count, wrong)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut all = Vec::new();
    for dir in std::env::args().skip(1) {
        files(Path::new(&dir), &mut all)?;
    }
    all.sort();
    let (next, count, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            threads.spawn(|| {
                while let Some(path) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (cases, problems) = file(path);
                    count.fetch_add(cases, Ordering::Relaxed);
                    wrong.fetch_add(problems.len(), Ordering::Relaxed);
                    problems.iter().for_each(|problem| println!("{problem}"));
                }
            });
        }
    });
    let (count, wrong) = (count.into_inner(), wrong.into_inner());
    println!("{count} cases in {} files, {wrong} wrong", all.len());
    if count == 0 || wrong > 0 { Err("not all of them pass".into()) } else { Ok(()) }
}
