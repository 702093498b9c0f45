//! What CPUID promises, MSRs, and the exceptions of the floating-point units (SDM vol. 1 ch. 8, 11, 13; APM vol. 3 app. E).
use crate::guest::{Asm, Done, Guest, kvm_offers, on_kvm};
use crate::image::TEST;
use iced_x86::code_asm::*;

fn bits(a: &mut Asm, cr: AsmRegisterCr, set: u32, clear: u32) -> Done {
    a.mov(rax, cr)?;
    a.or(eax, set as i32)?;
    a.and(rax, !(clear as i64) as i32)?;
    a.mov(cr, rax)
}

#[test]
fn floating_point_units_trap_as_cr0_and_cr4_say() {
    let mut g = Guest::long("units");
    g.stays_in_lab("TCG lets reserved bits into MXCSR, which KVM refuses to load");
    g.probe("x87 with CR0.TS", &["#NM @"], |a| {
        bits(a, cr0, 8, 0)?;
        a.at("")?;
        a.fld1()
    });
    g.probe("SSE with CR0.TS", &["#NM @"], |a| {
        a.at("")?;
        a.movups(xmm0, xmm1)
    });
    g.probe("WAIT with MP and TS", &["#NM @"], |a| {
        a.at("")?;
        a.wait()
    });
    g.probe("MFENCE, PREFETCH and LDMXCSR's rules: fences do not care", &[], |a| {
        a.mfence()?;
        a.lfence()?;
        a.sfence()?;
        a.prefetcht0(byte_ptr(TEST))
    });
    g.probe("x87 with CR0.EM", &["#NM @"], |a| {
        a.clts()?;
        bits(a, cr0, 4, 0)?;
        a.at("")?;
        a.fld1()
    });
    g.probe("SSE with CR0.EM", &["#UD @"], |a| {
        a.at("")?;
        a.addps(xmm0, xmm1)
    });
    g.probe("MMX with CR0.EM", &["#UD @"], |a| {
        a.at("")?;
        a.emms()
    });
    g.probe("SSE without OSFXSR", &["#UD @"], |a| {
        bits(a, cr0, 0, 4)?;
        bits(a, cr4, 0, 1 << 9)?;
        a.at("")?;
        a.addps(xmm0, xmm1)
    });
    g.probe("an x87 exception waits for the next x87 instruction: #MF", &["#MF @"], |a| {
        bits(a, cr4, 1 << 9, 0)?;
        a.fninit()?;
        a.mov(word_ptr(TEST), 0x37b)?;
        a.fldcw(word_ptr(TEST))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.nop()?;
        a.at("")?;
        a.fld1()
    });
    g.probe("WAIT takes it, too", &["#MF @"], |a| {
        a.at("")?;
        a.wait()
    });
    g.probe("FNINIT does not", &[], |a| {
        a.fninit()?;
        a.wait()
    });
    g.probe("an unmasked SIMD exception: #XM", &["#XM @"], |a| {
        a.mov(dword_ptr(TEST), 0x1d80)?;
        a.ldmxcsr(dword_ptr(TEST))?;
        a.xorps(xmm0, xmm0)?;
        a.mov(eax, 1)?;
        a.cvtsi2ss(xmm1, eax)?;
        a.at("")?;
        a.divss(xmm1, xmm0)
    });
    g.probe("without OSXMMEXCPT it is #UD", &["#UD @"], |a| {
        bits(a, cr4, 0, 1 << 10)?;
        a.at("")?;
        a.divss(xmm1, xmm0)
    });
    g.probe("reserved bits of MXCSR", &["#GP(0) @"], |a| {
        bits(a, cr4, 1 << 10, 0)?;
        a.mov(dword_ptr(TEST), 0x1_1f80)?;
        a.at("")?;
        a.ldmxcsr(dword_ptr(TEST))
    });
    g.probe("MXCSR keeps its flags", &["=1fa4"], |a| {
        a.mov(dword_ptr(TEST), 0x1fa4)?;
        a.ldmxcsr(dword_ptr(TEST))?;
        a.stmxcsr(dword_ptr(TEST + 8))?;
        a.mov(eax, dword_ptr(TEST + 8))?;
        a.show32(eax)
    });
    g.probe("FXSAVE to an odd address", &["#GP(0) @"], |a| {
        a.mov(rbx, TEST + 8)?;
        a.at("")?;
        a.fxsave64(ptr(rbx))
    });
    g.probe("FXRSTOR with a bad MXCSR", &["#GP(0) @"], |a| {
        a.mov(rbx, TEST)?;
        a.fxsave64(ptr(rbx))?;
        a.mov(dword_ptr(rbx + 24), 0x1_1f80)?;
        a.at("")?;
        a.fxrstor64(ptr(rbx))
    });
    g.not_in_lab("TCG has no #AC");
    g.probe("#AC in ring 3 with AM and AC", &["#AC(0) @ cs=2b"], |a| {
        bits(a, cr0, 1 << 18, 0)?;
        a.user(0x4_0000)?;
        a.mov(rbx, TEST + 0x2001)?;
        a.at("")?;
        a.mov(eax, dword_ptr(rbx))
    });
    g.not_in_lab("TCG has no #AC");
    g.probe("#AC of an 8-byte access at 4", &["#AC(0) @ cs=2b"], |a| {
        a.user(0x4_0000)?;
        a.mov(rbx, TEST + 0x2004)?;
        a.at("")?;
        a.mov(rax, qword_ptr(rbx))
    });
    g.probe("not in ring 0", &[], |a| {
        a.push(0x4_0002)?;
        a.popfq()?;
        a.mov(rbx, TEST + 1)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.push(2)?;
        a.popfq()
    });
    g.probe("not without AC", &["int80 @end cs=2b"], |a| {
        a.user(0)?;
        a.mov(rbx, TEST + 0x2001)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.int(0x80)
    });
    g.in_lab_at("MMX with CR0.EM", &[], "TCG does not check it");
    g.in_lab_at(
        "an x87 exception waits for the next x87 instruction: #MF",
        &[],
        "TCG looks for it in WAIT only",
    );
    g.in_lab_at("an unmasked SIMD exception: #XM", &[], "TCG has no #XM");
    g.in_lab_at("without OSXMMEXCPT it is #UD", &[], "TCG has no #XM");
    g.in_lab_at("reserved bits of MXCSR", &[], "TCG does not check it");
    g.in_lab_at("FXRSTOR with a bad MXCSR", &[], "TCG does not check it");
    g.run();
}

#[test]
fn xsave_is_there_as_cpuid_says() {
    let mut g = Guest::long("XSAVE");
    if on_kvm() && !kvm_offers("XSAVE") {
        g.soft_only("TCG lets a guest's XSETBV past KVM, so there is no XSAVE in the lab");
    }
    g.probe("XGETBV without OSXSAVE", &["#UD @"], |a| {
        a.mov(ecx, 0)?;
        a.at("")?;
        a.xgetbv()
    });
    g.probe("XSAVE without OSXSAVE", &["#UD @"], |a| {
        a.mov(rbx, TEST)?;
        a.at("")?;
        a.xsave64(ptr(rbx))
    });
    g.probe("XCR0 at reset, and OSXSAVE in CPUID", &["=1", "=8000000"], |a| {
        bits(a, cr4, 1 << 18, 0)?;
        a.mov(ecx, 0)?;
        a.xgetbv()?;
        a.show32(eax)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.and(ecx, 1 << 27)?;
        a.show32(ecx)
    });
    for (name, low) in [("XCR0 without x87", 2u32), ("XCR0 with AVX", 7), ("XCR0 of nothing", 0)] {
        g.probe(name, &["#GP(0) @"], |a| {
            a.mov(ecx, 0)?;
            a.mov(eax, low)?;
            a.mov(edx, 0)?;
            a.at("")?;
            a.xsetbv()
        });
    }
    g.probe("XCR1", &["#GP(0) @"], |a| {
        a.mov(ecx, 2)?;
        a.at("")?;
        a.xgetbv()
    });
    g.probe("XSETBV in ring 3", &["#GP(0) @ cs=2b"], |a| {
        a.user(0)?;
        a.mov(ecx, 0)?;
        a.mov(eax, 1)?;
        a.mov(edx, 0)?;
        a.at("")?;
        a.xsetbv()
    });
    g.probe("XSAVE and XRSTOR carry XMM0", &["=3", "=1234"], |a| {
        a.mov(ecx, 0)?;
        a.mov(eax, 3)?;
        a.mov(edx, 0)?;
        a.xsetbv()?;
        a.mov(ecx, 0x1234)?;
        a.movd(xmm0, ecx)?;
        a.mov(rbx, TEST)?;
        a.xsave64(ptr(rbx))?;
        a.pxor(xmm0, xmm0)?;
        a.mov(rax, qword_ptr(rbx + 512))?;
        a.show32(eax)?;
        a.mov(eax, 3)?;
        a.mov(edx, 0)?;
        a.xrstor64(ptr(rbx))?;
        a.movd(eax, xmm0)?;
        a.show32(eax)
    });
    g.probe("XRSTOR of a reserved XSTATE_BV", &["#GP(0) @"], |a| {
        a.mov(rbx, TEST)?;
        a.mov(qword_ptr(rbx + 512), 7)?;
        a.mov(eax, 7)?;
        a.mov(edx, 0)?;
        a.at("")?;
        a.xrstor64(ptr(rbx))
    });
    g.probe("XRSTOR of an initial state", &["=0"], |a| {
        a.mov(rbx, TEST)?;
        a.mov(qword_ptr(rbx + 512), 0)?;
        a.mov(eax, 3)?;
        a.mov(edx, 0)?;
        a.xrstor64(ptr(rbx))?;
        a.movd(eax, xmm0)?;
        a.show32(eax)
    });
    g.probe("XSAVE to an odd address", &["#GP(0) @"], |a| {
        a.mov(rbx, TEST + 16)?;
        a.at("")?;
        a.xsave64(ptr(rbx))
    });
    g.run();
}

/// A feature: leaf, register (0 EAX to 3 EDX), bit, and an instruction that it brings.
type Feature = (&'static str, u32, usize, u32, &'static [u8]);

#[rustfmt::skip]
const FEATURES: &[Feature] = &[
    ("CX8", 1, 3, 8, &[0x0f, 0xc7, 0x0b]),
    ("CMOV", 1, 3, 15, &[0x0f, 0x44, 0xc0]),
    ("MMX", 1, 3, 23, &[0x0f, 0x77]),
    ("FXSR", 1, 3, 24, &[0x0f, 0xae, 0x03]),
    ("SSE", 1, 3, 25, &[0x0f, 0x58, 0xc0]),
    ("SSE2", 1, 3, 26, &[0x66, 0x0f, 0x58, 0xc0]),
    ("SSE3", 1, 2, 0, &[0xf2, 0x0f, 0x7c, 0xc0]),
    ("PCLMULQDQ", 1, 2, 1, &[0x66, 0x0f, 0x3a, 0x44, 0xc0, 0]),
    ("SSSE3", 1, 2, 9, &[0x66, 0x0f, 0x38, 0x00, 0xc0]),
    ("FMA", 1, 2, 12, &[0xc4, 0xe2, 0x79, 0x98, 0xc0]),
    ("CX16", 1, 2, 13, &[0x48, 0x0f, 0xc7, 0x0b]),
    ("SSE4.1", 1, 2, 19, &[0x66, 0x0f, 0x38, 0x29, 0xc0]),
    ("SSE4.2", 1, 2, 20, &[0x66, 0x0f, 0x38, 0x37, 0xc0]),
    ("MOVBE", 1, 2, 22, &[0x0f, 0x38, 0xf0, 0x03]),
    ("POPCNT", 1, 2, 23, &[0xf3, 0x0f, 0xb8, 0xc0]),
    ("AES", 1, 2, 25, &[0x66, 0x0f, 0x38, 0xdb, 0xc0]),
    ("AVX", 1, 2, 28, &[0xc5, 0xf8, 0x58, 0xc0]),
    ("F16C", 1, 2, 29, &[0xc4, 0xe2, 0x79, 0x13, 0xc0]),
    ("RDRAND", 1, 2, 30, &[0x0f, 0xc7, 0xf0]),
    ("BMI1", 7, 1, 3, &[0xc4, 0xe2, 0x78, 0xf3, 0xc8]),
    ("BMI2", 7, 1, 8, &[0xc4, 0xe2, 0x7b, 0xf5, 0xc0]),
    ("RDSEED", 7, 1, 18, &[0x0f, 0xc7, 0xf8]),
    ("ADX", 7, 1, 19, &[0x66, 0x0f, 0x38, 0xf6, 0xc0]),
    ("SMAP", 7, 1, 20, &[0x0f, 0x01, 0xca]),
    ("CLFLUSHOPT", 7, 1, 23, &[0x66, 0x0f, 0xae, 0x3b]),
    ("SHA", 7, 1, 29, &[0x0f, 0x38, 0xc9, 0xc0]),
    ("RDPID", 7, 2, 22, &[0xf3, 0x0f, 0xc7, 0xf8]),
    ("LAHF in 64-bit mode", 0x8000_0001, 2, 0, &[0x9f]),
    ("SSE4A", 0x8000_0001, 2, 6, &[0xf2, 0x0f, 0x79, 0xc0]),
    ("RDTSCP", 0x8000_0001, 3, 27, &[0x0f, 0x01, 0xf9]),
    ("CLZERO", 0x8000_0008, 1, 0, &[0x0f, 0x01, 0xfc]),
];

#[test]
fn what_cpuid_promises_works_and_the_rest_is_undefined() {
    let mut g = Guest::long("CPUID");
    g.soft_only("QEMU's TCG runs in a guest what the guest's CPUID does not offer");
    for (name, leaf, register, bit, bytes) in FEATURES {
        // EBP = whether CPUID has it; then the instruction runs, and ESI says that it did.
        g.probe(name, &["=0"], |a| {
            let mut trapped = a.create_label();
            a.mov(eax, *leaf)?;
            a.xor(ecx, ecx)?;
            a.cpuid()?;
            match register {
                1 => a.mov(eax, ebx)?,
                2 => a.mov(eax, ecx)?,
                3 => a.mov(eax, edx)?,
                _ => {}
            }
            a.shr(eax, *bit)?;
            a.and(eax, 1)?;
            a.mov(ebp, eax)?;
            a.mov(rbx, TEST)?;
            // The handler of #UD is ours: it adds 1 to ESI and goes on behind the instruction.
            a.mov(esi, 0)?;
            a.lea(r15, qword_ptr(trapped))?;
            a.mov(r14, rsp)?;
            a.db(bytes)?;
            a.mov(esi, 1)?;
            a.here(&mut trapped)?;
            a.xor(esi, ebp)?;
            a.show32(esi)
        });
    }
    // #UD: on to R15 with the old stack.
    g.blob(64, 0x11_0000, |a| {
        a.mov(rsp, r14)?;
        a.jmp(r15)
    });
    g.put(crate::image::IDT + 16 * 6, crate::image::gate(8, 0x11_0000, 0x8e, 0));
    g.run();
}

#[test]
fn unknown_msrs_fault() {
    let mut g = Guest::long("MSRs");
    g.stays_in_lab("TCG lets non-canonical addresses into MSRs, which KVM refuses to load");
    for (name, index) in [
        ("0xffff", 0xffffu32),
        ("0x40000200", 0x4000_0200),
        ("0xc0001234", 0xc000_1234),
        ("SPEC_CTRL, which CPUID does not offer", 0x48),
    ] {
        if index == 0x48 && on_kvm() {
            continue; // The host may offer it.
        }
        g.probe(name, &["#GP(0) @"], |a| {
            a.mov(ecx, index)?;
            a.at("")?;
            a.rdmsr()
        });
        g.probe("a write to it", &["#GP(0) @"], |a| {
            a.mov(ecx, index)?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.at("")?;
            a.wrmsr()
        });
    }
    for (name, index, low, high) in [
        ("PAT of a reserved type", 0x277u32, 2u32, 0u32),
        ("EFER with a reserved bit", 0xc000_0080, 0xd03, 0),
        ("KERNEL_GS_BASE that is not canonical", 0xc000_0102, 0, 0x8000),
    ] {
        g.probe(name, &["#GP(0) @"], |a| {
            a.mov(ecx, index)?;
            a.mov(eax, low)?;
            a.mov(edx, high)?;
            a.at("")?;
            a.wrmsr()
        });
    }
    g.probe("TSC_AUX comes back by RDTSCP and RDPID", &["=1234", "=1234"], |a| {
        a.wrmsr_value(0xc000_0103, 0x1234)?;
        a.rdtscp()?;
        a.show32(ecx)?;
        a.rdpid(rcx)?;
        a.show32(ecx)
    });
    g.probe("RDTSC in ring 3 with CR4.TSD", &["#GP(0) @ cs=2b"], |a| {
        bits(a, cr4, 4, 0)?;
        a.user(0)?;
        a.at("")?;
        a.rdtsc()
    });
    g.probe("RDPMC of no counter", &["#GP(0) @ cs=2b"], |a| {
        a.user(0)?;
        a.mov(ecx, 0x77)?;
        a.at("")?;
        a.rdpmc()
    });
    g.in_lab_at("KERNEL_GS_BASE that is not canonical", &[], "TCG does not check it");
    g.in_lab_at("TSC_AUX comes back by RDTSCP and RDPID", &["=1234", "#UD +18"], "KVM offers no RDPID there");
    g.run();
}
