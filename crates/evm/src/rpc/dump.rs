//! All accounts as one text: gzip of JSON, as anvil writes and reads it.
use std::collections::BTreeMap;
use std::io::{Read, Write};

use alloy_primitives::{Address, B256, Bytes, U64, U256};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Answer, Rpc, RpcError};
use crate::state::{Change, Word};

/// Bytes of a dump when it is unpacked.
const UNPACKED_MAX: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
struct Dump {
    #[serde(default)]
    block: Value,
    accounts: BTreeMap<Address, Record>,
    #[serde(default)]
    best_block_number: Value,
}

#[derive(Serialize, Deserialize)]
struct Record {
    nonce: U64,
    balance: U256,
    #[serde(default)]
    code: Bytes,
    #[serde(default)]
    storage: BTreeMap<B256, B256>,
}

impl Rpc {
    /// The state now.
    pub(super) fn dump_state(&self) -> Answer {
        let (world, head) = {
            let data = self.chain.read();
            (data.world().clone(), std::sync::Arc::clone(data.head()))
        };
        let accounts = world.dump().map(|change| {
            let storage = change.slots.iter().map(|word| (word.key.into(), word.value.into())).collect();
            let Change { address, nonce, balance, code, .. } = change;
            (address, Record { nonce: U64::from(nonce), balance, code, storage })
        });
        let dump = Dump {
            block: json!({
                "number": U64::from(head.number()),
                "beneficiary": head.header.beneficiary,
                "timestamp": U64::from(head.header.timestamp),
                "gas_limit": head.header.gas_limit,
                "basefee": head.header.base_fee_per_gas.unwrap_or_default(),
                "difficulty": head.header.difficulty,
                "prevrandao": head.header.mix_hash,
            }),
            accounts: accounts.collect(),
            best_block_number: json!(U64::from(head.number())),
        };
        let failed =
            |error: &dyn std::fmt::Display| RpcError::server(format!("cannot dump the state: {error}"));
        let text = serde_json::to_vec(&dump).map_err(|error| failed(&error))?;
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&text).map_err(|error| failed(&error))?;
        Ok(json!(Bytes::from(packed.finish().map_err(|error| failed(&error))?)))
    }

    /// Adds the accounts of a dump to those that are here.
    pub(super) fn load_state(&self, packed: &[u8]) -> Answer {
        let wrong = |error: &dyn std::fmt::Display| {
            RpcError::params(format!("not a state as anvil_dumpState gives it: {error}"))
        };
        let mut text = Vec::new();
        if packed.starts_with(&[0x1f, 0x8b]) {
            let mut unpacked = GzDecoder::new(packed).take(UNPACKED_MAX + 1);
            unpacked.read_to_end(&mut text).map_err(|error| wrong(&error))?;
        } else {
            text.extend_from_slice(packed);
        }
        if text.len() as u64 > UNPACKED_MAX {
            return Err(wrong(&format!("it is more than {UNPACKED_MAX} bytes")));
        }
        let dump: Dump = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        let changes: Vec<Change> = dump
            .accounts
            .into_iter()
            .map(|(address, record)| Change {
                address,
                gone: false,
                fresh: true,
                nonce: record.nonce.to(),
                balance: record.balance,
                has_code: !record.code.is_empty(),
                code: record.code,
                slots: record
                    .storage
                    .into_iter()
                    .map(|(key, value)| Word { key: key.into(), value: value.into() })
                    .collect(),
            })
            .collect();
        self.chain.change_all(&changes)?;
        Ok(json!(true))
    }
}
