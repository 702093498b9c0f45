//! Arithmetic by the host's own instructions, so that results and flags are the hardware's.
//!
//! Each function runs one instruction with the guest's values and returns the result with the flag word
//! (see [`super::flags`]). None touches memory.
#![allow(unsafe_code)]

use super::flags::{Flags, bit};
use std::arch::asm;
use std::sync::LazyLock;

/// An operand size: `u8`, `u16`, `u32` or `u64`.
pub(crate) trait Width: Copy + Eq + 'static {
    const BYTES: u64;
    const BITS: u32;
    fn of(value: u64) -> Self;
    fn wide(self) -> u64;
    /// Sign-extended.
    fn signed(self) -> i64;
    fn alu<A: Alu>(a: Self, b: Self, flags: Flags) -> (Self, Flags);
    fn unary<U: Unary>(a: Self, flags: Flags) -> (Self, Flags);
    fn shift<S: Shift>(a: Self, count: u8, flags: Flags) -> (Self, Flags);
}

macro_rules! width {
    ($t:ty, $s:ty, $f:ident) => {
        impl Width for $t {
            const BYTES: u64 = size_of::<$t>() as u64;
            const BITS: u32 = <$t>::BITS;
            #[inline(always)]
            fn of(value: u64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn wide(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn signed(self) -> i64 {
                i64::from(self as $s)
            }
            #[inline(always)]
            fn alu<A: Alu>(a: Self, b: Self, flags: Flags) -> (Self, Flags) {
                A::$f(a, b, flags)
            }
            #[inline(always)]
            fn unary<U: Unary>(a: Self, flags: Flags) -> (Self, Flags) {
                U::$f(a, flags)
            }
            #[inline(always)]
            fn shift<S: Shift>(a: Self, count: u8, flags: Flags) -> (Self, Flags) {
                S::$f(a, count, flags)
            }
        }
    };
}
width!(u8, i8, b);
width!(u16, i16, w);
width!(u32, i32, d);
width!(u64, i64, q);

/// A two-operand instruction of the ADD group.
pub(crate) trait Alu {
    /// Whether the result is written back (not for CMP and TEST).
    const WRITES: bool;
    fn b(a: u8, b: u8, flags: Flags) -> (u8, Flags);
    fn w(a: u16, b: u16, flags: Flags) -> (u16, Flags);
    fn d(a: u32, b: u32, flags: Flags) -> (u32, Flags);
    fn q(a: u64, b: u64, flags: Flags) -> (u64, Flags);
}

macro_rules! alu_fn {
    ($f:ident, $t:ty, $class:ident, $r:literal, $ins:literal) => {
        #[inline(always)]
        fn $f(a: $t, b: $t, _flags: Flags) -> ($t, Flags) {
            let (mut x, mut ax): ($t, u16);
            x = a;
            // SAFETY: register arithmetic only.
            unsafe {
                asm!(concat!($ins, " {x", $r, "}, {b", $r, "}"), "lahf", "seto al",
                    x = inout($class) x, b = in($class) b, out("ax") ax, options(nomem, nostack, pure));
            }
            (x, ax)
        }
    };
    (carry $f:ident, $t:ty, $class:ident, $r:literal, $ins:literal) => {
        #[inline(always)]
        fn $f(a: $t, b: $t, flags: Flags) -> ($t, Flags) {
            let (mut x, mut ax): ($t, u16);
            x = a;
            // SAFETY: register arithmetic only. AH's bit 0 is CF: SAHF loads it.
            unsafe {
                asm!("sahf", concat!($ins, " {x", $r, "}, {b", $r, "}"), "lahf", "seto al",
                    x = inout($class) x, b = in($class) b, inout("ax") flags => ax, options(nomem, nostack, pure));
            }
            (x, ax)
        }
    };
}

macro_rules! alu {
    ($($name:ident $ins:literal $writes:literal $($carry:ident)?;)*) => {$(
        pub(crate) struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            alu_fn!($($carry)? b, u8, reg_byte, "", $ins);
            alu_fn!($($carry)? w, u16, reg, ":x", $ins);
            alu_fn!($($carry)? d, u32, reg, ":e", $ins);
            alu_fn!($($carry)? q, u64, reg, ":r", $ins);
        }
    )*};
}
alu! {
    Add "add" true; Or "or" true; Adc "adc" true carry; Sbb "sbb" true carry;
    And "and" true; Sub "sub" true; Xor "xor" true; Cmp "cmp" false; Test "test" false;
}

/// A one-operand instruction.
pub(crate) trait Unary {
    fn b(a: u8, flags: Flags) -> (u8, Flags);
    fn w(a: u16, flags: Flags) -> (u16, Flags);
    fn d(a: u32, flags: Flags) -> (u32, Flags);
    fn q(a: u64, flags: Flags) -> (u64, Flags);
}

macro_rules! unary_fn {
    ($f:ident, $t:ty, $class:ident, $r:literal, $ins:literal) => {
        #[inline(always)]
        fn $f(a: $t, flags: Flags) -> ($t, Flags) {
            let (mut x, mut ax): ($t, u16);
            x = a;
            // SAFETY: register arithmetic only; SAHF lets CF pass through INC and DEC.
            unsafe {
                asm!("sahf", concat!($ins, " {x", $r, "}"), "lahf", "seto al",
                    x = inout($class) x, inout("ax") flags => ax, options(nomem, nostack, pure));
            }
            (x, ax)
        }
    };
}
macro_rules! unary {
    ($($name:ident $ins:literal;)*) => {$(
        pub(crate) struct $name;
        impl Unary for $name {
            unary_fn!(b, u8, reg_byte, "", $ins);
            unary_fn!(w, u16, reg, ":x", $ins);
            unary_fn!(d, u32, reg, ":e", $ins);
            unary_fn!(q, u64, reg, ":r", $ins);
        }
    )*};
}
unary! { Inc "inc"; Dec "dec"; Neg "neg"; }

/// NOT changes no flags.
pub(crate) struct Not;
impl Unary for Not {
    #[inline(always)]
    fn b(a: u8, flags: Flags) -> (u8, Flags) {
        (!a, flags)
    }
    #[inline(always)]
    fn w(a: u16, flags: Flags) -> (u16, Flags) {
        (!a, flags)
    }
    #[inline(always)]
    fn d(a: u32, flags: Flags) -> (u32, Flags) {
        (!a, flags)
    }
    #[inline(always)]
    fn q(a: u64, flags: Flags) -> (u64, Flags) {
        (!a, flags)
    }
}

/// A shift or rotate by a count in CL.
pub(crate) trait Shift {
    fn b(a: u8, count: u8, flags: Flags) -> (u8, Flags);
    fn w(a: u16, count: u8, flags: Flags) -> (u16, Flags);
    fn d(a: u32, count: u8, flags: Flags) -> (u32, Flags);
    fn q(a: u64, count: u8, flags: Flags) -> (u64, Flags);
}

/// Loads all six status flags: SAHF has no OF, so `add al, 127` makes it from bit 0 first.
macro_rules! shift_fn {
    ($f:ident, $t:ty, $class:ident, $r:literal, $ins:literal) => {
        #[inline(always)]
        fn $f(a: $t, count: u8, flags: Flags) -> ($t, Flags) {
            let (mut x, mut ax): ($t, u16);
            x = a;
            // SAFETY: register arithmetic only. With count 0 all flags, OF too, must pass through.
            unsafe {
                asm!("and al, 1", "add al, 127", "sahf", concat!($ins, " {x", $r, "}, cl"), "lahf", "seto al",
                    x = inout($class) x, in("cl") count, inout("ax") flags => ax, options(nomem, nostack, pure));
            }
            (x, ax)
        }
    };
}
macro_rules! shift {
    ($($name:ident $ins:literal;)*) => {$(
        pub(crate) struct $name;
        impl Shift for $name {
            shift_fn!(b, u8, reg_byte, "", $ins);
            shift_fn!(w, u16, reg, ":x", $ins);
            shift_fn!(d, u32, reg, ":e", $ins);
            shift_fn!(q, u64, reg, ":r", $ins);
        }
    )*};
}
shift! { Rol "rol"; Ror "ror"; Rcl "rcl"; Rcr "rcr"; Shl "shl"; Shr "shr"; Sar "sar"; }

/// Whether this host's ROL and ROR of a register by a fixed count leave OF alone where it is undefined, that is for counts above 1 (SDM vol. 2):
/// Intel's do, but not of memory, nor by CL.
pub(crate) fn fixed_rotates_keep_of() -> bool {
    static KEEP: LazyLock<bool> = LazyLock::new(|| {
        let kept: u8;
        // SAFETY: register arithmetic only. OF is set first; what is rotated would clear it.
        unsafe {
            asm!("mov al, 127", "add al, 1", "mov cl, 0", "rol cl, 2", "seto al", out("al") kept, out("cl") _,
                options(nomem, nostack));
        }
        kept != 0
    });
    *KEEP
}

macro_rules! double_shift {
    ($name:ident, $t:ty, $r:literal, $ins:literal) => {
        #[inline(always)]
        pub(crate) fn $name(a: $t, b: $t, count: u8, flags: Flags) -> ($t, Flags) {
            let (mut x, mut ax): ($t, u16);
            x = a;
            // SAFETY: register arithmetic only.
            unsafe {
                asm!("and al, 1", "add al, 127", "sahf", concat!($ins, " {x", $r, "}, {b", $r, "}, cl"), "lahf", "seto al",
                    x = inout(reg) x, b = in(reg) b, in("cl") count, inout("ax") flags => ax,
                    options(nomem, nostack, pure));
            }
            (x, ax)
        }
    };
}
double_shift!(shld16, u16, ":x", "shld");
double_shift!(shld32, u32, ":e", "shld");
double_shift!(shld64, u64, ":r", "shld");
double_shift!(shrd16, u16, ":x", "shrd");
double_shift!(shrd32, u32, ":e", "shrd");
double_shift!(shrd64, u64, ":r", "shrd");

macro_rules! multiply {
    ($name:ident, $t:ty, $r:literal, $ins:literal) => {
        #[inline(always)]
        pub(crate) fn $name(a: $t, b: $t, flags: Flags) -> ($t, Flags) {
            let (mut x, mut ax): ($t, u16);
            x = a;
            // SAFETY: register arithmetic only.
            unsafe {
                asm!("and al, 1", "add al, 127", "sahf", concat!($ins, " {x", $r, "}, {b", $r, "}"), "lahf", "seto al",
                    x = inout(reg) x, b = in(reg) b, inout("ax") flags => ax, options(nomem, nostack, pure));
            }
            (x, ax)
        }
    };
}
multiply!(imul16, u16, ":x", "imul");
multiply!(imul32, u32, ":e", "imul");
multiply!(imul64, u64, ":r", "imul");

macro_rules! wide_multiply {
    ($name:ident, $t:ty, $a:tt, $d:tt, $r:literal, $ins:literal) => {
        /// (low, high, flags)
        #[inline(always)]
        pub(crate) fn $name(a: $t, b: $t) -> ($t, $t, Flags) {
            let (low, high): ($t, $t);
            let mut fl: u64;
            // SAFETY: register arithmetic only; the stack is used for one word below RSP.
            unsafe {
                asm!(concat!($ins, " {b", $r, "}"), "pushfq", "pop {f}",
                    b = in(reg) b, f = out(reg) fl, inout($a) a => low, out($d) high);
            }
            fl &= viv_arch::x86::rflags::STATUS;
            (low, high, super::flags::from_rflags(fl))
        }
    };
}
wide_multiply!(mul16, u16, "ax", "dx", ":x", "mul");
wide_multiply!(mul32, u32, "eax", "edx", ":e", "mul");
wide_multiply!(mul64, u64, "rax", "rdx", ":r", "mul");
wide_multiply!(wide_imul16, u16, "ax", "dx", ":x", "imul");
wide_multiply!(wide_imul32, u32, "eax", "edx", ":e", "imul");
wide_multiply!(wide_imul64, u64, "rax", "rdx", ":r", "imul");

macro_rules! byte_multiply {
    ($name:ident, $ins:literal) => {
        #[inline(always)]
        pub(crate) fn $name(a: u8, b: u8) -> (u16, Flags) {
            let ax: u16;
            let fl: u64;
            // SAFETY: register arithmetic only; the stack is used for one word below RSP.
            unsafe {
                asm!(concat!($ins, " {b}"), "pushfq", "pop {f}",
                    b = in(reg_byte) b, f = out(reg) fl, inout("ax") u16::from(a) => ax);
            }
            (ax, super::flags::from_rflags(fl & viv_arch::x86::rflags::STATUS))
        }
    };
}
byte_multiply!(mul8, "mul");
byte_multiply!(wide_imul8, "imul");

macro_rules! divide {
    ($name:ident, $t:ty, $wide:ty, $unsigned:ty) => {
        /// (quotient, remainder), or `None` for #DE. The flags are undefined and stay.
        #[inline(always)]
        pub(crate) fn $name(
            high: $unsigned,
            low: $unsigned,
            divisor: $unsigned,
        ) -> Option<($unsigned, $unsigned)> {
            if divisor == 0 {
                return None;
            }
            let bits = <$unsigned>::BITS;
            let dividend = ((high as u128) << bits | low as u128) as $wide;
            let divisor = divisor as $t as $wide;
            let quotient = dividend.checked_div(divisor)?;
            let narrow = <$t>::try_from(quotient).ok()?;
            Some((narrow as $unsigned, dividend.wrapping_rem(divisor) as $unsigned))
        }
    };
}
divide!(div8, u8, u16, u8);
divide!(div16, u16, u32, u16);
divide!(div32, u32, u64, u32);
divide!(div64, u64, u128, u64);
divide!(idiv8, i8, i16, u8);
divide!(idiv16, i16, i32, u16);
divide!(idiv32, i32, i64, u32);
divide!(idiv64, i64, i128, u64);

/// CRC32 of SSE4.2 (SDM vol. 2), bit by bit over `bytes` bytes of `data`.
pub(crate) fn crc32c(crc: u32, data: u64, bytes: u64) -> u32 {
    let mut crc = crc;
    for byte in data.to_le_bytes().iter().take(bytes as usize) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    crc
}

/// Flags of a POPCNT result: all cleared but ZF.
pub(crate) fn zero_only(result: u64) -> Flags {
    if result == 0 { bit::ZF } else { 0 }
}

/// Atomic compare-and-exchange in guest memory, at any alignment: `Err` has the value found.
///
/// # Safety
/// `host` is mapped and writable for the operand's size.
pub(crate) unsafe fn compare_exchange<W: Width>(host: *mut W, old: W, new: W) -> Result<(), W> {
    let expected = old.wide();
    let new = new.wide();
    // SAFETY: the caller's promise; LOCK CMPXCHG works at any alignment.
    let found = unsafe {
        match W::BYTES {
            1 => {
                let mut al = expected as u8;
                asm!("lock cmpxchg byte ptr [{p}], {n}", p = in(reg) host, n = in(reg_byte) new as u8, inout("al") al, options(nostack));
                u64::from(al)
            }
            2 => {
                let mut ax = expected as u16;
                asm!("lock cmpxchg word ptr [{p}], {n:x}", p = in(reg) host, n = in(reg) new as u16, inout("ax") ax, options(nostack));
                u64::from(ax)
            }
            4 => {
                let mut eax = expected as u32;
                asm!("lock cmpxchg dword ptr [{p}], {n:e}", p = in(reg) host, n = in(reg) new as u32, inout("eax") eax, options(nostack));
                u64::from(eax)
            }
            _ => {
                let mut rax = expected;
                asm!("lock cmpxchg qword ptr [{p}], {n}", p = in(reg) host, n = in(reg) new, inout("rax") rax, options(nostack));
                rax
            }
        }
    };
    if found == expected { Ok(()) } else { Err(W::of(found)) }
}

/// LOCK CMPXCHG16B in guest memory: the value found.
///
/// # Safety
/// `host` is mapped, writable for 16 bytes and aligned to 16.
pub(crate) unsafe fn compare_exchange_16(host: *mut u8, old: (u64, u64), new: (u64, u64)) -> (u64, u64) {
    let (mut low, mut high) = old;
    // SAFETY: the caller's promise. RBX belongs to the compiler: it is swapped in and out. The address has a
    // register of its own, since the compiler's choice for it could be RBX.
    unsafe {
        asm!("xchg rbx, {b}", "lock cmpxchg16b xmmword ptr [rdi]", "xchg rbx, {b}",
            in("rdi") host, b = inout(reg) new.0 => _, in("rcx") new.1, inout("rax") low, inout("rdx") high,
            options(nostack));
    }
    (low, high)
}
