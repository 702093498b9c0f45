//! Instructions that translated code gives to the interpreter, by number.

use super::super::block::INSTRUCTION_MAX;
use super::super::cpu::Mode;
use super::super::decode::decode;
use super::super::fpu::FpOp;
use super::super::op::Op;
use super::super::reader::Reader;
use iced_x86::Instruction;
use std::collections::HashMap;

/// Instructions of all regions.
#[derive(Default)]
pub(super) struct Ops {
    /// Those of code that was translated in another process.
    taken: HashMap<u32, Given>,
    /// The first number of the others.
    first: u32,
    given: Vec<Given>,
}

/// An instruction, and how the interpreter executes it once it was asked to.
pub(super) struct Given {
    pub(super) page: u32,
    /// Where it begins in its page.
    pub(super) offset: u16,
    len: u8,
    bytes: [u8; INSTRUCTION_MAX],
    /// Boxes: the interpreter holds a pointer while it may make others.
    decoded: Option<(Box<Op>, Option<Box<FpOp>>)>,
}

impl Given {
    /// `None`: no instruction is that long.
    pub(super) fn of_bytes(page: u32, offset: u16, of: &[u8]) -> Option<Given> {
        let mut bytes = [0; INSTRUCTION_MAX];
        bytes.get_mut(..of.len())?.copy_from_slice(of);
        Some(Given { page, offset, len: of.len() as u8, bytes, decoded: None })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    fn decode(&mut self, x: &Instruction) -> &Op {
        let mut decoded = decode(x, Mode::Code64);
        let unit = decoded.fp.take().map(Box::new);
        if let Some(unit) = &unit {
            decoded.op.imm = std::ptr::from_ref::<FpOp>(unit) as u64;
        }
        &self.decoded.insert((Box::new(decoded.op), unit)).0
    }

    #[cold]
    fn decode_again(&mut self) -> Option<*const Op> {
        let x = Reader::new(64, self.bytes(), self.offset.into()).next()?;
        Some(std::ptr::from_ref(self.decode(&x)))
    }
}

impl Ops {
    /// None yet, and the next has this number.
    pub(super) fn from(first: u32) -> Ops {
        Ops { first, ..Ops::default() }
    }

    /// The number of an instruction of a page, whose IP is its offset there.
    pub(super) fn keep(&mut self, page: u32, x: &Instruction, bytes: &[u8]) -> u32 {
        let number = self.next();
        // What was decoded is no longer than any.
        if let Some(mut given) = Given::of_bytes(page, x.ip() as u16, bytes) {
            given.decode(x);
            self.given.push(given);
        }
        number
    }

    /// An instruction of another process.
    pub(super) fn take(&mut self, number: u32, given: Given) {
        self.taken.insert(number, given);
    }

    /// The number of the next one.
    pub(super) fn next(&self) -> u32 {
        self.first.wrapping_add(self.given.len() as u32)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Given)> {
        let numbers = (0u32..).map(|number| self.first.wrapping_add(number));
        self.taken.iter().map(|(number, given)| (*number, given)).chain(numbers.zip(&self.given))
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Given> {
        match number.checked_sub(self.first) {
            Some(number) => self.given.get_mut(number as usize),
            None => self.taken.get_mut(&number),
        }
    }

    /// How to execute it. The pointer is good until all are dropped.
    #[inline(always)]
    pub(super) fn op(&mut self, number: u32) -> Option<*const Op> {
        let given = self.get_mut(number)?;
        match &given.decoded {
            Some((op, _)) => Some(std::ptr::from_ref(&**op)),
            None => given.decode_again(),
        }
    }
}
