//! What a chain can be asked in words: `viv-evm call …` over the network, `viv exec CHAIN -- call …` within its VM.
use alloy_primitives::{Address, U256};
use clap::{Args, Parser, Subcommand};
use viv_evm::client::{Call, Client};

use crate::Failure;

/// A verb.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Call a contract and print what it returns.
    Call(Target),
    /// Send a transaction from an account of the node and wait for its block.
    Send(Target),
    /// Deploy code and print the contract's address.
    Deploy(Deploy),
    /// Show the calls within a transaction.
    Trace {
        /// The transaction's hash.
        hash: String,
    },
    /// Call any method of JSON-RPC and print its result.
    Rpc {
        /// The method, like eth_getBalance.
        method: String,
        /// Its parameters: JSON each, or a text as it is.
        params: Vec<String>,
    },
}

/// What is called, and how.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// The contract or account.
    to: Address,
    /// Calldata (0x…), or a signature like balanceOf(address)(uint256).
    what: Option<String>,
    /// The signature's arguments.
    args: Vec<String>,
    #[command(flatten)]
    sender: Sender,
    /// The block to call at: a number or a tag.
    #[arg(long, default_value = "latest")]
    block: String,
}

/// What is deployed.
#[derive(Args, Debug)]
pub(crate) struct Deploy {
    /// The code that makes the contract (0x…), or @FILE with it.
    code: String,
    /// The constructor's types, like (uint256,address), and a value for each.
    args: Vec<String>,
    #[command(flatten)]
    sender: Sender,
}

#[derive(Args, Debug)]
struct Sender {
    /// The sender; the node's first account for transactions.
    #[arg(long)]
    from: Option<Address>,
    /// Wei to send along.
    #[arg(long, default_value_t = U256::ZERO)]
    value: U256,
    /// Gas to give, instead of an estimate.
    #[arg(long)]
    gas: Option<u64>,
}

impl Sender {
    fn call(&self, to: Option<Address>, what: Option<String>, args: Vec<String>) -> Call {
        Call { to, what, args, from: self.from, value: self.value, gas: self.gas }
    }
}

/// Whether files that a verb names are its user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    Read,
    OutOfReach,
}

impl Verb {
    /// Asks the chain. The text is for the user.
    pub(crate) fn run(self, client: &Client, files: Files) -> Result<String, Failure> {
        Ok(match self {
            Verb::Call(Target { to, what, args, sender, block }) => {
                let block = block.parse::<u64>().map_or(block, |number| format!("{number:#x}"));
                client.call(&sender.call(Some(to), what, args), &block)?
            }
            Verb::Send(Target { to, what, args, sender, .. }) => {
                client.send(&sender.call(Some(to), what, args))?
            }
            Verb::Deploy(Deploy { code, args, sender }) => {
                let code = match (code.strip_prefix('@'), files) {
                    (Some(path), Files::Read) => std::fs::read_to_string(path)
                        .map_err(|error| format!("cannot read {path}: {error}"))?
                        .trim()
                        .to_string(),
                    (Some(path), Files::OutOfReach) => {
                        return Err(
                            format!("the chain does not see your files: deploy \"$(cat {path})\"").into()
                        );
                    }
                    (None, _) => code,
                };
                let code = if code.starts_with("0x") { code } else { format!("0x{code}") };
                client.send(&sender.call(None, Some(code), args))?
            }
            Verb::Trace { hash } => client.trace(&hash)?,
            Verb::Rpc { method, params } => client.rpc(&method, &params)?,
        })
    }
}

/// The words of `viv exec CHAIN -- …`.
#[derive(Debug, Parser)]
#[command(
    name = "viv exec CHAIN --",
    about = "Ask the chain, from within its VM",
    disable_version_flag = true
)]
pub(crate) struct Inside {
    /// What is asked.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Inside {
    /// Reads them.
    pub(crate) fn read(argv: &[String]) -> Result<Inside, clap::Error> {
        let name = std::iter::once("viv exec CHAIN --");
        Inside::try_parse_from(name.chain(argv.iter().map(String::as_str)))
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn read(words: &[&str]) -> Result<Inside, ErrorKind> {
        Inside::read(&words.iter().map(ToString::to_string).collect::<Vec<_>>()).map_err(|error| error.kind())
    }

    #[test]
    fn words_within_a_vm_are_the_verbs_without_a_network() {
        assert!(matches!(read(&["rpc", "eth_chainId"]).map(|inside| inside.verb), Ok(Verb::Rpc { .. })));
        assert_eq!(read(&["help"]).err(), Some(ErrorKind::DisplayHelp));
        assert_eq!(read(&["serve"]).err(), Some(ErrorKind::InvalidSubcommand));
        assert_eq!(read(&["trace", "0x1", "--rpc", "http://x"]).err(), Some(ErrorKind::UnknownArgument));
    }

    #[test]
    fn a_file_is_out_of_reach_within_a_vm() {
        let client = Client::new("http://127.0.0.1:1");
        let deploy = read(&["deploy", "@/etc/hostname"]).expect("words that fit").verb;
        let refused = deploy.run(&client, Files::OutOfReach).expect_err("it is not there").to_string();
        assert!(refused.contains("$(cat /etc/hostname)"), "{refused}");
    }
}
