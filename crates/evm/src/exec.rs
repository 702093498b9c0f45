//! One transaction or call on the EVM: its environment, its rules, and the watch that ends what runs too long.
use std::time::{Duration, Instant};

use alloy_consensus::transaction::Recovered;
use alloy_consensus::{Transaction, Typed2718};
use alloy_eips::eip7702::SignedAuthorization;
use alloy_primitives::Address;
use revm::bytecode::opcode;
use revm::context::either::Either;
use revm::context::result::{EVMError, ExecutionResult, InvalidTransaction, ResultAndState};
use revm::context::{BlockEnv, CfgEnv, Context, Evm, FrameStack, Journal, TxEnv};
use revm::context_interface::ContextError;
use revm::handler::instructions::EthInstructions;
use revm::handler::{EthFrame, EthPrecompiles};
use revm::inspector::{InspectEvm, Inspector, NoOpInspector};
use revm::interpreter::instructions::contract;
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::{Instruction, InstructionContext, InstructionExecResult, InstructionResult};
use revm::primitives::hardfork::SpecId;
use revm::{ExecuteEvm, MainContext};

use crate::hardfork;
use crate::hold::Hold;
use crate::state::{Db, StateError};

/// The context of every execution.
pub type Host = Context<BlockEnv, TxEnv, CfgEnv, Db, Journal<Db>, Watch>;
/// The machine.
pub type Machine<I> =
    Evm<Host, I, EthInstructions<EthInterpreter, Host>, EthPrecompiles, EthFrame<EthInterpreter>>;
/// Why nothing could be executed.
pub type Refusal = EVMError<StateError, InvalidTransaction>;

/// What ends an execution that its gas would let run for too long. Every loop comes by a `JUMPDEST` and every recursion by a
/// call, so looking there is enough.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Jumps and calls until the clock is looked at again.
    left: u32,
    begin: Instant,
    limit: Duration,
    yielded: bool,
    /// What it stands still with.
    hold: Hold,
    /// Bytes that the process may have in memory, and when that was last looked at.
    memory: Option<(usize, Instant)>,
}

/// Why an execution is to end before its gas does.
enum Reason {
    Time,
    Memory,
    Stop,
}

/// Jumps and calls between two looks at the clock: about ten microseconds.
const LOOKS_EVERY: u32 = 1024;
/// A call that has run for so long goes behind those that have not.
const LONG: Duration = Duration::from_millis(5);
/// How often the process' memory is looked at.
const MEASURED_EVERY: Duration = Duration::from_millis(1);
/// The nice value of a thread with a long call: its weight is a fifteenth of the usual one (`sched(7)`).
const NICE_LONG: i32 = 12;

impl Watch {
    /// Lets executions run for `limit` from now on, while `hold` is open, and while the process has fewer than `memory` bytes.
    pub fn new(limit: Duration, hold: Hold, memory: Option<usize>) -> Watch {
        let begin = Instant::now();
        let memory = memory.map(|bytes| (bytes, begin));
        Watch { left: LOOKS_EVERY, begin, limit, yielded: false, hold, memory }
    }

    /// Whether it is to end. A thread that is found to be slow gives way to the others for good.
    #[cold]
    fn look(&mut self) -> Option<Reason> {
        self.left = LOOKS_EVERY;
        let came = Instant::now();
        match self.hold.pass() {
            Ok(false) => {}
            // The time that it stood still is not its own.
            Ok(true) => self.begin += came.elapsed(),
            Err(_) => return Some(Reason::Stop),
        }
        if let Some((limit, measured)) = &mut self.memory
            && measured.elapsed() > MEASURED_EVERY
        {
            *measured = Instant::now();
            if crate::memory::resident() > *limit {
                return Some(Reason::Memory);
            }
        }
        let ran = self.begin.elapsed();
        if ran > LONG && !self.yielded {
            self.yielded = true;
            crate::workers::give_way(NICE_LONG);
        }
        (ran > self.limit).then_some(Reason::Time)
    }
}

/// How the message of a [`Refusal`] begins when time was up.
pub const OUT_OF_TIME: &str = "execution aborted (timeout";

fn watch(host: &mut Host) -> InstructionExecResult {
    host.chain.left -= 1;
    if host.chain.left == 0
        && let Some(reason) = host.chain.look()
    {
        let limit = host.chain.limit;
        host.error = Err(ContextError::Custom(match reason {
            Reason::Time => format!("{OUT_OF_TIME} = {limit:?})"),
            Reason::Memory => crate::memory::SHORT.into(),
            Reason::Stop => crate::hold::Ended.to_string(),
        }));
        return Err(InstructionResult::FatalExternalError);
    }
    Ok(())
}

type Step<'a> = InstructionContext<'a, Host, EthInterpreter>;

fn jumpdest(step: Step<'_>) -> InstructionExecResult {
    watch(step.host)
}

fn watched_call<const KIND: u8>(step: Step<'_>) -> InstructionExecResult {
    watch(step.host)?;
    contract::call::<KIND, _, _>(step)
}

fn watched_create<const SALTED: bool>(step: Step<'_>) -> InstructionExecResult {
    watch(step.host)?;
    contract::create::<SALTED, _, _>(step)
}

/// The fork's instructions, of which those that loops and recursions need look at the watch.
fn watched_instructions(spec: SpecId) -> EthInstructions<EthInterpreter, Host> {
    let mut instructions = EthInstructions::new_mainnet_with_spec(spec);
    let table = instructions.instruction_table_mut();
    table[usize::from(opcode::JUMPDEST)] = Instruction::new(jumpdest);
    table[usize::from(opcode::CALL)] = Instruction::new(watched_call::<{ opcode::CALL }>);
    table[usize::from(opcode::CALLCODE)] = Instruction::new(watched_call::<{ opcode::CALLCODE }>);
    table[usize::from(opcode::DELEGATECALL)] = Instruction::new(watched_call::<{ opcode::DELEGATECALL }>);
    table[usize::from(opcode::STATICCALL)] = Instruction::new(watched_call::<{ opcode::STATICCALL }>);
    table[usize::from(opcode::CREATE)] = Instruction::new(watched_create::<false>);
    table[usize::from(opcode::CREATE2)] = Instruction::new(watched_create::<true>);
    instructions
}

/// The settings of the EVM for a fork and a chain.
pub fn rules(spec: SpecId, chain_id: u64) -> CfgEnv {
    let mut rules = CfgEnv::new_with_spec(spec).with_chain_id(chain_id);
    rules.max_blobs_per_tx = hardfork::blobs(spec).map(|blobs| blobs.max_blobs_per_tx);
    rules
}

/// The same settings for calls that nobody signed or pays for: no nonce, no fees, no balance for gas, any sender.
pub fn rules_of_a_call(mut rules: CfgEnv) -> CfgEnv {
    rules.disable_nonce_check = true;
    rules.disable_eip3607 = true;
    rules.disable_base_fee = true;
    rules.disable_block_gas_limit = true;
    rules.tx_gas_limit_cap = Some(u64::MAX);
    rules
}

/// A machine on `db`. With a watch, it ends in time.
pub fn machine<I: Inspector<Host>>(
    db: Db,
    rules: CfgEnv,
    block: BlockEnv,
    watch: Option<Watch>,
    inspector: I,
) -> Machine<I> {
    let spec = rules.spec;
    let instruction = match watch {
        Some(_) => watched_instructions(spec),
        None => EthInstructions::new_mainnet_with_spec(spec),
    };
    let ctx = Context::mainnet()
        .with_db(db)
        .with_cfg(rules)
        .with_block(block)
        .with_chain(watch.unwrap_or_else(|| Watch::new(Duration::MAX, Hold::default(), None)));
    Evm {
        ctx,
        inspector,
        instruction,
        precompiles: EthPrecompiles::new(spec),
        frame_stack: FrameStack::new_prealloc(8),
    }
}

/// Executes one transaction and leaves the database as it was.
pub fn transact<I: Inspector<Host>>(
    machine: &mut Machine<I>,
    tx: TxEnv,
    inspect: bool,
) -> Result<ResultAndState, Refusal> {
    if inspect { machine.inspect_tx(tx) } else { machine.transact(tx) }
}

/// Executes one transaction on a database of its own, without an inspector.
pub fn run(
    db: Db,
    rules: CfgEnv,
    block: BlockEnv,
    tx: TxEnv,
    watch: Watch,
) -> Result<ExecutionResult, Refusal> {
    let mut machine = machine(db, rules, block, Some(watch), NoOpInspector);
    Ok(machine.transact(tx)?.result)
}

/// A signed transaction as the EVM takes it.
pub fn environment<T: Transaction + Typed2718>(tx: &Recovered<T>) -> TxEnv {
    from_parts(tx.inner(), tx.signer())
}

fn from_parts<T: Transaction + Typed2718>(tx: &T, caller: Address) -> TxEnv {
    TxEnv {
        tx_type: tx.ty(),
        caller,
        gas_limit: tx.gas_limit(),
        gas_price: tx.max_fee_per_gas(),
        kind: tx.kind(),
        value: tx.value(),
        data: tx.input().clone(),
        nonce: tx.nonce(),
        chain_id: tx.chain_id(),
        access_list: tx.access_list().cloned().unwrap_or_default(),
        gas_priority_fee: tx.max_priority_fee_per_gas(),
        blob_hashes: tx.blob_versioned_hashes().map(<[_]>::to_vec).unwrap_or_default(),
        max_fee_per_blob_gas: tx.max_fee_per_blob_gas().unwrap_or_default(),
        authorization_list: authorizations(tx.authorization_list().unwrap_or_default()),
    }
}

/// EIP-7702 authorizations, whose signers the EVM recovers itself.
pub fn authorizations<R>(list: &[SignedAuthorization]) -> Vec<Either<SignedAuthorization, R>> {
    list.iter().cloned().map(Either::Left).collect()
}
