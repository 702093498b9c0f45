//! A chain on disk: a log of what happened, each record with its length and checksum.
//!
//! ```text
//!  "VIVEVM1\n" · record · record · …        record: length u32 · CRC-32C u32 · RLP of an entry (little endian)
//! ```
//! A record is written by one `write` before anybody hears of what it says, so a killed process loses nothing that was
//! acknowledged; what it was writing is cut off at the next start. [`Store::sync`] is for power cuts.
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use alloy_consensus::transaction::Recovered;
use alloy_consensus::{Header, ReceiptEnvelope, Sealable};
use alloy_eips::eip2718::{Decodable2718, Encodable2718};
use alloy_primitives::{Address, B256, Bytes};
use alloy_rlp::{Decodable, Encodable, RlpDecodable, RlpEncodable};

use crate::chain::{Block, Genesis, Settings, Tx};
use crate::state::Change;

/// What the file begins with; the digit is the format's version.
const MAGIC: &[u8; 8] = b"VIVEVM1\n";
/// The log's name in its directory.
const NAME: &str = "chain.log";
/// Length and checksum before a record.
const HEAD: u64 = 8;
/// Bytes of a record: beyond any block that gas can pay for.
const RECORD_MAX: u32 = 1 << 30;
/// A log below this is never written anew.
const LONG_MIN: u64 = 64 << 20;
/// A log is written anew when it is so many times as long as after the last time.
const LONG_TIMES: u64 = 4;

/// A chain cannot be kept, or what was kept cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refuses.
    #[error("cannot {what} {path}: {error}; look at the disk's room and rights")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: std::io::Error,
    },
    /// Somebody else has it.
    #[error("{0} is in use by another process: stop that one, or choose another directory")]
    InUse(PathBuf),
    /// Another file.
    #[error("{0} is no chain of this version: choose another directory")]
    Format(PathBuf),
    /// A bit fell over: not the last record, which a crash may have cut.
    #[error("{path} is damaged at byte {at}: restore it from a copy, or delete it to begin anew")]
    Damaged {
        /// The log.
        path: PathBuf,
        /// Where.
        at: u64,
    },
    /// Records that are whole make no sense.
    #[error("the chain's log cannot be followed: {0}; was it written by another version?")]
    Content(String),
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// The chain begins (JSON of [`Genesis`]).
    Genesis(Bytes),
    /// A block was added.
    Block {
        /// RLP of the header.
        header: Bytes,
        /// Transactions with their senders.
        txs: Vec<Sent>,
        /// Receipts in their envelopes.
        receipts: Vec<Bytes>,
        /// What became of accounts.
        changes: Vec<Change>,
    },
    /// The owner changed accounts.
    Changes(Vec<Change>),
    /// The owner changed settings (JSON of [`Settings`]).
    Settings(Bytes),
    /// A snapshot was taken.
    Snapshot,
    /// A snapshot was used.
    Revert(u64),
    /// Back to the first block.
    Reset,
    /// A transaction waits for its block.
    Waiting(Sent),
    /// One does not any more, and is in none.
    Dropped(B256),
    /// The log was written anew: the state follows from nothing, and so do the snapshots' numbers.
    Fresh(u64),
}

/// A transaction and who sent it; the sender is not always who signed it (impersonation).
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct Sent {
    sender: Address,
    tx: Bytes,
}

impl Sent {
    fn new(tx: &Recovered<Tx>) -> Sent {
        Sent { sender: tx.signer(), tx: tx.encoded_2718().into() }
    }

    /// The transaction.
    pub fn read(&self) -> Result<Recovered<Tx>, StoreError> {
        let tx = Tx::decode_2718_exact(&self.tx).map_err(|error| StoreError::Content(error.to_string()))?;
        Ok(Recovered::new_unchecked(tx, self.sender))
    }
}

#[derive(RlpEncodable, RlpDecodable)]
struct BlockRecord {
    header: Bytes,
    txs: Vec<Sent>,
    receipts: Vec<Bytes>,
    changes: Vec<Change>,
}

impl Entry {
    /// The entry of a block.
    pub fn block(block: &Block, changes: &[Change]) -> Entry {
        Entry::Block {
            header: alloy_rlp::encode(block.header.inner()).into(),
            txs: block.txs.iter().map(|tx| Sent::new(tx)).collect(),
            receipts: block.receipts.iter().map(|receipt| receipt.encoded_2718().into()).collect(),
            changes: changes.to_vec(),
        }
    }

    /// The entry of a transaction that waits.
    pub fn waiting(tx: &Recovered<Tx>) -> Entry {
        Entry::Waiting(Sent::new(tx))
    }

    /// The entry of changes.
    pub fn changes(changes: &[Change]) -> Entry {
        Entry::Changes(changes.to_vec())
    }

    /// The entry of settings.
    pub fn settings(settings: &Settings) -> Entry {
        Entry::Settings(serde_json::to_vec(settings).unwrap_or_default().into())
    }

    /// The entry of a chain's begin.
    pub fn genesis(genesis: &Genesis) -> Entry {
        Entry::Genesis(serde_json::to_vec(genesis).unwrap_or_default().into())
    }

    /// The block of an entry.
    pub fn read_block(header: &Bytes, txs: &[Sent], receipts: &[Bytes]) -> Result<Block, StoreError> {
        let wrong = |error: &dyn std::fmt::Display| StoreError::Content(error.to_string());
        let header = Header::decode(&mut header.as_ref()).map_err(|error| wrong(&error))?.seal_slow();
        let txs = txs.iter().map(|sent| Ok(sent.read()?.into())).collect::<Result<_, StoreError>>()?;
        let receipts = receipts
            .iter()
            .map(|bytes| ReceiptEnvelope::decode_2718_exact(bytes).map_err(|error| wrong(&error)))
            .collect::<Result<_, _>>()?;
        Ok(Block { header, txs, receipts })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        let mut put = |tag: u8, content: &dyn Encodable| {
            out.push(tag);
            content.encode(&mut out);
        };
        match self {
            Entry::Genesis(text) => put(0, text),
            Entry::Block { header, txs, receipts, changes } => put(
                1,
                &BlockRecord {
                    header: header.clone(),
                    txs: txs.clone(),
                    receipts: receipts.clone(),
                    changes: changes.clone(),
                },
            ),
            Entry::Changes(changes) => put(2, changes),
            Entry::Settings(text) => put(3, text),
            Entry::Snapshot => put(4, &0_u8),
            Entry::Revert(id) => put(5, id),
            Entry::Reset => put(6, &0_u8),
            Entry::Fresh(id) => put(7, id),
            Entry::Waiting(sent) => put(8, sent),
            Entry::Dropped(hash) => put(9, hash),
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Entry, StoreError> {
        let (tag, mut rest) =
            bytes.split_first().ok_or_else(|| StoreError::Content("a record is empty".into()))?;
        let rest = &mut rest;
        let wrong = |error: alloy_rlp::Error| StoreError::Content(error.to_string());
        Ok(match tag {
            0 => Entry::Genesis(Bytes::decode(rest).map_err(wrong)?),
            1 => {
                let BlockRecord { header, txs, receipts, changes } =
                    BlockRecord::decode(rest).map_err(wrong)?;
                Entry::Block { header, txs, receipts, changes }
            }
            2 => Entry::Changes(Vec::decode(rest).map_err(wrong)?),
            3 => Entry::Settings(Bytes::decode(rest).map_err(wrong)?),
            4 => Entry::Snapshot,
            5 => Entry::Revert(u64::decode(rest).map_err(wrong)?),
            6 => Entry::Reset,
            7 => Entry::Fresh(u64::decode(rest).map_err(wrong)?),
            8 => Entry::Waiting(Sent::decode(rest).map_err(wrong)?),
            9 => Entry::Dropped(B256::decode(rest).map_err(wrong)?),
            tag => return Err(StoreError::Content(format!("a record of kind {tag}"))),
        })
    }
}

/// A log that is open for writing, and by nobody else.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    length: u64,
    /// How long it may become before it is written anew.
    long: u64,
    /// Whether something was written since the last sync.
    dirty: bool,
    /// A write failed halfway, and what is after it could not be read.
    torn: bool,
}

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> StoreError + use<'a> {
    move |error| StoreError::Io { what, path: path.to_path_buf(), error }
}

impl Store {
    /// Opens the log in `dir`, which is made if need be, and tells `follow` of each entry.
    pub fn open(
        dir: &Path,
        mut follow: impl FnMut(Entry) -> Result<(), StoreError>,
    ) -> Result<Store, StoreError> {
        std::fs::create_dir_all(dir).map_err(io("make", dir))?;
        let path = dir.join(NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open", &path))?;
        file.try_lock().map_err(|_| StoreError::InUse(path.clone()))?;
        let size = file.metadata().map_err(io("read", &path))?.len();
        let mut store = Store { path, file, length: 0, long: LONG_MIN, dirty: false, torn: false };
        let mut magic = [0; MAGIC.len()];
        if size < MAGIC.len() as u64 {
            store.begin()?;
            return Ok(store);
        }
        let mut reader = BufReader::with_capacity(1 << 20, &store.file);
        reader.read_exact(&mut magic).map_err(io("read", &store.path))?;
        if magic != *MAGIC {
            return Err(StoreError::Format(store.path));
        }
        let mut at = MAGIC.len() as u64;
        while let Some(bytes) = record(&mut reader, &store.path, at, size)? {
            follow(Entry::decode(&bytes)?)?;
            at += HEAD + bytes.len() as u64;
        }
        drop(reader);
        // What a crash left of the last record.
        store.file.set_len(at).map_err(io("cut", &store.path))?;
        store.file.seek(SeekFrom::End(0)).map_err(io("read", &store.path))?;
        store.length = at;
        store.long = LONG_MIN.max(at.saturating_mul(LONG_TIMES));
        Ok(store)
    }

    fn begin(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(io("cut", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(io("read", &self.path))?;
        self.file.write_all(MAGIC).map_err(io("write", &self.path))?;
        self.length = MAGIC.len() as u64;
        Ok(())
    }

    /// Adds an entry. When this returns, a kill of the process does not lose it.
    pub fn append(&mut self, entry: &Entry) -> Result<(), StoreError> {
        if self.torn {
            self.file.set_len(self.length).map_err(io("cut", &self.path))?;
            self.file.seek(SeekFrom::End(0)).map_err(io("read", &self.path))?;
            self.torn = false;
        }
        let content = entry.encode();
        let length = u32::try_from(content.len()).ok().filter(|length| *length <= RECORD_MAX);
        let length = length
            .ok_or_else(|| StoreError::Content(format!("a record of {} bytes is too long", content.len())))?;
        let mut bytes = Vec::with_capacity(content.len() + HEAD as usize);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
        bytes.extend_from_slice(&content);
        self.torn = true;
        self.file.write_all(&bytes).map_err(io("write", &self.path))?;
        self.torn = false;
        self.length += bytes.len() as u64;
        self.dirty = true;
        Ok(())
    }

    /// Brings everything to the disk itself.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        if std::mem::take(&mut self.dirty) {
            self.file.sync_data().map_err(io("sync", &self.path))?;
        }
        Ok(())
    }

    /// Whether the log should be written anew.
    pub fn is_long(&self) -> bool {
        self.length > self.long
    }

    /// Lets the log grow some more.
    pub fn grown(&mut self) {
        self.long = self.length.saturating_mul(2);
    }

    /// Replaces the log by what `write` writes: beside it, synced, and renamed over it.
    pub fn rewrite(
        &mut self,
        write: impl FnOnce(&mut Store) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let path = self.path.with_extension("new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(io("open", &path))?;
        file.try_lock().map_err(|_| StoreError::InUse(path.clone()))?;
        let mut new = Store { path: path.clone(), file, length: 0, long: LONG_MIN, dirty: true, torn: false };
        new.begin()?;
        write(&mut new)?;
        new.sync()?;
        std::fs::rename(&path, &self.path).map_err(io("rename", &path))?;
        if let Some(dir) = self.path.parent() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync", dir))?;
        }
        new.long = LONG_MIN.max(new.length.saturating_mul(LONG_TIMES));
        new.path = self.path.clone();
        *self = new;
        Ok(())
    }
}

/// The record at byte `at`; none at the end, or where a crash cut the last one.
fn record(reader: &mut impl Read, path: &Path, at: u64, size: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let left = size.saturating_sub(at);
    let mut head = [0; HEAD as usize];
    if left < HEAD {
        return Ok(None);
    }
    reader.read_exact(&mut head).map_err(io("read", path))?;
    let [a, b, c, d, e, f, g, h] = head;
    let (length, sum) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    let end = HEAD + u64::from(length);
    // A power cut may leave zeros where a record should be, and they may be many.
    if end > left || length == 0 {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    reader.read_exact(&mut bytes).map_err(io("read", path))?;
    match (crc32c::crc32c(&bytes) == sum, end == left) {
        (true, _) => Ok(Some(bytes)),
        (false, true) => Ok(None),
        (false, false) => Err(StoreError::Damaged { path: path.to_path_buf(), at }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        let change = Change { address: Address::repeat_byte(1), has_code: true, ..Change::default() };
        for entry in [
            Entry::Genesis(Bytes::from_static(b"{}")),
            Entry::Block {
                header: Bytes::from_static(b"header"),
                txs: vec![Sent { sender: Address::ZERO, tx: Bytes::new() }],
                receipts: vec![Bytes::from_static(b"receipt")],
                changes: vec![change.clone()],
            },
            Entry::Changes(vec![change]),
            Entry::Settings(Bytes::new()),
            Entry::Snapshot,
            Entry::Revert(u64::MAX),
            Entry::Reset,
            Entry::Fresh(7),
            Entry::Waiting(Sent { sender: Address::ZERO, tx: Bytes::from_static(b"tx") }),
            Entry::Dropped(B256::repeat_byte(1)),
        ] {
            assert_eq!(Entry::decode(&entry.encode()).expect("it was written so"), entry);
        }
        assert!(
            Entry::decode(&[]).is_err()
                && Entry::decode(&[99]).is_err()
                && Entry::decode(&[1, 0xc0]).is_err()
        );
    }
}
