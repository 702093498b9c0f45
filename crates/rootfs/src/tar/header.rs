//! The numbers of a header (POSIX.1-2017, pax, "ustar Interchange Format"), as forgiving as other readers: an empty field is 0.
use crate::fault::damaged;
use viv_model::Fault;

/// Octal digits between spaces and zero bytes, or GNU's big-endian number with the first bit set, which may be negative.
fn number(field: &[u8]) -> Option<i128> {
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        // The second bit is the number's sign; fields have up to 12 bytes.
        let begin =
            if first & 0x40 == 0 { i128::from(first & 0x3f) } else { i128::from(first & 0x3f) - 0x40 };
        return Some(rest.iter().fold(begin, |value, byte| value << 8 | i128::from(*byte)));
    }
    let is_filling = |byte: &u8| *byte == b' ' || *byte == 0;
    let from = field.iter().position(|byte| !is_filling(byte)).unwrap_or(field.len());
    let digits = field.get(from..)?.split(is_filling).next()?;
    if !digits.iter().all(|digit| matches!(digit, b'0'..=b'7')) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value << 3 | i128::from(digit - b'0')))
}

/// A field's number, if it is one and has room in a `T`.
pub(super) fn field<T: TryFrom<i128>>(bytes: &[u8], what: &str) -> Result<T, Fault> {
    number(bytes).and_then(|value| T::try_from(value).ok()).ok_or_else(|| {
        damaged(format!("a header of its archive has a bad {what}: {:?}", String::from_utf8_lossy(bytes)))
    })
}

/// The header's own sum: of its bytes, with the sum's field as spaces. Old archives summed signed bytes.
pub(super) fn check_sum(header: &tar::Header) -> Result<(), Fault> {
    let claimed: i64 = field(&header.as_old().cksum, "checksum")?;
    let bytes = header.as_bytes().iter().enumerate();
    let summed = bytes.map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let (plain, signed) = summed.fold((0i64, 0i64), |(plain, signed), byte| {
        (plain + i64::from(byte), signed + i64::from(byte.cast_signed()))
    });
    if claimed == plain || claimed == signed {
        Ok(())
    } else {
        Err(damaged("a header of its archive has a wrong checksum"))
    }
}

/// A device's major and minor number; the oldest headers have none.
pub(super) fn device(header: &tar::Header) -> Result<(u32, u32), Fault> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        (None, None) => return Ok((0, 0)),
    };
    Ok((field(major, "device number")?, field(minor, "device number")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_others_write_them() {
        for (bytes, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"77777777", Some(0o7777_7777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"", Some(0)),
            (b"0000008\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\0\x01\x02", Some(0x102)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", Some(u64::MAX.into())),
        ] {
            assert_eq!(number(bytes), expected, "{bytes:?}");
        }
        assert!(field::<u32>(b"\xff\xff\xff\xff\xff\xff\xff\xfe", "owner").is_err());
        assert!(field::<u64>(b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "size").is_err());
        assert_eq!(field::<i64>(b"\xff\xff\xff\xff\xff\xff\xff\xfe", "time"), Ok(-2));
    }
}
