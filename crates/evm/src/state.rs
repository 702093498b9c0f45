//! The world state: accounts with their code and storage as one persistent trie, and the changes between two states.
use std::sync::Arc;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_rlp::{Encodable, RlpDecodable, RlpEncodable};
use alloy_trie::TrieAccount;
use revm::bytecode::Bytecode;
use revm::database_interface::DBErrorMarker;
use revm::primitives::hardfork::SpecId;
use revm::state::{AccountInfo, EvmState};
use revm::{Database, DatabaseCommit, DatabaseRef};

use crate::remote::Remote;
use crate::trie::{Leaf, Trie};

/// One account.
#[derive(Clone, Debug)]
pub struct Account {
    /// Where it is; its key in the trie is the hash of it.
    pub address: Address,
    /// Transactions sent, or contracts created by a contract.
    pub nonce: u64,
    /// Wei.
    pub balance: U256,
    /// Keccak-256 of the code.
    pub code_hash: B256,
    /// The code, analysed once.
    pub code: Bytecode,
    /// Slots that are not zero.
    pub storage: Trie<Slot>,
    /// Whether nothing of its storage is to be asked of the remote chain: it was made here.
    pub local: bool,
}

/// One slot of a contract's storage.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The slot's number; its key in the trie is the hash of it.
    pub key: U256,
    /// What it holds.
    pub value: U256,
}

impl Leaf for Slot {
    fn encode(&self, out: &mut Vec<u8>) {
        self.value.encode(out);
    }
}

impl Leaf for Account {
    fn encode(&self, out: &mut Vec<u8>) {
        TrieAccount {
            nonce: self.nonce,
            balance: self.balance,
            storage_root: self.storage.root(),
            code_hash: self.code_hash,
        }
        .encode(out);
    }
}

impl Account {
    fn empty(address: Address) -> Account {
        Account {
            address,
            nonce: 0,
            balance: U256::ZERO,
            code_hash: KECCAK256_EMPTY,
            code: Bytecode::default(),
            storage: Trie::default(),
            local: false,
        }
    }

    fn info(&self) -> AccountInfo {
        AccountInfo {
            balance: self.balance,
            nonce: self.nonce,
            code_hash: self.code_hash,
            code: Some(self.code.clone()),
            ..AccountInfo::default()
        }
    }

    fn is_empty(&self) -> bool {
        self.nonce == 0 && self.balance.is_zero() && self.code_hash == KECCAK256_EMPTY
    }
}

/// What became of one account: the unit of the store's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct Change {
    /// Whose.
    pub address: Address,
    /// The account is no more.
    pub gone: bool,
    /// Code and storage of before are forgotten: it was created, maybe where another was.
    pub fresh: bool,
    /// Its nonce.
    pub nonce: u64,
    /// Its balance in wei.
    pub balance: U256,
    /// Whether `code` says its new code.
    pub has_code: bool,
    /// Its code, if that changed.
    pub code: Bytes,
    /// Slots that changed.
    pub slots: Vec<Word>,
}

/// A slot and its new value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct Word {
    /// The slot.
    pub key: U256,
    /// Its new value.
    pub value: U256,
}

/// All accounts. A clone costs two pointers and stays as it is whatever happens to the original.
#[derive(Clone, Debug, Default)]
pub struct World {
    accounts: Trie<Account>,
    remote: Option<Arc<Remote>>,
}

/// The remote chain could not say what an account is.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the remote chain did not answer: {0}")]
pub struct StateError(pub String);

impl DBErrorMarker for StateError {}

impl World {
    /// A world that has, where nothing was changed, what a remote chain has.
    pub fn of_remote(remote: Arc<Remote>) -> World {
        World { accounts: Trie::default(), remote: Some(remote) }
    }

    /// The account at `address`, with what a remote chain says of it.
    pub fn account(&self, address: Address) -> Result<Option<Account>, StateError> {
        if let Some(account) = self.accounts.get(&keccak256(address)) {
            // Beside a remote chain an account that is gone stays as an empty one, so that it is not asked for again.
            return Ok((self.remote.is_none() || !account.is_empty()).then(|| account.clone()));
        }
        match &self.remote {
            None => Ok(None),
            Some(remote) => remote.account(address),
        }
    }

    /// What slot `key` of `address` holds.
    pub fn slot(&self, address: Address, key: U256) -> Result<U256, StateError> {
        let account = self.accounts.get(&keccak256(address));
        if let Some(account) = account {
            if let Some(slot) = account.storage.get(&slot_key(key)) {
                return Ok(slot.value);
            }
            if account.local {
                return Ok(U256::ZERO);
            }
        }
        match &self.remote {
            None => Ok(U256::ZERO),
            Some(remote) => remote.slot(address, key),
        }
    }

    /// The state root. Beside a remote chain it covers only what is different here.
    pub fn root(&self) -> B256 {
        self.accounts.root()
    }

    /// Every account that is here, in the order of the hashes of their addresses.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.iter()
    }

    /// The nodes of the state trie on the way to `address`.
    pub fn prove(&self, address: Address) -> Vec<Bytes> {
        self.accounts.prove(&keccak256(address))
    }

    /// Applies changes in their order.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), StateError> {
        for change in changes {
            let key = keccak256(change.address);
            let absent = || Account::empty(change.address);
            if change.gone {
                match &self.remote {
                    None => self.accounts.remove(&key),
                    Some(_) => self.accounts.insert(key, Account { local: true, ..absent() }),
                }
                continue;
            }
            let mut account = match self.accounts.get(&key) {
                Some(account) => account.clone(),
                None => self.account(change.address)?.unwrap_or_else(absent),
            };
            if change.fresh {
                account = Account { local: true, ..absent() };
            }
            account.nonce = change.nonce;
            account.balance = change.balance;
            if change.has_code {
                account.code = Bytecode::new_raw_checked(change.code.clone())
                    .unwrap_or_else(|_| Bytecode::new_legacy(change.code.clone()));
                account.code_hash =
                    if change.code.is_empty() { KECCAK256_EMPTY } else { keccak256(&change.code) };
            }
            for Word { key, value } in &change.slots {
                if value.is_zero() && self.remote.is_none() {
                    account.storage.remove(&slot_key(*key));
                } else {
                    account.storage.insert(slot_key(*key), Slot { key: *key, value: *value });
                }
            }
            self.accounts.insert(key, account);
        }
        Ok(())
    }

    /// The change that leaves `address` as it is, to begin another one from.
    pub fn unchanged(&self, address: Address) -> Result<Change, StateError> {
        let account = self.account(address)?.unwrap_or_else(|| Account::empty(address));
        Ok(Change { address, nonce: account.nonce, balance: account.balance, ..Change::default() })
    }

    /// What a transaction changed, as the EVM left it. Empty accounts that were touched go (EIP-161); before Spurious
    /// Dragon they stay.
    pub fn changes(&self, state: EvmState, spec: SpecId) -> Vec<Change> {
        let sweeps = spec.is_enabled_in(SpecId::SPURIOUS_DRAGON);
        let mut changes: Vec<Change> = state
            .into_iter()
            .filter(|(_, account)| account.is_touched())
            .map(|(address, account)| {
                let before =
                    self.accounts.get(&keccak256(address)).map_or(KECCAK256_EMPTY, |old| old.code_hash);
                // Only a creation and a delegation (EIP-7702) change code.
                let has_code = account.is_created() || account.info.code_hash != before;
                let code = account.info.code.as_ref().filter(|_| has_code);
                Change {
                    address,
                    gone: account.is_selfdestructed() || sweeps && account.is_empty(),
                    fresh: account.is_created(),
                    nonce: account.info.nonce,
                    balance: account.info.balance,
                    has_code,
                    code: code.map(Bytecode::original_bytes).unwrap_or_default(),
                    slots: account
                        .changed_storage_slots()
                        .map(|(key, slot)| Word { key: *key, value: slot.present_value() })
                        .collect(),
                }
            })
            .collect();
        // The order in a map is chance; the log of a chain should not be.
        changes.sort_by_key(|change| change.address);
        changes
    }

    /// The changes that make this world out of an empty one.
    pub fn dump(&self) -> impl Iterator<Item = Change> {
        self.accounts().map(|account| Change {
            address: account.address,
            gone: false,
            fresh: account.local,
            nonce: account.nonce,
            balance: account.balance,
            has_code: !account.code.is_empty(),
            code: account.code.original_bytes(),
            slots: account.storage.iter().map(|slot| Word { key: slot.key, value: slot.value }).collect(),
        })
    }
}

/// The key of a slot in its account's storage trie.
pub fn slot_key(key: U256) -> B256 {
    keccak256(key.to_be_bytes::<32>())
}

/// Says the hash of a block by its number.
pub type Hashes = Arc<dyn Fn(u64) -> B256 + Send + Sync>;

/// A world and its blocks' hashes, as the EVM reads them.
#[derive(Clone)]
pub struct Db {
    /// The state that transactions change.
    pub world: World,
    /// Everything that was committed, in order.
    pub changes: Vec<Change>,
    hashes: Hashes,
    spec: SpecId,
    failed: Option<StateError>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("world", &self.world).finish_non_exhaustive()
    }
}

impl Db {
    /// A view of `world` under the rules of `spec`.
    pub fn new(world: World, hashes: Hashes, spec: SpecId) -> Db {
        Db { world, changes: Vec::new(), hashes, spec, failed: None }
    }

    /// Applies changes and remembers them.
    pub fn change(&mut self, changes: Vec<Change>) -> Result<(), StateError> {
        self.world.apply(&changes)?;
        self.changes.extend(changes);
        Ok(())
    }

    /// What a commit met, if anything: the interface for commits cannot say it.
    pub fn failure(&mut self) -> Result<(), StateError> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl DatabaseRef for Db {
    type Error = StateError;

    fn basic_ref(&self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        Ok(self.world.account(address)?.map(|account| account.info()))
    }

    fn code_by_hash_ref(&self, _: B256) -> Result<Bytecode, StateError> {
        // Accounts come with their code, so nobody asks for it by its hash.
        Ok(Bytecode::default())
    }

    fn storage_ref(&self, address: Address, key: U256) -> Result<U256, StateError> {
        self.world.slot(address, key)
    }

    fn block_hash_ref(&self, number: u64) -> Result<B256, StateError> {
        Ok((self.hashes)(number))
    }
}

impl Database for Db {
    type Error = StateError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        self.basic_ref(address)
    }

    fn code_by_hash(&mut self, hash: B256) -> Result<Bytecode, StateError> {
        self.code_by_hash_ref(hash)
    }

    fn storage(&mut self, address: Address, key: U256) -> Result<U256, StateError> {
        self.storage_ref(address, key)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StateError> {
        self.block_hash_ref(number)
    }
}

impl DatabaseCommit for Db {
    fn commit(&mut self, state: EvmState) {
        let changes = self.world.changes(state, self.spec);
        if let Err(error) = self.change(changes) {
            self.failed = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::address;
    use alloy_trie::root::{state_root_unhashed, storage_root_unhashed};
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    /// An account as a test makes it: nonce, balance and slots.
    type Plain = (u64, u64, std::collections::BTreeMap<u8, u64>);

    fn change(index: u8, (nonce, balance, slots): &Plain) -> Change {
        Change {
            address: Address::repeat_byte(index),
            nonce: *nonce,
            balance: U256::from(*balance),
            slots: slots
                .iter()
                .map(|(key, value)| Word { key: U256::from(*key), value: U256::from(*value) })
                .collect(),
            ..Change::default()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// The root is the one that a second implementation hashes from scratch, and a dump makes the same world.
        #[test]
        fn the_root_is_that_of_a_second_implementation(
            accounts in vec((any::<u8>(), (0_u64..9, any::<u64>(), btree_map(any::<u8>(), 0_u64..4, 0..20))), 0..24)
        ) {
            let (mut world, mut plain) = (World::default(), std::collections::BTreeMap::<u8, Plain>::new());
            for (index, (nonce, balance, slots)) in accounts {
                world.apply(&[change(index, &(nonce, balance, slots.clone()))]).expect("nothing is remote");
                let known = plain.entry(index).or_default();
                (known.0, known.1) = (nonce, balance);
                known.2.extend(slots);
                known.2.retain(|_, value| *value != 0);
            }
            let expected = state_root_unhashed(plain.iter().map(|(index, (nonce, balance, slots))| {
                let slots = slots.iter().map(|(key, value)| (B256::with_last_byte(*key), U256::from(*value)));
                (Address::repeat_byte(*index), TrieAccount {
                    nonce: *nonce,
                    balance: U256::from(*balance),
                    storage_root: storage_root_unhashed(slots),
                    code_hash: KECCAK256_EMPTY,
                })
            }));
            prop_assert_eq!(world.root(), expected);
            let mut again = World::default();
            again.apply(&world.dump().collect::<Vec<_>>()).expect("nothing is remote");
            prop_assert_eq!(again.root(), expected);
        }
    }

    #[test]
    fn what_is_gone_or_made_anew_forgets_its_storage() {
        let at = address!("00000000000000000000000000000000000000aa");
        let mut world = World::default();
        let slots = vec![Word { key: U256::from(1), value: U256::from(2) }];
        let full = Change { address: at, nonce: 1, slots, ..Change::default() };
        world.apply(std::slice::from_ref(&full)).expect("nothing is remote");
        let before = world.clone();
        world
            .apply(&[Change { address: at, nonce: 1, fresh: true, ..Change::default() }])
            .expect("nothing is remote");
        assert_eq!(world.slot(at, U256::from(1)).expect("nothing is remote"), U256::ZERO);
        world.apply(&[Change { address: at, gone: true, ..Change::default() }]).expect("nothing is remote");
        assert!(world.account(at).expect("nothing is remote").is_none());
        assert_eq!(world.root(), World::default().root());
        assert_eq!(
            before.slot(at, U256::from(1)).expect("nothing is remote"),
            U256::from(2),
            "a clone stays as it was"
        );
    }
}
