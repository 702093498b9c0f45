//! The verbs of development chains (`evm_*`, `anvil_*`, `hardhat_*`): time, mining, accounts, snapshots.
use alloy_primitives::{Address, B256, Bytes, U64, U256};
use serde_json::{Value, json};

use super::chain_data::quantity;
use super::{Answer, Params, Rpc, RpcError};
use crate::chain::{BLOCKS_AT_ONCE_MAX, ChainError, Settings, now};
use crate::state::{Change, Word};

impl Rpc {
    /// A verb goes by any of the prefixes that tools know it by.
    pub(super) fn control(&self, method: &str, params: &Params) -> Option<Answer> {
        let (prefix, verb) = method.split_once('_')?;
        if !matches!(prefix, "evm" | "anvil" | "hardhat") {
            return None;
        }
        self.time_and_blocks(verb, params)
            .or_else(|| self.accounts(verb, params))
            .or_else(|| self.whole(verb, params))
    }

    fn time_and_blocks(&self, verb: &str, params: &Params) -> Option<Answer> {
        Some(match verb {
            "mine" => self.mine(params),
            "increaseTime" => params.get(0).and_then(|seconds: U64| {
                // Blocks that came fast are ahead of the clock, and the time is to pass after them.
                let ahead = i64::try_from(self.chain.read().head().header.timestamp.saturating_sub(now()));
                let offset = self.set(|settings| {
                    let from = settings.time_offset.max(ahead.unwrap_or(i64::MAX));
                    settings.time_offset = from.saturating_add_unsigned(seconds.to());
                    settings.time_offset
                })?;
                Ok(json!(offset))
            }),
            "setNextBlockTimestamp" => params.get(0).and_then(|time: U64| {
                self.chain.set_next_timestamp(time.to())?;
                Ok(Value::Null)
            }),
            "setTime" => params.get(0).and_then(|time: U256| {
                // Milliseconds are what JavaScript has.
                let seconds: u64 = if time > U256::from(u32::MAX) {
                    (time / U256::from(1000)).saturating_to()
                } else {
                    time.to()
                };
                self.set(|settings| {
                    settings.time_offset =
                        i64::try_from(i128::from(seconds) - i128::from(now())).unwrap_or(i64::MAX);
                    settings.next_timestamp = None;
                })?;
                Ok(quantity(seconds))
            }),
            "setBlockTimestampInterval" => params.get(0).and_then(|seconds: U64| {
                self.done(|settings| settings.timestamp_interval = Some(seconds.to()))
            }),
            "removeBlockTimestampInterval" => {
                self.set(|settings| json!(settings.timestamp_interval.take().is_some()))
            }
            "setAutomine" => params.get(0).and_then(|on: bool| self.done(|settings| settings.automine = on)),
            "getAutomine" => Ok(json!(self.chain.read().settings.automine)),
            "setIntervalMining" => params.get(0).and_then(|seconds: U64| {
                let seconds: u64 = seconds.to();
                self.done(|settings| {
                    settings.interval = (seconds > 0).then_some(seconds);
                    settings.automine = false;
                })
            }),
            "getIntervalMining" => Ok(json!(self.chain.read().settings.interval)),
            "setBlockGasLimit" => params.get(0).and_then(|gas: U64| {
                self.set(|settings| settings.gas_limit = gas.to())?;
                Ok(json!(true))
            }),
            "setCoinbase" => {
                params.get(0).and_then(|address: Address| self.done(|settings| settings.coinbase = address))
            }
            "setNextBlockBaseFeePerGas" => params
                .get(0)
                .and_then(|fee: U64| self.done(|settings| settings.next_base_fee = Some(fee.to()))),
            "setPrevRandao" => params
                .get(0)
                .and_then(|random: B256| self.done(|settings| settings.next_random = Some(random))),
            // Nothing is logged, so there is nothing to turn off.
            "setLoggingEnabled" => Ok(Value::Null),
            _ => return None,
        })
    }

    fn accounts(&self, verb: &str, params: &Params) -> Option<Answer> {
        Some(match verb {
            "setBalance" => {
                params.get(1).and_then(|balance: U256| self.edit(params, |it| it.balance = balance))
            }
            "addBalance" => params
                .get(1)
                .and_then(|more: U256| self.edit(params, |it| it.balance = it.balance.saturating_add(more))),
            "setNonce" => params.get(1).and_then(|nonce: U64| self.edit(params, |it| it.nonce = nonce.to())),
            "setCode" => params.get(1).and_then(|code: Bytes| {
                self.edit(params, |it| {
                    it.has_code = true;
                    it.code = code;
                })
            }),
            "setStorageAt" => self.set_storage(params),
            "impersonateAccount" => params.get(0).and_then(|address: Address| {
                self.done(|settings| {
                    settings.impersonated.insert(address);
                })
            }),
            "stopImpersonatingAccount" => params.get(0).and_then(|address: Address| {
                self.done(|settings| {
                    settings.impersonated.remove(&address);
                })
            }),
            "autoImpersonateAccount" => {
                params.get(0).and_then(|on: bool| self.done(|settings| settings.impersonate_all = on))
            }
            "dropTransaction" => params
                .get(0)
                .and_then(|hash: B256| Ok(json!(self.chain.drop_transaction(&hash)?.map(|_| hash)))),
            "dropAllTransactions" => {
                let hashes: Vec<B256> =
                    self.chain.read().pool.iter().map(|(_, _, tx)| *tx.tx_hash()).collect();
                self.drop_all(&hashes)
            }
            "removePoolTransactions" => params.get(0).and_then(|address: Address| {
                let data = self.chain.read();
                let of_sender = data.pool.iter().filter(|(sender, ..)| **sender == address);
                let hashes: Vec<B256> = of_sender.map(|(_, _, tx)| *tx.tx_hash()).collect();
                drop(data);
                self.drop_all(&hashes)
            }),
            _ => return None,
        })
    }

    fn drop_all(&self, hashes: &[B256]) -> Answer {
        for hash in hashes {
            self.chain.drop_transaction(hash)?;
        }
        Ok(Value::Null)
    }

    fn whole(&self, verb: &str, params: &Params) -> Option<Answer> {
        Some(match verb {
            "snapshot" => self.chain.snapshot().map(quantity).map_err(RpcError::from),
            "revert" => params.get(0).and_then(|id: U256| Ok(json!(self.chain.revert(id.saturating_to())?))),
            "reset" => self.reset(params),
            "dumpState" => self.dump_state(),
            "loadState" => params.get(0).and_then(|state: Bytes| self.load_state(&state)),
            "nodeInfo" => Ok(self.node_info()),
            "metadata" => Ok(self.metadata()),
            _ => return None,
        })
    }

    fn set<T>(&self, edit: impl FnOnce(&mut Settings) -> T) -> Result<T, RpcError> {
        Ok(self.chain.set(edit)?)
    }

    fn done(&self, edit: impl FnOnce(&mut Settings)) -> Answer {
        self.set(edit).map(|()| Value::Null)
    }

    fn edit(&self, params: &Params, edit: impl FnOnce(&mut Change)) -> Answer {
        let address: Address = params.get(0)?;
        self.chain.change(address, edit)?;
        Ok(Value::Null)
    }

    fn set_storage(&self, params: &Params) -> Answer {
        let (key, value): (String, B256) = (params.get(1)?, params.get(2)?);
        let key = super::chain_data::slot(key)?;
        self.edit(params, |change| change.slots = vec![Word { key, value: value.into() }])?;
        Ok(json!(true))
    }

    /// `evm_mine` takes a time, or `{ blocks, timestamp }`; the others a number of blocks and the seconds between them.
    fn mine(&self, params: &Params) -> Answer {
        let (mut count, mut apart) = (1_u64, None);
        match params.opt::<Value>(0)? {
            Some(Value::Object(options)) => {
                let field = |name: &str| -> Result<Option<u64>, RpcError> {
                    let number = options.get(name).filter(|value| !value.is_null());
                    let number = number.map(|value| serde_json::from_value::<U64>(value.clone())).transpose();
                    number.map(|it| it.map(|it| it.to())).map_err(|error| RpcError::params(error.to_string()))
                };
                count = field("blocks")?.unwrap_or(1);
                if let Some(time) = field("timestamp")? {
                    self.chain.set_next_timestamp(time)?;
                }
            }
            Some(number) => {
                let number: U64 =
                    serde_json::from_value(number).map_err(|error| RpcError::params(error.to_string()))?;
                let number: u64 = number.to();
                // A time is a large number, and nobody asks for so many blocks.
                if number > BLOCKS_AT_ONCE_MAX && params.len() == 1 {
                    self.chain.set_next_timestamp(number)?;
                } else {
                    count = number;
                }
                apart = params.opt::<U64>(1)?.map(|seconds| seconds.to());
            }
            None => {}
        }
        self.chain.mine(count, apart)?;
        Ok(json!("0x0"))
    }

    fn reset(&self, params: &Params) -> Answer {
        let wanted: Option<Value> = params.opt(0)?;
        if wanted.and_then(|it| it.get("forking").cloned()).is_some() {
            return Err(RpcError::params(
                "forking another chain takes a new node: start one with --fork-url",
            ));
        }
        self.chain.reset().map_err(|error: ChainError| error.into()).map(|()| Value::Null)
    }

    fn node_info(&self) -> Value {
        let data = self.chain.read();
        json!({
            "currentBlockNumber": U64::from(data.head().number()),
            "currentBlockTimestamp": data.head().header.timestamp,
            "currentBlockHash": data.head().hash(),
            "hardFork": crate::hardfork::name(self.chain.spec()),
            "transactionOrder": "fees",
            "environment": {
                "baseFee": U64::from(data.head().header.base_fee_per_gas.unwrap_or_default()),
                "chainId": self.chain.chain_id(),
                "gasLimit": U64::from(data.settings.gas_limit),
                "gasPrice": U64::from(data.settings.base_fee),
            },
            "forkConfig": { "forkUrl": null, "forkBlockNumber": null, "forkRetryBackoff": null },
        })
    }

    fn metadata(&self) -> Value {
        let data = self.chain.read();
        json!({
            "clientVersion": super::chain_data::CLIENT,
            "chainId": self.chain.chain_id(),
            "instanceId": data.block(data.first()).map(|block| block.hash()),
            "latestBlockNumber": data.head().number(),
            "latestBlockHash": data.head().hash(),
            "snapshots": {},
        })
    }
}
