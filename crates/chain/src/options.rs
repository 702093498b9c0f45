//! What a chain can be told: the same words by itself and as a VM.
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser};
use viv_evm::hardfork::{self, UnknownFork};
use viv_evm::node::Config;
use viv_model::{Fault, Kind};

/// How a chain is to be.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The chain's id [default: 31337].
    #[arg(long, value_name = "N")]
    chain_id: Option<u64>,
    /// The fork whose rules hold, like london or cancun [default: the newest of the main network].
    #[arg(long, value_name = "NAME")]
    hardfork: Option<String>,
    /// A block each so many seconds, instead of one for each transaction.
    #[arg(long, value_name = "S")]
    block_time: Option<u64>,
    /// Make blocks only on request.
    #[arg(long)]
    no_mining: bool,
    /// Development accounts.
    #[arg(long, default_value_t = 10, value_name = "N")]
    accounts: u32,
    /// Ether of each account.
    #[arg(long, default_value_t = 10_000, value_name = "ETH")]
    balance: u64,
    /// Gas of a block.
    #[arg(long, default_value_t = 30_000_000, value_name = "N")]
    gas_limit: u64,
    /// Wei per gas in the first block.
    #[arg(long, default_value_t = 1_000_000_000, value_name = "N")]
    base_fee: u64,
    /// States of blocks that are kept, to ask for later.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    history: usize,
    /// Gas of a call that nobody pays for.
    #[arg(long, default_value_t = 50_000_000, value_name = "N")]
    call_gas_cap: u64,
}

impl Options {
    /// The chain that they describe, in memory.
    pub(crate) fn config(self) -> Result<Config, UnknownFork> {
        let mut config = Config {
            chain_id: self.chain_id,
            hardfork: self.hardfork.as_deref().map(hardfork::parse).transpose()?,
            block_time: self.block_time,
            no_mining: self.no_mining,
            accounts: self.accounts,
            balance: self.balance,
            gas_limit: self.gas_limit,
            base_fee: self.base_fee,
            history: self.history,
            ..Config::default()
        };
        config.limits.call_gas = self.call_gas_cap;
        Ok(config)
    }
}

/// Options of `viv-evm serve` that a VM has other words for: why, and what to do.
const ELSEWHERE: [(&str, &str, &str); 4] = [
    (
        "--listen",
        "a chain's VM listens at the ports that are published",
        "publish one: viv run --kind evm -p [ADDRESS:]PORT",
    ),
    ("--dir", "a chain is kept in its VM's directory", "leave it out; viv inspect shows where that is"),
    (
        "--fork-url",
        "a chain's VM connects to nothing outside",
        "run the chain by itself: viv-evm serve --fork-url URL",
    ),
    (
        "--fork-block",
        "a chain's VM connects to nothing outside",
        "run the chain by itself: viv-evm serve --fork-url URL",
    ),
];

#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Alone {
    #[command(flatten)]
    options: Options,
}

/// What a VM is told of its chain.
pub(crate) fn of_vm(words: &[String]) -> Result<Config, Fault> {
    let wrong = |text: String, fix: String| Fault::new(Kind::Usage, text, fix);
    for word in words {
        let name = word.split('=').next().unwrap_or_default();
        if let Some((_, why, fix)) = ELSEWHERE.iter().find(|(known, ..)| *known == name) {
            return Err(wrong(format!("{name} is not for a VM: {why}"), fix.to_string()));
        }
    }
    let known = || {
        let command = Alone::command();
        let names = command.get_arguments().filter_map(|arg| arg.get_long()).map(|long| format!("--{long}"));
        let names = names.collect::<Vec<_>>().join(", ");
        format!("its options are {names}; what they mean: viv-evm serve --help")
    };
    let options = match Alone::try_parse_from(words) {
        Ok(alone) => alone.options,
        Err(error) => {
            let which = error.get(ContextKind::InvalidArg).map(ContextValue::to_string).unwrap_or_default();
            return Err(match error.kind() {
                ErrorKind::UnknownArgument => wrong(format!("a chain has no option {which}"), known()),
                _ => {
                    let text = error.to_string();
                    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
                    wrong(format!("a chain cannot be so: {first}"), known())
                }
            });
        }
    };
    options.config().map_err(|error| wrong(error.to_string(), "use one of these: -- --hardfork NAME".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Config, Fault> {
        of_vm(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn options_of_serve_are_those_of_a_vm() {
        let config = of(&["--hardfork", "London", "--block-time=2", "--accounts", "5"]).expect("options");
        assert_eq!((config.hardfork, config.block_time), (hardfork::parse("london").ok(), Some(2)));
        assert_eq!((config.accounts, config.limits.call_gas), (5, 50_000_000));
        assert_eq!(of(&[]).expect("none").accounts, 10);
    }

    #[test]
    fn what_a_vm_does_not_take_is_named_with_the_way_out() {
        for (words, names, fix) in [
            (&["--listen", "0.0.0.0:1"][..], "--listen", "-p"),
            (&["--dir=/x"], "--dir", "inspect"),
            (&["--fork-url", "http://x"], "--fork-url", "viv-evm serve"),
            (&["--hardfrok", "london"], "--hardfrok", "--hardfork"),
            (&["--accounts", "many"], "many", "--accounts"),
            (&["--hardfork", "brussels"], "brussels", "--hardfork"),
            (&["genesis.json"], "genesis.json", "--chain-id"),
            (&["--help"], "--help", "--history"),
        ] {
            let fault = of(words).expect_err("it is refused");
            assert!(fault.message.contains(names) && fault.fix.contains(fix), "{words:?}: {fault}");
        }
    }
}
