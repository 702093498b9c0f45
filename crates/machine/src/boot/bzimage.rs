//! Linux's bzImage (Linux Documentation/arch/x86/boot.rst, "the boot protocol").
use super::BootError;
use super::bytes::{range, u16_at, u32_at, u64_at};

/// Offset of the setup header in the file and in the zero page.
pub const SETUP_HEADER: usize = 0x1f1;
/// Offset of the 64-bit entry point from the start of the protected-mode code ("64-bit boot protocol").
pub const ENTRY_64: u64 = 0x200;

/// What the loader needs of a setup header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage<'a> {
    /// The header's bytes from [`SETUP_HEADER`] on, to be copied into the zero page.
    pub header: &'a [u8],
    /// The protected-mode part: decompressor and payload.
    pub code: &'a [u8],
    /// The compressed kernel within it, if the protocol tells where (2.08).
    pub payload: Option<&'a [u8]>,
    /// Boot protocol version, major in the high byte.
    pub version: u16,
    /// Longest command line without its final zero.
    pub cmdline_max: usize,
    /// Highest address that an initrd may occupy.
    pub initrd_max: u64,
    /// Where the protected-mode part wants to be.
    pub pref_address: u64,
    /// Memory from there that it needs until it has read the memory map.
    pub init_size: u64,
    /// It has the 64-bit entry point (XLF_KERNEL_64), if the protocol tells (2.12).
    pub has_64bit_entry: Option<bool>,
}

/// Whether the file claims to be a bzImage.
pub fn looks_like(data: &[u8]) -> bool {
    u16_at(data, 0x1fe) == Some(0xaa55) && data.get(0x202..0x206) == Some(b"HdrS")
}

/// Reads the setup header.
pub fn parse(data: &[u8]) -> Result<BzImage<'_>, BootError> {
    let have = data.len() as u64;
    let short = |need: u64| BootError::Truncated { need, have };
    if !looks_like(data) {
        return Err(BootError::NotKernel);
    }
    let version = u16_at(data, 0x206).ok_or(short(0x208))?;
    if version < 0x206 {
        let [major, minor] = version.to_be_bytes();
        return Err(BootError::TooOld { major, minor });
    }
    // The header ends where the jump at 0x200 leads to.
    let header_end = 0x202 + usize::from(*data.get(0x201).ok_or(short(0x202))?);
    let header = data.get(SETUP_HEADER..header_end).ok_or(short(header_end as u64))?;
    let setup_sects = match *data.get(0x1f1).ok_or(short(0x1f2))? {
        0 => 4,
        n => u64::from(n),
    };
    let code_start = (setup_sects + 1) * 512;
    let syssize = u64::from(u32_at(data, 0x1f4).ok_or(short(0x1f8))?) * 16;
    // Linux before 6.x counts a final checksum that some files lack; it is padding for us.
    let need = (code_start + syssize).saturating_sub(16);
    if need > have {
        return Err(short(need));
    }
    let code = range(data, code_start, syssize.min(have.saturating_sub(code_start))).ok_or(short(need))?;
    let loadflags = *data.get(0x211).ok_or(short(0x212))?;
    if loadflags & 1 == 0 {
        return Err(BootError::Damaged { what: "it is a zImage, which loads below 1 MiB" });
    }
    let mut image = BzImage {
        header,
        code,
        payload: None,
        version,
        cmdline_max: u32_at(data, 0x238).unwrap_or(255) as usize,
        initrd_max: u64::from(u32_at(data, 0x22c).unwrap_or(0x37ff_ffff)),
        pref_address: 0x10_0000,
        init_size: code.len() as u64,
        has_64bit_entry: None,
    };
    if version >= 0x208 {
        let offset = u64::from(u32_at(data, 0x248).ok_or(short(0x24c))?);
        let len = u64::from(u32_at(data, 0x24c).ok_or(short(0x250))?);
        if len > 0 {
            let payload = range(code, offset, len);
            image.payload = Some(payload.ok_or(BootError::Damaged { what: "its payload lies outside it" })?);
        }
    }
    if version >= 0x20a {
        image.pref_address = u64_at(data, 0x258).ok_or(short(0x260))?;
        image.init_size = u64::from(u32_at(data, 0x260).ok_or(short(0x264))?).max(image.init_size);
    }
    if version >= 0x20c {
        image.has_64bit_entry = Some(u16_at(data, 0x236).ok_or(short(0x238))? & 1 != 0);
    }
    Ok(image)
}
