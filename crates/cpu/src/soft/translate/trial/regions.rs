//! Any bytes as guest code: what the block finder makes of them, and the host code that becomes of that.

use super::super::super::reader::Reader;
use super::super::super::{Shared, SoftCpu};
use super::super::region::{self, BLOCKS_MAX, Block, INSTRUCTIONS_MAX, Region};
use super::super::{Lookups, Translator};
use super::Choices;
use crate::Vcpu;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind};
use std::cell::RefCell;
use std::collections::BTreeSet;
use viv_arch::x86::{CpuState, Segment, cr0, cr4, efer};
use viv_mem::{Gpa, GuestMemory, PAGE_SIZE};

/// The page of the code, and the entry that maps the one behind it.
const PAGE: u64 = 0x8000;
const NEXT_ENTRY: u64 = 0x4000 + 8 * 9;

thread_local! {
    /// One guest for all trials: making it takes longer than they do.
    static GUEST: RefCell<(GuestMemory, SoftCpu)> = RefCell::new(guest());
}

/// A vCPU in 64-bit mode with the first pages mapped.
fn guest() -> (GuestMemory, SoftCpu) {
    let memory = GuestMemory::new(&[(Gpa(0), 64 << 10)]).expect("guest memory");
    let put =
        |at: u64, value: u64| memory.write(Gpa(at), &value.to_le_bytes()).expect("the tables are in RAM");
    for (at, entry) in [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003)] {
        put(at, entry);
    }
    for page in 0..16 {
        put(0x4000 + 8 * page, page << 12 | 3);
    }
    let cpu = SoftCpu::new(0, Shared::new(&memory, 1));
    (memory, cpu)
}

fn state(rip: u64, units: bool) -> CpuState {
    let segment = |selector, rights| Segment { selector, base: 0, limit: u32::MAX, rights };
    let mut state = CpuState {
        rip,
        cr0: cr0::PE | cr0::PG | cr0::ET | cr0::NE,
        cr3: 0x1000,
        cr4: cr4::PAE | if units { cr4::OSFXSR } else { 0 },
        efer: efer::LME | efer::LMA,
        segments: [segment(0x10, 0xc093); 6],
        ..CpuState::default()
    };
    state.segments[1] = segment(8, 0xa09b);
    state
}

/// Finds the region around an address in code that `bytes` choose, and translates it.
pub fn find_region(bytes: &[u8]) {
    GUEST.with_borrow_mut(|(memory, cpu)| trial(&mut Choices(bytes), memory, cpu));
}

fn trial(choices: &mut Choices<'_>, memory: &GuestMemory, soft: &mut SoftCpu) {
    let start = choices.u16() & 0xfff;
    let longest = match choices.u8() {
        0..128 => INSTRUCTIONS_MAX,
        few => 1 + usize::from(few) % 40,
    };
    let (cold, next_there, units, single) = (choices.u8(), choices.flag(), choices.flag(), choices.flag());
    let from = choices.u16() & 0xfff;
    let filler = choices.u8();
    let code = write_code(choices.0, from, filler, memory);
    let entry: u64 = if next_there { 0x9003 } else { 0 };
    memory.write(Gpa(NEXT_ENTRY), &entry.to_le_bytes()).expect("the tables are in RAM");
    soft.load(&state(PAGE + u64::from(start), units)).expect("a state that the software CPU takes");
    let warm = |offset: u16| cold == 0 || !offset.is_multiple_of(u16::from(cold));
    let page = (PAGE / PAGE_SIZE) as u32;
    let rip = PAGE + u64::from(start);
    if let Some(region) = region::find(&mut soft.cpu, page, rip, longest, warm) {
        let promises = Promises { region: &region, code: &code, start, longest, next_there };
        promises.hold(&warm);
        noticed(&region, memory, choices.u8());
    }
    write_code(choices.0, from, filler, memory);
    translated(soft, page, rip, longest, single);
}

/// The code's page and the one behind it: the bytes from an offset on, the rest all the same.
fn write_code(bytes: &[u8], from: u16, filler: u8, memory: &GuestMemory) -> Vec<u8> {
    let mut code = vec![filler; 2 * PAGE_SIZE as usize];
    for (to, from) in code.iter_mut().skip(from.into()).zip(bytes) {
        *to = *from;
    }
    memory.write(Gpa(PAGE), &code).expect("the code is in RAM");
    code
}

struct Promises<'a> {
    region: &'a Region,
    code: &'a [u8],
    start: u16,
    longest: usize,
    next_there: bool,
}

/// Where a jump of the block leads, if it is a direct one.
fn jump(block: &Block) -> Option<u16> {
    let x = block.code.last()?;
    let direct =
        matches!(x.flow_control(), FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch);
    let to = region::target(x).filter(|_| direct)?;
    u16::try_from(to).ok().filter(|to| u64::from(*to) < PAGE_SIZE)
}

impl Promises<'_> {
    fn hold(&self, warm: &dyn Fn(u16) -> bool) {
        let region = self.region;
        assert!(region.instructions() <= self.longest && region.blocks.len() <= 2 * BLOCKS_MAX);
        assert!(region.blocks.windows(2).all(|pair| pair[0].start < pair[1].start), "in order, each once");
        assert!(region.blocks.iter().any(|block| block.start == self.start), "the way in");
        let mut seen = BTreeSet::new();
        for block in &region.blocks {
            let falls = region.blocks.iter().any(|from| from.next == Some(block.start));
            let executed = block.start == self.start || falls || warm(block.start);
            assert!(executed, "{:#x} was not executed", block.start);
            self.block(block, &mut seen);
        }
    }

    fn block(&self, block: &Block, seen: &mut BTreeSet<u64>) {
        let mut at = u64::from(block.start);
        for (n, x) in block.code.iter().enumerate() {
            assert_eq!(x.ip(), at, "without a gap");
            assert!(seen.insert(at), "{at:#x} stands there twice");
            at += x.len() as u64;
            assert!(at <= PAGE_SIZE, "{x} at {:#x} ends in another page", x.ip());
            let read = self.decoded(x.ip(), &self.code[..PAGE_SIZE as usize]);
            assert!(read.is_some_and(|read| read == *x && read.len() == x.len()), "{x} is not what is there");
            let last = n + 1 == block.code.len();
            assert!(last || x.flow_control() == FlowControl::Next, "{x} in the middle of a block");
        }
        let goes_on = block
            .code
            .last()
            .is_none_or(|x| matches!(x.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch));
        assert_eq!(block.next.map(u64::from), goes_on.then_some(at));
        if let Some(across) = &block.across {
            let x = &across.instruction;
            assert!(self.next_there, "the next page is not there");
            assert_eq!(x.ip(), at, "behind the block");
            assert!(x.ip() < PAGE_SIZE && x.ip() + x.len() as u64 > PAGE_SIZE, "{x} does not lie across");
            assert!(
                self.decoded(x.ip(), self.code).is_some_and(|read| read == *x),
                "{x} is not what is there"
            );
            assert_eq!(across.bytes[..x.len()], self.code[x.ip() as usize..][..x.len()]);
        }
        assert!(!block.code.is_empty() || block.across.is_some(), "an empty block");
        self.joined(block);
    }

    fn decoded(&self, at: u64, code: &[u8]) -> Option<Instruction> {
        Reader::new(64, &code[at as usize..], at).next().filter(|x| !x.is_invalid())
    }

    /// Where flows join, nothing is known: everywhere but where exactly one leads, from a block before. One that turns
    /// leads to itself in a way of its own, and twice to what follows.
    fn joined(&self, block: &Block) {
        let itself = |from: &Block| {
            jump(from) == Some(from.start) && from.code.last().is_some_and(Instruction::is_jcc_short_or_near)
        };
        assert_eq!(block.turns, itself(block));
        let ways: Vec<u16> = self
            .region
            .blocks
            .iter()
            .flat_map(|from| {
                let jump = if itself(from) { from.next } else { jump(from) };
                [jump, from.next].map(|to| (from.start, to))
            })
            .filter(|(_, to)| *to == Some(block.start))
            .map(|(from, _)| from)
            .collect();
        if !block.joins {
            assert!(block.start != self.start && ways.len() == 1 && ways[0] < block.start, "{ways:?}");
        }
        assert_eq!(block.loops, ways.iter().any(|from| *from >= block.start));
    }
}

/// A write into the region is noticed, by its version or by its bytes.
fn noticed(region: &Region, memory: &GuestMemory, choice: u8) {
    assert_eq!(region.mark(memory), 0, "nobody writes unseen");
    assert!(region.still_true(memory));
    let all: Vec<&Instruction> = region.blocks.iter().flat_map(|block| &block.code).collect();
    if let Some(x) = all.get(usize::from(choice) % all.len().max(1)) {
        let at = Gpa(PAGE + x.ip() + x.len() as u64 - 1);
        let byte = memory.read_array::<1>(at).map_or(0, |byte| byte[0]);
        memory.write(at, &[!byte]).expect("the code is in RAM");
        assert!(!region.still_true(memory), "a write into {x} stays unseen");
        memory.write(at, &[byte]).expect("the code is in RAM");
    }
}

/// The translation is nothing but known instructions, and stays where it is.
fn translated(soft: &mut SoftCpu, page: u32, rip: u64, longest: usize, single: bool) {
    let SoftCpu { cpu, blocks, translator, .. } = soft;
    let (Some(translator), Some(context)) = (translator, cpu.context()) else { return };
    translator.translate_at_once(longest);
    let lookups = if single { Lookups::Single } else { Lookups::Grouped };
    let version = cpu.shared.memory.code().version(page);
    let Some(entry) = translator.translate(cpu, blocks, page, rip, context, lookups) else { return };
    assert_eq!(entry.version, version);
    host_code(translator, entry.guarded);
}

/// The host code that was made last, at `start`.
fn host_code(translator: &Translator, start: u64) {
    let code = &translator.scratch;
    let end = start + code.len() as u64;
    let (mut places, mut targets) = (BTreeSet::new(), Vec::new());
    for x in Decoder::with_ip(64, code, start, DecoderOptions::NONE).iter() {
        assert!(!x.is_invalid(), "no instruction at {:#x}: {code:02x?}", x.ip());
        let asks = x.is_privileged()
            || matches!(x.code(), Code::Syscall | Code::Sysenter)
            || matches!(x.flow_control(), FlowControl::Interrupt | FlowControl::Exception);
        assert!(!asks, "{x} leaves for the host's kernel");
        places.insert(x.ip());
        if x.op0_kind() == OpKind::NearBranch64 {
            targets.push((x, x.near_branch_target()));
        }
    }
    let memory = translator.memory.start()..start;
    for (x, to) in targets {
        // Into itself on the boundary of an instruction, or to what was made before.
        assert!(places.contains(&to) || memory.contains(&to), "{x} of {start:#x}..{end:#x} leads elsewhere");
    }
}
